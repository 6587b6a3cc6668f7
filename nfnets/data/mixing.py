"""Mixup and CutMix: one image and one mixed label from two.

The target of a mixed image is ratio * onehot(a's label) + (1 - ratio) *
onehot(b's label).
"""

import tensorflow as tf

from nfnets.data.augmentation import Augmentation


def mix(
  a: tf.Tensor,
  b: tf.Tensor,
  plan: Augmentation,
  seed: tf.Tensor,
  use_mixup: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
  """Mixes two images by mixup or by CutMix.

  Args:
    a: float32 or uint8 [h, w, 3].
    b: The same.
    plan: Which of the two there are.
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
  """Blends two images (Zhang et al., arXiv 1710.09412).

  Args:
    a: float32 [h, w, 3].
    b: float32 [h, w, 3].
    alpha: The ratio is drawn from Beta(alpha, alpha).
    seed: int64 [2]; the same seed gives the same ratio.

  Returns:
    ratio * a + (1 - ratio) * b, float32 [h, w, 3], and the ratio, float32 [].
  """
  ratio = mixup_ratio(alpha, seed)
  return ratio * a + (1 - ratio) * b, ratio


def mixup_ratio(alpha: float, seed: tf.Tensor) -> tf.Tensor:
  """Draws from Beta(alpha, alpha).

  Args:
    alpha: Above 0.
    seed: int64 [2].

  Returns:
    float32 [] in [0, 1].
  """
  # x / (x + y) of two draws from Gamma(alpha), which is Gamma(alpha + 1) times
  # U^(1 / alpha). All in logarithms: with a small alpha, x and y are often too
  # small for a float, and their ratio would be 0 / 0.
  gamma = tf.random.stateless_gamma([2], seed, alpha + 1)
  uniform = 1 - tf.random.stateless_uniform([2], tf.random.fold_in(seed, 0))
  x, y = tf.unstack(tf.math.log(gamma) + tf.math.log(uniform) / alpha)
  return tf.sigmoid(x - y)


def cutmix(
  a: tf.Tensor, b: tf.Tensor, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
  """Pastes a box of one image into another (Yun et al., arXiv 1905.04899).

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
  """Draws the box of `cutmix`.

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
