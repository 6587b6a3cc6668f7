"""Augmentations by name, such as cutmix_mixup_0.4_randaugment_415.

A name joins parts by underscores, in any order and each at most once:

  mixup_A        mixup with ratios from Beta(A, A); `mixup` alone is mixup_0.2
  cutmix         CutMix; together with mixup, each makes half of every batch
  randaugment_N  RandAugment: the last two digits of N are the magnitude, those
                 before them the number of layers, so 415 is 4 layers of
                 magnitude 15; up to 100, N is the magnitude of 2 layers
  autoaugment    AutoAugment's policy for ImageNet; not with RandAugment

The empty name is no augmentation. The target of a mixed image is ratio *
onehot(a's label) + (1 - ratio) * onehot(b's label).
"""

from collections.abc import Callable, Mapping
import difflib
import inspect
import re
from typing import Any, NamedTuple, NoReturn

import tensorflow as tf

from nfnets.data import autoaugment

_NUMBER = re.compile(r'-?(\d+\.?\d*|\.\d+)', re.ASCII)
_EXAMPLE = 'cutmix_mixup_0.4_randaugment_415'
_PARTS = ('mixup', 'cutmix', 'randaugment', 'autoaugment')
_DEFAULT_ALPHA = 0.2
_MIN_ALPHA, _MAX_ALPHA = 0.001, 1000
_DEFAULT_LAYERS = 2
_MAX_LAYERS = 10
_MAX_MAGNITUDE = 30  # RandAugment's paper looks no further.


class Augmentation(NamedTuple):
  """The parts of an augmentation's name.

  Attributes:
    mixup_alpha: Ratios are drawn from Beta(alpha, alpha); None without mixup.
    cutmix: Whether to use CutMix.
    num_layers: Number of layers of RandAugment; 0 without it.
    magnitude: Magnitude of RandAugment.
    autoaugment: Whether to use AutoAugment.
    mixes: Whether images are mixed in pairs.
    alters: Whether RandAugment or AutoAugment is used.
  """

  mixup_alpha: float | None = None
  cutmix: bool = False
  num_layers: int = 0
  magnitude: int = 0
  autoaugment: bool = False

  @property
  def mixes(self) -> bool:
    return self.cutmix or self.mixup_alpha is not None

  @property
  def alters(self) -> bool:
    return self.autoaugment or self.num_layers > 0


def parse(name: str) -> Augmentation:
  """Read the name of an augmentation; the module's docstring has the grammar.

  Raises:
    ValueError: A part is unknown, repeated, incomplete or out of range, or two
      parts exclude each other.
  """

  def fail(what: str) -> NoReturn:
    raise ValueError(
      f'In the augmentation {name!r}, {what}. Names join parts by underscores, '
      f'such as {_EXAMPLE}; the parts are mixup_ALPHA (or mixup, which is '
      f'mixup_{_DEFAULT_ALPHA}), cutmix, randaugment_N and autoaugment.'
    )

  numbers = {}  # By part; None where it has none.
  words = name.split('_') if name else []
  while words:
    part = words.pop(0)
    if part not in _PARTS:
      close = difflib.get_close_matches(part, _PARTS, n=1, cutoff=0.5)
      hint = f' (did you mean {close[0]!r}?)' if close else ''
      fail(f'{part!r} is unknown{hint}')
    if part in numbers:
      fail(f'{part!r} occurs twice')
    takes_number = part in ('mixup', 'randaugment')
    has_number = takes_number and words and _NUMBER.fullmatch(words[0])
    numbers[part] = words.pop(0) if has_number else None
  if 'autoaugment' in numbers and 'randaugment' in numbers:
    fail("'autoaugment' and 'randaugment' exclude each other")
  alpha, layers, magnitude = None, 0, 0
  if 'mixup' in numbers:
    alpha = float(numbers['mixup'] or _DEFAULT_ALPHA)
    if not _MIN_ALPHA <= alpha <= _MAX_ALPHA:
      fail(
        f"the number of 'mixup_{numbers['mixup']}' is not in "
        f'[{_MIN_ALPHA}, {_MAX_ALPHA}]'
      )
  if 'randaugment' in numbers:
    number = numbers['randaugment'] or ''
    if not number.isdigit():
      fail("'randaugment' needs a whole number after it")
    layers, magnitude = divmod(int(number), 100)
    if int(number) <= 100:
      layers, magnitude = _DEFAULT_LAYERS, int(number)
    if magnitude > _MAX_MAGNITUDE or layers > _MAX_LAYERS:
      fail(
        f"'randaugment_{number}' is {layers} layers of magnitude {magnitude}, "
        f'but there are at most {_MAX_LAYERS} of at most {_MAX_MAGNITUDE}'
      )
  auto = 'autoaugment' in numbers
  return Augmentation(alpha, 'cutmix' in numbers, layers, magnitude, auto)


def gives_uint8(plan: Augmentation, augment_before_mix: bool) -> bool:
  """Return whether the images that come out are uint8 and not float32.

  RandAugment and AutoAugment give uint8, which CutMix leaves as it is.
  """
  blends_last = augment_before_mix and plan.mixup_alpha is not None
  return plan.alters and not blends_last


