"""ResNets with BatchNorm, the baseline that the other networks do without.

He et al., "Identity Mappings in Deep Residual Networks" (arXiv 1603.05027), the
pre-activation v2, and "Deep Residual Learning for Image Recognition" (arXiv
1512.03385), v1. Both have their strides in the 3x3 convolutions.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from nfnets import base, flops

# Haiku's normalizations, and those of their arguments that have no default.
_NORMS: dict[str, dict[str, Any]] = {
  'BatchNorm': {'decay_rate': 0.9},
  'GroupNorm': {},
  'InstanceNorm': {},
  'LayerNorm': {'axis': -1},
}
_PMAPPED = ('cross_replica_axis', 'cross_replica_axis_index_groups')


class ResNet(hk.Module):
  """ResNet v2, or v1."""

  variant_dict = base.resnet_params

  def __init__(
    self,
    width: int,
    num_classes: int,
    variant: str = 'ResNet50',
    which_norm: str = 'BatchNorm',
    norm_kwargs: Mapping[str, Any] | None = None,
    activation: str = 'relu',
    drop_rate: float = 0.0,
    fc_init: hk.initializers.Initializer = jnp.zeros,
    conv_kwargs: Mapping[str, Any] | None = None,
    preactivation: bool = True,
    use_se: bool = False,
    se_ratio: float = 0.25,
    name: str = 'ResNet',
    remat: bool | int = False,
  ):
    """Builds the modules.

    Args:
      width: multiplies the widths 64, 128, 256, 512 of the stages; 4 for the
        published networks.
      num_classes: size of the logits; 0 leaves out the last layer, and them.
      variant: a key of `variant_dict`.
      which_norm: BatchNorm, GroupNorm, InstanceNorm or LayerNorm (over
        channels), of Haiku.
      norm_kwargs: arguments of that class. It gets a scale and an offset, and
        BatchNorm a `decay_rate` of 0.9, unless they say otherwise. Under
        `jax.pmap`, BatchNorm takes its statistics from all devices where
        `cross_replica_axis` names the mapped axis, else from each alone.
      activation: a key of `base.unscaled_nonlinearities`.
      drop_rate: dropout before the last layer.
      fc_init: initializer of the last layer's kernel.
      conv_kwargs: arguments of `base.Conv2D`, such as `w_init`.
      preactivation: whether this is v2; else v1.
      use_se: whether blocks end with squeeze and excite.
      se_ratio: its hidden channels, as a part of its input.
      name: of the module.
      remat: how many of the first blocks the backward pass computes again,
        instead of keeping what they computed, or True for all: less memory,
        more time.

    Raises:
      ValueError: for an unknown variant, normalization or activation.
    """
    super().__init__(name=name)
    params = base.get_variant(self.variant_dict, variant)
    self.variant = variant
    self.remat = base.count_remat(remat)
    self.activation = base.get_nonlinearity(activation, scaled=False)
    self.width_pattern = [int(w * width) for w in (64, 128, 256, 512)]
    self.depth_pattern = params['depth']
    self.drop_rate = drop_rate
    self.preactivation = preactivation
    which_norm = _norm(which_norm, norm_kwargs or {})
    which_conv = functools.partial(
      base.Conv2D, **{'with_bias': False, **(conv_kwargs or {})}
    )

    in_ch = int(16 * width)
    self.initial_conv = which_conv(in_ch, 7, stride=2, name='initial_conv')
    if not preactivation:
      self.initial_bn = which_norm(name='initial_bn')

    self.stages = []
    for out_ch, depth, stride in zip(
      self.width_pattern, self.depth_pattern, (1, 2, 2, 2), strict=True
    ):
      blocks = []
      for block_index in range(depth):
        which_block = ResBlockV2 if preactivation else ResBlockV1
        blocks.append(
          which_block(
            in_ch,
            out_ch,
            stride=stride if block_index == 0 else 1,
            activation=self.activation,
            which_norm=which_norm,
            which_conv=which_conv,
            use_se=use_se,
            se_ratio=se_ratio,
          )
        )
        in_ch = out_ch
      self.stages.append(blocks)

    if preactivation:
      self.final_bn = which_norm(name='final_bn')
    self.fc = None
    if num_classes:
      self.fc = hk.Linear(num_classes, w_init=fc_init, name='linear')

  def __call__(
    self,
    x: jax.Array,
    is_training: bool = True,
    return_metrics: bool = False,
  ) -> dict[str, jax.Array]:
    """Computes logits, and what lies before them.

    Args:
      x: normalized images [B, H, W, 3].
      is_training: whether dropout acts, and BatchNorm takes the statistics of
        this batch into its averages, which it otherwise uses.
      return_metrics: whether to add the signal metrics.

    Returns:
      `logits` [B, num_classes]; `pool` [B, C], before dropout; `features`, the
      five maps at strides 2, 4, 8, 16 and 32, before the next normalization in
      v2 and after the activation in v1; with `return_metrics`, scalars
      `avg_sq_mean_{i}` and `avg_var_{i}`, where i = 0 is the stem after pooling
      and i + 1 block i, and `res_avg_var_{i}`, the variance of block i's
      residual branch.
    """
    out = self.initial_conv(x)
    if not self.preactivation:
      out = self.activation(_normalize(self.initial_bn, out, is_training))
    features = [out]
    out = hk.max_pool(out, (1, 3, 3, 1), (1, 2, 2, 1), 'SAME')
    metrics = base.signal_metrics(out, 0) if return_metrics else {}

    index = 0
    for blocks in self.stages:
      for block in blocks:
        out, branch = base.call_block(
          block, out, is_training, remat=index < self.remat
        )
        if return_metrics:
          metrics[f'res_avg_var_{index}'] = base.channel_variance(branch)
          metrics.update(base.signal_metrics(out, index + 1))
        index += 1
      features.append(out)

    if self.preactivation:
      out = self.activation(_normalize(self.final_bn, out, is_training))
    pool = jnp.mean(out, axis=(1, 2))
    out = pool
    if is_training and self.drop_rate > 0:
      out = hk.dropout(hk.next_rng_key(), self.drop_rate, out)
    outputs = {'pool': pool, 'features': features}
    if self.fc is not None:
      outputs['logits'] = self.fc(out)
    return {**outputs, **metrics}

  def count_flops(self, h: int, w: int) -> tuple[list[int], int]:
    """Returns the multiply-adds for one image [h, w]: per part, and in all."""
    return flops.count_flops(
      h, w, [self.initial_conv], self.stages, None, self.fc, max_pool=True
    )


def _norm(
  which_norm: str, kwargs: Mapping[str, Any]
) -> Callable[..., hk.Module]:
  """Returns the class of a normalization, with its arguments."""
  if which_norm not in _NORMS:
    raise ValueError(
      f'No normalization {which_norm!r}; there are {", ".join(_NORMS)}.'
    )
  if hk.running_init():  # Which is outside of pmap, where no axis has a name.
    kwargs = {k: v for k, v in kwargs.items() if k not in _PMAPPED}
  defaults = {'create_scale': True, 'create_offset': True, **_NORMS[which_norm]}
  return functools.partial(getattr(hk, which_norm), **{**defaults, **kwargs})


def _normalize(norm: hk.Module, x: jax.Array, is_training: bool) -> jax.Array:
  """Applies a normalization in float32 at least, as its averages are."""
  args = (is_training,) if isinstance(norm, hk.BatchNorm) else ()
  if hk.running_init():
    # Averages of zero, and one for the variance, whatever the images are: no
    # forward pass is needed to know them.
    ones = jnp.ones_like(x[:1, :1, :1])
    norm(jnp.concatenate([ones, -ones]), *args)
    return x
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  return norm(x.astype(dtype), *args).astype(x.dtype)


class ResBlockV2(hk.Module):
  """Pre-activation bottleneck block: 1x1, 3x3, 1x1."""

  def __init__(
    self,
    in_ch: int,
    out_ch: int,
    which_norm: Callable[..., hk.Module],
    which_conv: Callable[..., base.Conv2D],
    bottleneck_ratio: float = 0.25,
    stride: int = 1,
    activation: base.Activation = base.unscaled_nonlinearities['relu'],
    use_se: bool = False,
    se_ratio: float = 0.25,
    name: str | None = None,
  ):
    super().__init__(name=name)
    self.in_ch, self.out_ch = in_ch, out_ch
    self.stride = stride
    self.activation = activation
    self.which_norm = which_norm
    self.width = int(out_ch * bottleneck_ratio)

    self.bn0 = which_norm(name='bn0')
    self.conv0 = which_conv(self.width, 1, name='conv0')
    self.bn1 = which_norm(name='bn1')
    self.conv1 = which_conv(self.width, 3, stride=stride, name='conv1')
    self.bn2 = which_norm(name='bn2')
    self.conv2 = which_conv(out_ch, 1, name='conv2')
    self.conv_shortcut = None
    if stride > 1 or in_ch != out_ch:
      self.conv_shortcut = which_conv(
        out_ch, 1, stride=stride, name='conv_shortcut'
      )
    self.se = base.SqueezeExcite(out_ch, out_ch, se_ratio) if use_se else None

  def __call__(
    self, x: jax.Array, is_training: bool
  ) -> tuple[jax.Array, jax.Array]:
    """Returns the output and the residual branch, [B, H', W', out_ch]."""
    out = self.activation(_normalize(self.bn0, x, is_training))
    shortcut = x
    if self.conv_shortcut is not None:
      shortcut = self.conv_shortcut(out)

    out = self.conv0(out)
    out = self.activation(_normalize(self.bn1, out, is_training))
    out = self.conv1(out)
    out = self.activation(_normalize(self.bn2, out, is_training))
    out = self.conv2(out)
    branch = out if self.se is None else self.se(out) * out
    return shortcut + branch, branch


class ResBlockV1(ResBlockV2):
  """Post-activation block of the same parts."""

  def __call__(
    self, x: jax.Array, is_training: bool
  ) -> tuple[jax.Array, jax.Array]:
    """Returns the output and the residual branch, [B, H', W', out_ch]."""
    shortcut = x
    if self.conv_shortcut is not None:
      # Made here and not in __init__, which gives it its published name.
      norm = self.which_norm(name='shortcut_bn')
      shortcut = _normalize(norm, self.conv_shortcut(x), is_training)

    out = self.conv0(x)
    out = self.activation(_normalize(self.bn0, out, is_training))
    out = self.conv1(out)
    out = self.activation(_normalize(self.bn1, out, is_training))
    out = self.conv2(out)
    out = _normalize(self.bn2, out, is_training)
    branch = out if self.se is None else self.se(out) * out
    return self.activation(shortcut + branch), branch
