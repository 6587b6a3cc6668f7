"""The table of timm's own normalizer-free networks (see `timm_nets`)."""

import numpy as np

from nfnets import imagenet

# What a row holds, and what most rows have.
_DEFAULTS = {
  'depth': None,  # Blocks of each stage.
  'width': None,  # Channels of each stage.
  'stem': None,  # Channels, kernel size and stride of each convolution.
  'max_pool': False,  # After the stem.
  'activation': 'silu',
  # Channels inside a block, as a part of its output's.
  'bottleneck': 0.25,
  # Whether that is a part of its input's, and 1 in the network's first block,
  # and the gate acts inside the block.
  'inverted': False,
  'group_size': None,  # None is one group.
  'two_convs': False,  # Whether blocks have a second 3x3 convolution.
  'se_ratio': 0.0,  # Of squeeze and excite; 0 is without.
  'use_eca': False,  # Whether the gate is EfficientChannelAttention.
  'final_ch': 0,  # Channels of the final convolution; 0 is without.
  'train_imsize': 224,  # Pixels.
  'test_imsize': 224,
  # Side of the centre that is evaluated, as a part of the resized image's.
  'crop': 0.9,
  # What is subtracted from images in 0-255, and what they are divided by.
  'mean': imagenet.MEAN,
  'std': imagenet.STD,
}


def multiple_of_8(channels: float) -> int:
  """Rounds to the nearest multiple of 8, half of 8 up; 8 is the least."""
  return max(8, int(channels + 4) // 8 * 8)


_F0 = {
  **_DEFAULTS,
  'depth': [1, 2, 6, 3],
  'width': [256, 512, 1536, 1536],
  'stem': [(16, 3, 2), (32, 3, 1), (64, 3, 1), (128, 3, 2)],
  'activation': 'gelu',
  'bottleneck': 0.5,
  'group_size': 128,
  'two_convs': True,
  'se_ratio': 0.5,
  'final_ch': 3072,
}
_LIGHT = {
  **_F0,
  'activation': 'silu',
  'bottleneck': 0.25,
  'group_size': 64,
  'crop': 1.0,
}
_REGNET = {
  **_DEFAULTS,
  'bottleneck': 2.25,
  'inverted': True,
  'group_size': 8,
  'se_ratio': 0.5,
}
_RESNET = {
  **_DEFAULTS,
  'width': [256, 512, 1024, 2048],
  'stem': [(64, 7, 2)],
  'max_pool': True,
  'activation': 'relu',
}


def _sized(row: dict, n: int, train_imsize: int, test_imsize: int) -> dict:
  """Returns the row with n times the blocks, and these image sizes."""
  return {
    **row,
    'depth': [n * depth for depth in row['depth']],
    'train_imsize': train_imsize,
    'test_imsize': test_imsize,
  }


def _table() -> dict[str, dict]:
  table = {}
  sizes = [(192, 256), (224, 320), (256, 352), (320, 416)]
  sizes += [(384, 512), (416, 544), (448, 576), (480, 608)]
  for n, size in enumerate(sizes):
    table[f'nfnet_f{n}'] = _sized(_F0, n + 1, *size)

  l0 = {**_LIGHT, 'se_ratio': 0.25, 'final_ch': 2304}
  table['nfnet_l0'] = _sized(l0, 1, 224, 288)
  sizes = [(224, 288), (256, 320), (320, 384), (352, 448)]
  for n, size in enumerate(sizes):
    row = {**_LIGHT, 'se_ratio': 0.0, 'use_eca': True}
    row['final_ch'] = 3072 if n else 2304
    table[f'eca_nfnet_l{n}'] = _sized(row, n + 1, *size)
  table['test_nfnet'] = {
    **_LIGHT,
    'depth': [1, 1, 1, 1],
    'width': [32, 64, 96, 128],
    'group_size': 8,
    'se_ratio': 0.25,
    'final_ch': 192,
    'train_imsize': 160,
    'test_imsize': 160,
    'crop': 0.95,
    'mean': np.full(3, 127.5, np.float32),
    'std': np.full(3, 127.5, np.float32),
  }

  # Three quarters of these widths, as those of the published NF-RegNets.
  for n, (depth, width, train, test) in enumerate(
    [
      ([1, 3, 6, 6], [48, 104, 208, 440], 192, 256),
      ([2, 4, 7, 7], [48, 104, 208, 440], 256, 288),
      ([2, 4, 8, 8], [56, 112, 232, 488], 240, 272),
      ([2, 5, 9, 9], [56, 128, 248, 528], 288, 320),
      ([2, 6, 11, 11], [64, 144, 288, 616], 320, 384),
      ([3, 7, 14, 14], [80, 168, 336, 704], 384, 456),
    ]
  ):
    widths = [multiple_of_8(0.75 * w) for w in width]
    row = {**_REGNET, 'depth': depth, 'width': widths}
    row['stem'] = [(widths[0], 3, 2)]
    row['final_ch'] = multiple_of_8(0.75 * (1280 * width[-1] // 440))
    table[f'nf_regnet_b{n}'] = _sized(row, 1, train, test)

  for name, gate in (
    ('nf_resnet', {}),
    ('nf_seresnet', {'se_ratio': 1 / 16}),
    ('nf_ecaresnet', {'use_eca': True}),
  ):
    for layers, depth in (
      (26, [2, 2, 2, 2]),
      (50, [3, 4, 6, 3]),
      (101, [3, 4, 23, 3]),
    ):
      table[f'{name}{layers}'] = {**_RESNET, 'depth': depth, **gate}
  table['nf_resnet50'].update(train_imsize=256, test_imsize=288, crop=0.94)
  return table


timm_params = _table()
