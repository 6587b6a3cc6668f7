"""Arrays as pictures: uint8 [H, W, 3]."""

import base64
import io

import numpy as np
from PIL import Image

# Of matplotlib's viridis, at equal distances: light is much, also in grey and
# for people who do not see all colours.
_COLOURS = (
  (68, 1, 84),
  (59, 82, 139),
  (33, 145, 140),
  (94, 201, 98),
  (253, 231, 37),
)
_OPACITY = 0.6


def from_network(
  image: np.ndarray, mean: np.ndarray, std: np.ndarray
) -> np.ndarray:
  """Returns a normalized image [N, N, 3] as one sees it."""
  return np.uint8(np.clip(np.rint(image * std + mean), 0, 255))


def enlarge(picture: np.ndarray, side: int) -> np.ndarray:
  """Returns a picture as high as `side`, at least, with its pixels as they are.

  A browser would blur a small one.
  """
  factor = -(-side // picture.shape[0])
  return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def heat(values: np.ndarray, side: int, is_smooth: bool = True) -> np.ndarray:
  """Returns a map [h, w] in colours, from its least to its greatest value."""
  values = np.float32(values)
  span = np.ptp(values)
  values = (values - values.min()) / span if span > 0 else np.zeros_like(values)
  kinds = Image.Resampling
  kind = kinds.BICUBIC if is_smooth else kinds.NEAREST
  large = Image.fromarray(values).resize((side, side), kind)
  positions = np.linspace(0, 1, len(_COLOURS))
  return np.stack(
    [
      np.uint8(np.interp(large, positions, channel))
      for channel in zip(*_COLOURS, strict=True)
    ],
    axis=-1,
  )


def overlay(picture: np.ndarray, values: np.ndarray) -> np.ndarray:
  """Returns a square picture in grey under a map [h, w] in colours."""
  grey = np.asarray(Image.fromarray(picture).convert('L'))[..., None]
  colours = heat(values, picture.shape[0])
  return np.uint8(_OPACITY * colours + (1 - _OPACITY) * grey)


def thumbnail(picture: np.ndarray, side: int) -> np.ndarray:
  """Returns a picture of at most `side` pixels in height and width."""
  image = Image.fromarray(picture)
  image.thumbnail((side, side))
  return np.asarray(image)


def data_url(picture: np.ndarray) -> str:
  """Returns a picture as a PNG that stands in a page itself."""
  content = io.BytesIO()
  Image.fromarray(picture).save(content, 'png')
  return (
    'data:image/png;base64,' + base64.b64encode(content.getvalue()).decode()
  )
