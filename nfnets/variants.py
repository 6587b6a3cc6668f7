"""The tables of variants, and the names of all models, without JAX.

Each table maps the name of a variant to its row: widths, depths, image sizes
and its own settings; `nfnets.base` has them too.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from nfnets import timm_variants

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


class Row(NamedTuple):
  """The module, arguments and image sizes that belong to a model's name.

  Attributes:
    family: the module of `nfnets` that has its class.
    kwargs: arguments of the class.
    train_size: side of the training images, in pixels.
    test_size: side of the test images.
    eval_preproc: as `nfnets.data.preprocess.preprocess_eval` names it.
    statistics: `mean` and `std` of the channels, where they are not ImageNet's.
  """

  family: str
  kwargs: Mapping[str, Any]
  train_size: int
  test_size: int
  eval_preproc: str
  statistics: Mapping[str, Any]


models: dict[str, Row] = {
  pattern.format(variant.lower()): Row(
    family,
    {'variant': variant, **kwargs},
    row.get('train_imsize', 224),
    row.get('test_imsize', 224),
    'resize_crop_1' if variant == 'digits' else eval_preproc.format(**row),
    {key: row[key] for key in ('mean', 'std') if key in row},
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
      *('timm/{}', 'timm_nets', timm_variants.timm_params, {}),
      'center_crop_{crop:g}',
    ),
  )
  for variant, row in table.items()
}
# The network of the digits for small pictures of any kind, 32 to 96 pixels.
models['nfnet_tiny'] = models['nfnet_digits']._replace(
  train_size=64, test_size=64
)
