"""The tables of variants: widths, depths, image sizes and their own settings.

Each maps the name of a variant to its row; `nfnets.base` has them too.
"""


def _nfnet_row(width, depth, train_imsize, test_imsize, drop_rate, level):
  return {
    'width': width,
    'depth': depth,
    'train_imsize': train_imsize,
    'test_imsize': test_imsize,
    'RA_level': level,
    'drop_rate': drop_rate,
  }


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
nfnet_params: dict[str, dict] = {}
for _suffix, _width in (
  ('', [256, 512, 1536, 1536]),
  ('+', [384, 768, 2048, 2048]),
):
  for _n, (_name, _row) in enumerate(_F_ROWS.items(), start=1):
    _depth = [_n, 2 * _n, 6 * _n, 3 * _n]
    nfnet_params[_name + _suffix] = _nfnet_row(_width, _depth, *_row)
# A small network of the same kind for 32x32 images, 0.27 M parameters.
nfnet_params['digits'] = {
  **_nfnet_row([32, 64, 128, 128], [1, 1, 2, 1], 32, 32, 0.0, None),
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
