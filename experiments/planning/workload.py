"""The work of a device in a planned run: one update, one evaluation step."""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import ml_collections

from experiments import recipe
from experiments import step as step_lib
from nfnets.data import augmentation
from nfnets.errors import UserError

# The axis of the devices.
AXIS = 'i'
# The paper's batch per device.
_BATCH = 32
# The number of training images, so that planning does not need the dataset.
_IMAGENET, _IMAGENET_EXAMPLES = 'imagenet2012', 1_281_167


@dataclasses.dataclass(frozen=True)
class StepSpec:
  """The program of one device.

  Attributes:
    function: a function that reduces over the axis `AXIS`. All devices have the
      same results.
    arguments: trees of ShapeDtypeStructs of one device.
    split: for each argument, whether it is a part of a batch.
    donated: indices of the donated arguments.
  """

  function: Callable[..., Any]
  arguments: tuple[Any, ...]
  split: tuple[bool, ...]
  donated: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Workload:
  """A recipe on a number of devices.

  Attributes:
    recipe: the recipe.
    state: the train state, as ShapeDtypeStructs.
    devices: number of devices.
    batch: images per device in an update.
    eval_batch: images per device in an evaluation step.
    num_steps: updates of the run.
    depths: number of blocks of each stage.
    macs: multiply-adds of the forward pass for one training image.
    bytes: bytes of `parameters`, `optimizer`, `averages` and of one device's
      `batch`.
  """

  recipe: recipe.Recipe
  state: step_lib.TrainState
  devices: int
  batch: int
  eval_batch: int
  num_steps: int
  depths: tuple[int, ...]
  macs: int
  bytes: dict[str, int]

  @property
  def flops_per_image(self) -> float:
    """Operations of an update per image; a multiply-add counts as two.

    The backward pass counts as two forward passes. SAM's ascent adds both for a
    part of the images. Recomputation does not count.
    """
    config = self.recipe.config
    ascent = config.sam_fraction if config.sam_rho else 0
    copies = config.augmentation_multiplicity
    return 6 * self.macs * copies * (1 + ascent)

  @functools.cached_property
  def activations(self) -> int:
    """Bytes that the forward pass stores for the backward pass.

    This is JAX's program, standardized kernels included. The compiler may
    recompute values or pad arrays. With gradient accumulation, this is for one
    part of the batch.
    """
    model, config = self.recipe.model, self.recipe.config
    dtype = jnp.bfloat16 if config.bfloat16 else jnp.float32
    side = config.image_size
    rows = self.batch * config.augmentation_multiplicity
    images = jax.ShapeDtypeStruct(
      (rows // config.accumulate_steps, side, side, 3), dtype
    )
    params = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, dtype), self.state.params
    )

    def backward(params, state, images, rng):
      def logits(params):
        out, _ = model.apply(params, state, rng, images, is_training=True)
        return out['logits']

      return jax.vjp(logits, params)[1]

    kept = jax.eval_shape(backward, params, self.state.state, images, _key())
    return num_bytes(kept) - num_bytes(params)

  def update(self) -> StepSpec:
    """Return one training update. It donates the train state."""
    config = self.recipe.config
    step = step_lib.make_train_step(
      self.recipe.model,
      self.recipe.optimizer,
      self.recipe.schedule,
      config,
      AXIS,
    )
    batch = _train_batch(config, self.batch)
    return StepSpec(
      step, (self.state, batch, _key()), (False, True, False), (0,)
    )

  def evaluation(self) -> StepSpec:
    """Return one step of evaluation."""
    config = self.recipe.config
    step = step_lib.make_eval_step(self.recipe.model, config, AXIS)
    size = self.eval_batch
    batch = _batch(config, size, config.eval_image_size, jnp.float32)
    batch['mask'] = jax.ShapeDtypeStruct((size,), jnp.float32)
    return StepSpec(
      step, (self.state.params, self.state.state, batch), (False, False, True)
    )


