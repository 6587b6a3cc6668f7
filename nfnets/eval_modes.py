"""How images are prepared for evaluation, by name; TensorFlow is not needed.

`nfnets.data.preprocess.preprocess_eval` says what each name means, and does it.
"""

import re

EVAL_MODES = (
  "'crop_resize', 'resize_crop_P' (such as 'resize_crop_32') or "
  "'center_crop_P' (such as 'center_crop_0.9')"
)


def check_eval_mode(mode: str) -> None:
  """Raises ValueError unless `preprocess_eval` knows `mode`."""
  fraction = r'(?:0?\.\d+|1(?:\.0*)?)'
  pattern = rf'resize_crop_(?P<P>\d+|{fraction})|center_crop_(?P<Q>{fraction})'
  margin = re.fullmatch(pattern, mode)
  if mode != 'crop_resize' and not (
    margin and float(margin['P'] or margin['Q']) > 0
  ):
    raise ValueError(
      f'Unknown evaluation preprocessing {mode!r}: use {EVAL_MODES}, where P '
      'is a fraction above 0 and at most 1 or, for the second, also a whole '
      'number of pixels.'
    )


def resized_side(mode: str, size: int) -> float:
  """Returns the side in pixels that the image has before it is cropped."""
  if mode == 'crop_resize':
    return size
  margin = float(mode.rpartition('_')[2])
  return size + margin if margin > 1 else size / margin
