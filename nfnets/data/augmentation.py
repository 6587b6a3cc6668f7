"""Names of augmentations, such as cutmix_mixup_0.4_randaugment_415.

A name joins parts by underscores, in any order and each at most once:

  mixup_A        mixup with ratios from Beta(A, A); `mixup` alone is mixup_0.2
  cutmix         CutMix; together with mixup, each makes half of every batch
  randaugment_N  RandAugment: the last two digits of N are the magnitude, those
                 before them the number of layers, so 415 is 4 layers of
                 magnitude 15; up to 100, N is the magnitude of 2 layers
  autoaugment    AutoAugment's policy for ImageNet; not with RandAugment

The empty name is no augmentation.
"""

from collections.abc import Callable, Mapping
import difflib
import inspect
import re
from typing import Any, NamedTuple

import tensorflow as tf

from nfnets.data import autoaugment

_EXAMPLE = 'cutmix_mixup_0.4_randaugment_415'
_PARTS = ('mixup', 'cutmix', 'randaugment', 'autoaugment')
_DEFAULT_ALPHA = 0.2
_MIN_ALPHA, _MAX_ALPHA = 0.001, 1000
_DEFAULT_LAYERS = 2
_MAX_LAYERS = 10
_MAX_MAGNITUDE = 30  # RandAugment's paper looks no further.


class Augmentation(NamedTuple):
  """What the name of an augmentation says.

  Attributes:
    mixup_alpha: Ratios are drawn from Beta(alpha, alpha); None without mixup.
    cutmix: Whether there is CutMix.
    num_layers: Of RandAugment; 0 without it.
    magnitude: Of RandAugment.
    autoaugment: Whether there is AutoAugment.
  """

  mixup_alpha: float | None = None
  cutmix: bool = False
  num_layers: int = 0
  magnitude: int = 0
  autoaugment: bool = False

  @property
  def mixes(self) -> bool:
    """Whether every image is made from two."""
    return self.cutmix or self.mixup_alpha is not None

  @property
  def alters(self) -> bool:
    """Whether there is RandAugment or AutoAugment."""
    return self.autoaugment or self.num_layers > 0


def parse(name: str) -> Augmentation:
  """Reads the name of an augmentation; the module's docstring has the grammar.

  Raises:
    ValueError: A part is unknown, repeated, incomplete or out of range, or two
      parts exclude each other.
  """
  numbers = {}  # By part; None where it has none.
  words = name.split('_') if name else []
  while words:
    part = words.pop(0)
    if part not in _PARTS:
      close = difflib.get_close_matches(part, _PARTS, n=1, cutoff=0.5)
      hint = f' (did you mean {close[0]!r}?)' if close else ''
      raise _error(name, f'{part!r} is unknown{hint}')
    if part in numbers:
      raise _error(name, f'{part!r} occurs twice')
    takes_number = part in ('mixup', 'randaugment')
    has_number = takes_number and words and _is_number(words[0])
    numbers[part] = words.pop(0) if has_number else None
  if 'autoaugment' in numbers and 'randaugment' in numbers:
    raise _error(name, "'autoaugment' and 'randaugment' exclude each other")
  fields = {}
  if 'mixup' in numbers:
    alpha = float(numbers['mixup'] or _DEFAULT_ALPHA)
    if not _MIN_ALPHA <= alpha <= _MAX_ALPHA:
      raise _error(
        name,
        f"the number of 'mixup_{numbers['mixup']}' is not in "
        f'[{_MIN_ALPHA}, {_MAX_ALPHA}]',
      )
    fields['mixup_alpha'] = alpha
  if 'randaugment' in numbers:
    number = numbers['randaugment']
    if number is None or not number.isdigit():
      raise _error(name, "'randaugment' needs a whole number after it")
    layers, magnitude = divmod(int(number), 100)
    if int(number) <= 100:
      layers, magnitude = _DEFAULT_LAYERS, int(number)
    if magnitude > _MAX_MAGNITUDE or layers > _MAX_LAYERS:
      raise _error(
        name,
        f"'randaugment_{number}' is {layers} layers of magnitude {magnitude}, "
        f'but there are at most {_MAX_LAYERS} of at most {_MAX_MAGNITUDE}',
      )
    fields |= {'num_layers': layers, 'magnitude': magnitude}
  return Augmentation(
    cutmix='cutmix' in numbers, autoaugment='autoaugment' in numbers, **fields
  )


def gives_uint8(plan: Augmentation, augment_before_mix: bool) -> bool:
  """Returns whether the images that come out are uint8 and not float32.

  RandAugment and AutoAugment give uint8, which CutMix leaves as it is.
  """
  blends_last = augment_before_mix and plan.mixup_alpha is not None
  return plan.alters and not blends_last


def augmenter(
  plan: Augmentation, kwargs: Mapping[str, Any] | None = None
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
  """Returns the function that does RandAugment, AutoAugment or nothing.

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
  kwargs = dict(kwargs or {})
  if not plan.alters:
    return lambda image, seed: image
  if plan.autoaugment:
    function, args = autoaugment.auto_augment, ()
  else:
    function = autoaugment.rand_augment
    args = (plan.num_layers, plan.magnitude)
  known = [
    parameter.name
    for parameter in inspect.signature(function).parameters.values()
    if parameter.kind == parameter.KEYWORD_ONLY
  ]
  unknown = [key for key in kwargs if key not in known]
  if unknown:
    raise ValueError(
      f'There is no augment_kwargs {", ".join(unknown)}; there are '
      f'{", ".join(known)}.'
    )

  def augment(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    image = tf.saturate_cast(image, tf.uint8)
    return function(image, seed, *args, **kwargs)

  return augment


def _is_number(word: str) -> bool:
  return bool(re.fullmatch(r'-?(\d+\.?\d*|\.\d+)', word, re.ASCII))


def _error(name: str, what: str) -> ValueError:
  return ValueError(
    f'In the augmentation {name!r}, {what}. Names join parts by underscores, '
    f'such as {_EXAMPLE}; the parts are mixup_ALPHA (or mixup, which is '
    f'mixup_{_DEFAULT_ALPHA}), cutmix, randaugment_N and autoaugment.'
  )
