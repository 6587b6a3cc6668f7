"""Tables of network variants, and all model names. Does not import JAX.

Each table maps a variant to its row: widths, depths, image sizes and other
settings. `nfnets.base` exports the published tables.
"""

from collections.abc import Callable, Mapping
import dataclasses
import importlib
from typing import Any

import numpy as np

from nfnets import imagenet

# NFNets (arXiv 2102.06171), table 1, and the published settings. `RA_level` is
# RandAugment's: layers, then two digits of magnitude.
_F_ROWS = {
  'F0': (192, 256, 0.2, '405'),
  'F1': (224, 320, 0.3, '410'),
  'F2': (256, 352, 0.4, '410'),
  'F3': (320, 416, 0.4, '415'),
  'F4': (384, 512, 0.5, '415'),
  'F5': (416, 544, 0.5, '415'),
  'F6': (448, 576, 0.5, '415'),
  'F7': (480, 608, 0.5, '415'),
}
nfnet_params: dict[str, dict] = {
  f'{name}{suffix}': {
    'width': width,
    'depth': [n, 2 * n, 6 * n, 3 * n],
    'train_imsize': train_imsize,
    'test_imsize': test_imsize,
    'RA_level': level,
    'drop_rate': drop_rate,
  }
  for suffix, width in (
    ('', [256, 512, 1536, 1536]),
    ('+', [384, 768, 2048, 2048]),
  )
  for n, (name, (train_imsize, test_imsize, drop_rate, level)) in enumerate(
    _F_ROWS.items(), start=1
  )
}
# A small network of the same kind for 32x32 images, 0.27 M parameters.
nfnet_params['digits'] = {
  'width': [32, 64, 128, 128],
  'depth': [1, 1, 2, 1],
  'train_imsize': 32,
  'test_imsize': 32,
  'RA_level': None,
  'drop_rate': 0.0,
  'group_width': 16,
}

# NF-ResNets (arXiv 2101.08692), appendix E: EfficientNet-like scaling of a
# RegNet. Rows: widths, depths, training and test pixels, dropout rate.
_REGNET_ROWS = {
  'B0': ([48, 104, 208, 440], [1, 3, 6, 6], 192, 224, 0.2),
  'B1': ([48, 104, 208, 440], [2, 4, 7, 7], 224, 256, 0.2),
  'B2': ([56, 112, 232, 488], [2, 4, 8, 8], 240, 272, 0.3),
  'B3': ([56, 128, 248, 528], [2, 5, 9, 9], 288, 320, 0.3),
  'B4': ([64, 144, 288, 616], [2, 6, 11, 11], 320, 384, 0.4),
  'B5': ([80, 168, 336, 704], [3, 7, 14, 14], 384, 456, 0.4),
  'B6': ([88, 184, 376, 792], [3, 8, 16, 16], 448, 528, 0.5),
  'B7': ([96, 208, 416, 880], [4, 10, 19, 19], 512, 600, 0.5),
  'B8': ([104, 232, 456, 968], [4, 11, 22, 22], 600, 672, 0.5),
}
nf_regnet_params: dict[str, dict] = {
  name: dict(
    zip(
      ('width', 'depth', 'train_imsize', 'test_imsize', 'drop_rate'),
      row,
      strict=True,
    )
  )
  for name, row in _REGNET_ROWS.items()
}

# ResNets (arXiv 1512.03385 and 1603.05027), and deeper ones.
resnet_params: dict[str, dict] = {
  'ResNet50': {'depth': [3, 4, 6, 3]},
  'ResNet101': {'depth': [3, 4, 23, 3]},
  'ResNet152': {'depth': [3, 8, 36, 3]},
  'ResNet200': {'depth': [3, 24, 36, 3]},
  'ResNet288': {'depth': [24, 24, 24, 24]},
  'ResNet600': {'depth': [50, 50, 50, 50]},
}

# A row of timm's own normalizer-free networks (see `timm_nets`): its keys, and
# the values that most rows have.
_TIMM_DEFAULTS = {
  'depth': None,  # Blocks of each stage.
  'width': None,  # Channels of each stage.
  'stem': None,  # Channels, kernel size and stride of each convolution.
  'max_pool': False,  # After the stem.
  'activation': 'silu',
  'bottleneck': 0.25,  # Channels inside a block / its output channels.
  # The bottleneck is relative to the input channels (1 in the first block), and
  # the gate is inside the block.
  'inverted': False,
  'group_size': None,  # None: one group.
  'two_convs': False,  # Blocks have a second 3x3 convolution.
  'se_ratio': 0.0,  # Squeeze and excite: hidden / input channels; 0: none.
  'use_eca': False,  # The gate is EfficientChannelAttention.
  'final_ch': 0,  # Channels of the final convolution; 0: none.
  'train_imsize': 224,  # Pixels.
  'test_imsize': 224,
  'crop': 0.9,  # Side of the central crop / side of the resized image.
  # Channel statistics of images in 0-255.
  'mean': imagenet.MEAN,
  'std': imagenet.STD,
}