def augmenter(
  plan: Augmentation, kwargs: Mapping[str, Any] | None = None
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
  """Return the function that does RandAugment, AutoAugment or nothing.

  Args:
    plan: What `parse` returns.
    kwargs: Keyword arguments of `autoaugment.rand_augment` or
      `autoaugment.auto_augment`.

  Returns:
    A function of (image, seed): float32 [h, w, 3] and int64 [2]. RandAugment
    and AutoAugment take the image clamped to 0-255 and rounded down, and
    return uint8 [h, w, 3].

  Raises:
    ValueError: There is no such keyword argument.
  """
  kwargs = kwargs or {}
  if not plan.alters:
    return lambda image, seed: image
  function, args = autoaugment.auto_augment, ()
  if not plan.autoaugment:
    function = autoaugment.rand_augment
    args = (plan.num_layers, plan.magnitude)
  known = inspect.getfullargspec(function).kwonlyargs
  if unknown := [key for key in kwargs if key not in known]:
    raise ValueError(
      f'There is no augment_kwargs {", ".join(unknown)}; there are '
      f'{", ".join(known)}.'
    )

  return lambda image, seed: function(
    tf.saturate_cast(image, tf.uint8), seed, *args, **kwargs
  )


def mix(
  a: tf.Tensor,
  b: tf.Tensor,
  plan: Augmentation,
  seed: tf.Tensor,
  use_mixup: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
  """Mix two images by mixup or by CutMix.

  Args:
    a: float32 or uint8 [h, w, 3].
    b: The same.
    plan: Selects mixup, CutMix or both.
    seed: int64 [2].
    use_mixup: bool []; decides if there are both.

  Returns:
    The image [h, w, 3], float32 if there is mixup and otherwise like `a`, and
    the ratio, float32 [].
  """
  if plan.mixup_alpha is None:
    return cutmix(a, b, seed)
  a, b = tf.cast(a, tf.float32), tf.cast(b, tf.float32)
  if not plan.cutmix:
    return mixup(a, b, plan.mixup_alpha, seed)
  return tf.cond(
    use_mixup,
    lambda: mixup(a, b, plan.mixup_alpha, seed),
    lambda: cutmix(a, b, seed),
  )


def mixup(
  a: tf.Tensor, b: tf.Tensor, alpha: float, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
  """Blend two images (Zhang et al., arXiv 1710.09412).

  Args:
    a: float32 [h, w, 3].
    b: float32 [h, w, 3].
    alpha: The ratio is drawn from Beta(alpha, alpha).
    seed: int64 [2]; the same seed gives the same ratio.

  Returns:
    ratio * a + (1 - ratio) * b, float32 [h, w, 3], and the ratio, float32 [].
  """
  # x / (x + y) of two draws from Gamma(alpha), which is Gamma(alpha + 1) times
  # U^(1 / alpha). All in logarithms: with a small alpha, x and y are often too
  # small for a float, and their ratio would be 0 / 0.
  gamma = tf.random.stateless_gamma([2], seed, alpha + 1)
  uniform = 1 - tf.random.stateless_uniform([2], tf.random.fold_in(seed, 0))
  x, y = tf.unstack(tf.math.log(gamma) + tf.math.log(uniform) / alpha)
  ratio = tf.sigmoid(x - y)
  return ratio * a + (1 - ratio) * b, ratio


def cutmix(
  a: tf.Tensor, b: tf.Tensor, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
  """Paste a box of one image into another (Yun et al., arXiv 1905.04899).

  Args:
    a: [h, w, 3], whose shape is known; the box is pasted into this one.
    b: [h, w, 3] of the same dtype.
    seed: int64 [2]; the same seed gives the same box.

  Returns:
    The image [h, w, 3], and the share of its pixels that are a's, float32 [].
  """
  height, width, channels = a.shape
  box = cutmix_box((height, width), seed)
  area = tf.cast(tf.reduce_prod(box[2:] - box[:2]), tf.float32)
  # A row as one axis, which is copied faster than columns of three numbers.
  rows = [height, width * channels]
  box *= [1, channels, 1, channels]
  where = {'begin': box[:2], 'end': box[2:], 'strides': [1, 1]}
  image = tf.raw_ops.TensorStridedSliceUpdate(
    input=tf.reshape(a, rows),
    value=tf.strided_slice(tf.reshape(b, rows), **where),
    **where,
  )
  return tf.reshape(image, a.shape), 1 - area / (height * width)


def cutmix_box(image_size: tuple[int, int], seed: tf.Tensor) -> tf.Tensor:
  """Draw the box of `cutmix`.

  Before it is clipped to the image, the box has a centre that is uniform in the
  image and an area that is uniform between nothing and all of it.

  Args:
    image_size: (h, w) in pixels.
    seed: int64 [2].

  Returns:
    int32 [4]: top, left, bottom and right in pixels, the last two exclusive.
  """
  size = tf.constant(image_size, tf.float32)
  uniform = tf.random.stateless_uniform([3], seed)
  centre = uniform[1:] * size
  half = tf.sqrt(1 - uniform[0]) / 2 * size
  corners = tf.stack([centre - half, centre + half])
  corners = tf.clip_by_value(corners, 0, size)
  return tf.cast(tf.reshape(tf.round(corners), [4]), tf.int32)