def build(
  config: ml_collections.ConfigDict, devices: int | None, batch: int | None
) -> Workload:
  """Build the work of a recipe.

  Args:
    config: JAXline's config. Its experiment is changed.
    devices: number of devices. None: train_batch_size / batch.
    batch: images per device in an update. None: train_batch_size / devices, or
      the paper's 32 if both are None. With both, `train_batch_size` is their
      product.

  Raises:
    UserError: if settings are wrong or do not fit together, or the dataset
      cannot be used.
  """
  ours = config.experiment_kwargs.config
  devices, batch = _shares(ours, devices, batch)
  is_imagenet = ours.which_dataset.partition(':')[0] == _IMAGENET
  if is_imagenet:
    ours.fake_data = True
    # They change no time or memory.
    ours.class_weights, ours.balance_classes = None, False
    ours.num_classes = ours.num_classes or 1000
  built = recipe.build(
    ours, jax.random.PRNGKey(0), devices, config.training_steps
  )
  if is_imagenet:
    built = dataclasses.replace(built, num_examples=_IMAGENET_EXAMPLES)
  state = jax.eval_shape(
    lambda rng: step_lib.init_train_state(
      built.model, built.optimizer, ours.use_ema, rng
    ),
    _key(),
  )
  depths, macs = _count(built)
  return Workload(
    recipe=built,
    state=state,
    devices=devices,
    batch=batch,
    eval_batch=math.ceil(ours.eval_batch_size / devices),
    num_steps=config.training_steps or built.num_steps,
    depths=tuple(d for d in depths if d),
    macs=macs,
    bytes={
      'parameters': num_bytes((state.params, state.state)),
      'optimizer': num_bytes(state.opt_state),
      'averages': num_bytes((state.ema_params, state.ema_state)),
      'batch': num_bytes(_train_batch(ours, batch)),
    },
  )


def num_bytes(tree: Any) -> int:
  """Return the number of bytes of all arrays in a tree."""
  return sum(
    math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )


def _shares(ours, devices: int | None, batch: int | None) -> tuple[int, int]:
  """Return the number of devices and the images per device in an update."""
  total = ours.train_batch_size
  if devices and batch:
    ours.train_batch_size = devices * batch
    return devices, batch
  if not devices and not batch:
    batch = min(_BATCH, total)
  whole, given = ('devices', devices) if devices else ('batch', batch)
  if total % given:
    raise UserError(
      f'train_batch_size is {total}, which --{whole}={given} does not divide; '
      'give both --devices and --batch for another size.',
      2,
    )
  return (devices, total // devices) if devices else (total // batch, batch)


def _train_batch(ours, size: int) -> dict[str, jax.ShapeDtypeStruct]:
  """Return the shapes of a batch of `nfnets.data.dataset.train_batches`."""
  size *= ours.augmentation_multiplicity
  plan = augmentation.parse(ours.augment_name)
  is_uint8 = augmentation.gives_uint8(plan, ours.augment_before_mix)
  dtype = jnp.uint8 if is_uint8 else jnp.float32
  batch = _batch(ours, size, ours.image_size, dtype)
  if plan.mixes:
    batch['mix_labels'] = batch['labels']
    batch['ratio'] = jax.ShapeDtypeStruct((size,), jnp.float32)
  return batch


def _batch(ours, size: int, side: int, dtype):
  shape = (side, side, 3, size) if ours.transpose else (size, side, side, 3)
  return {
    'images': jax.ShapeDtypeStruct(shape, dtype),
    'labels': jax.ShapeDtypeStruct((size,), jnp.int32),
  }


def _key() -> jax.ShapeDtypeStruct:
  return jax.eval_shape(lambda: jax.random.PRNGKey(0))


def _count(built: recipe.Recipe) -> tuple[list[int], int]:
  """Return the depths of the stages, and the multiply-adds of an image."""
  model, side = built.model, built.config.image_size

  def count():
    network = model.entry.module(
      **{
        **model.entry.kwargs,
        'num_classes': model.num_classes,
        **model.overrides,
      }
    )
    return network.depth_pattern, network.count_flops(side, side)[1]

  return hk.transform(count).apply({}, None)