def multiple_of_8(channels: float) -> int:
  """Round to the nearest multiple of 8; the result is at least 8."""
  return max(8, int(channels + 4) // 8 * 8)


_F0 = {
  **_TIMM_DEFAULTS,
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
  **_TIMM_DEFAULTS,
  'bottleneck': 2.25,
  'inverted': True,
  'group_size': 8,
  'se_ratio': 0.5,
}
_RESNET = {
  **_TIMM_DEFAULTS,
  'width': [256, 512, 1024, 2048],
  'stem': [(64, 7, 2)],
  'max_pool': True,
  'activation': 'relu',
}


def _sized(row: dict, n: int, train_imsize: int, test_imsize: int) -> dict:
  """Return the row with n times as many blocks, and these image sizes."""
  return {
    **row,
    'depth': [n * depth for depth in row['depth']],
    'train_imsize': train_imsize,
    'test_imsize': test_imsize,
  }


def _timm_table() -> dict[str, dict]:
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

  # timm's widths are three quarters of the published ones.
  sizes = [(192, 256), (256, 288), (240, 272), (288, 320), (320, 384)]
  for n, size in enumerate([*sizes, (384, 456)]):
    published = nf_regnet_params[f'B{n}']
    widths = [multiple_of_8(0.75 * w) for w in published['width']]
    row = {**_REGNET, 'depth': published['depth'], 'width': widths}
    row['stem'] = [(widths[0], 3, 2)]
    final_ch = 1280 * published['width'][-1] // 440
    row['final_ch'] = multiple_of_8(0.75 * final_ch)
    table[f'nf_regnet_b{n}'] = _sized(row, 1, *size)

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


timm_params: dict[str, dict] = _timm_table()


_CLASSES = {
  'nfnet': 'NFNet',
  'nf_regnet': 'NF_RegNet',
  'nf_resnet': 'NF_ResNet',
  'resnet': 'ResNet',
  'skipinit_resnet': 'SkipInit_ResNet',
  'fixup_resnet': 'FixUp_ResNet',
  'timm_nets': 'NormFreeNet',
}


@dataclasses.dataclass(frozen=True, eq=False)  # Hashable, by identity.
class Entry:
  """The network, arguments, image sizes and preprocessing of a model.

  Attributes:
    family: the module of `nfnets` with the network.
    kwargs: arguments of the network's class.
    train_size: side of the training images, in pixels.
    test_size: side of the test images, in pixels.
    eval_preproc: mode of `nfnets.data.preprocess.preprocess_eval`.
    mean: channel means of images in 0-255, float32 [3].
    std: channel standard deviations of the same images, float32 [3].
  """

  family: str
  kwargs: Mapping[str, Any]
  train_size: int
  test_size: int
  eval_preproc: str
  mean: np.ndarray = dataclasses.field(default_factory=lambda: imagenet.MEAN)
  std: np.ndarray = dataclasses.field(default_factory=lambda: imagenet.STD)

  @property
  def module(self) -> Callable[..., Any]:
    """The network's class, a `hk.Module`."""
    module = importlib.import_module(f'nfnets.{self.family}')
    return getattr(module, _CLASSES[self.family])


models: dict[str, Entry] = {
  pattern.format(variant.lower()): Entry(
    family,
    {'variant': variant, **kwargs},
    row.get('train_imsize', 224),
    row.get('test_imsize', 224),
    'resize_crop_1' if variant == 'digits' else eval_preproc.format(**row),
    **{key: row[key] for key in ('mean', 'std') if key in row},
  )
  for pattern, family, table, kwargs, eval_preproc in (
    ('nfnet_{}', 'nfnet', nfnet_params, {}, 'resize_crop_32'),
    ('nf_regnet_{}', 'nf_regnet', nf_regnet_params, {}, 'crop_resize'),
    ('nf_{}', 'nf_resnet', resnet_params, {}, 'crop_resize'),
    ('{}', 'resnet', resnet_params, {'width': 4}, 'crop_resize'),
    (
      *('{}_v1', 'resnet', resnet_params),
      *({'width': 4, 'preactivation': False}, 'crop_resize'),
    ),
    ('skipinit_{}', 'skipinit_resnet', resnet_params, {}, 'crop_resize'),
    ('fixup_{}', 'fixup_resnet', resnet_params, {}, 'crop_resize'),
    (
      *('timm/{}', 'timm_nets', timm_params, {}),
      'center_crop_{crop:g}',
    ),
  )
  for variant, row in table.items()
}
# The network of the digits, for any small images of 32 to 96 pixels.
models['nfnet_tiny'] = dataclasses.replace(
  models['nfnet_digits'], train_size=64, test_size=64
)
