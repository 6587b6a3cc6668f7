"""Where in an image a network found what speaks for a class."""

from collections.abc import Callable
import functools

import haiku as hk
import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np

from nfnets import zoo

_SMALLEST_SIDE = 7  # A map with less says little about where.


class Attention:
  """Maps of what speaks for a class, by gradients of its logit."""

  def __init__(self, model: zoo.Model, params: hk.Params, state: hk.State):
    """Nothing is computed yet.

    Args:
      model: a network with a last layer.
      params: its parameters.
      state: its state.
    """
    self._model = model
    self._params, self._state = jax.tree.map(jnp.asarray, (params, state))
    self._cams: dict[int, Callable[..., jax.Array]] = {}

  def grad_cam(self, maps: np.ndarray, stage: int, label: int) -> np.ndarray:
    """Returns Grad-CAM (arXiv 1610.02391) of one of the five maps.

    The map's channels are added up, each times the mean over all positions of
    the logit's derivative by it; what is negative becomes 0.

    Args:
      maps: float32 [1, h, w, c], of an image of the model's test size.
      stage: which of `Model.features` that is, from 0 on.
      label: the class.

    Returns:
      float32 [h, w], of at least 0, in units of the logit.
    """
    if stage not in self._cams:
      self._cams[stage] = jax.jit(
        functools.partial(_grad_cam, self._logits_after(stage))
      )
    cam = self._cams[stage]
    return np.asarray(cam(maps, self._params, self._state, label))

  def input_gradient(self, image: np.ndarray, label: int) -> np.ndarray:
    """Returns how strongly the logit changes with each pixel.

    Args:
      image: float32 [N, N, 3], normalized.
      label: the class.

    Returns:
      float32 [N, N], the length of the derivative by a pixel's three values.
    """
    return np.asarray(
      self._gradient(image[None], self._params, self._state, label)
    )

  @functools.cached_property
  def _gradient(self) -> Callable[..., jax.Array]:
    def logit(images, params, state, label):
      return self._forward(params, state, images)['logits'][0, label]

    def length(*args):
      return jnp.linalg.norm(jax.grad(logit)(*args)[0], axis=-1)

    return jax.jit(length)

  def _forward(self, params, state, images):
    out, _ = self._model.apply(params, state, None, images, is_training=False)
    return {key: out[key] for key in ('features', 'logits')}

  @functools.cached_property
  def _program(self) -> core.ClosedJaxpr:
    """The network as JAX has traced it: ..., images -> five maps, logits."""
    side = self._model.test_size
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.make_jaxpr(self._forward)(self._params, self._state, images)

  def _logits_after(self, stage: int) -> Callable[..., jax.Array]:
    """Returns the rest of a network: (map, params, state) -> logits [K].

    It is the traced program with the map as one more input, in the place of the
    operation that makes it. The networks need not know, and XLA compiles only
    what comes after the map.
    """
    program = self._program.jaxpr
    given = program.outvars[stage]
    rest = program.replace(
      invars=[given, *program.invars],
      outvars=program.outvars[-1:],
      eqns=[x for x in program.eqns if given not in x.outvars],
    )
    run = core.jaxpr_as_fun(core.ClosedJaxpr(rest, self._program.consts))
    images = self._program.in_avals[-1]

    def logits(maps, params, state):
      leaves = jax.tree.leaves((params, state))
      unused = jnp.zeros(images.shape, images.dtype)
      return run(maps, *leaves, unused)[0][0]

    return logits


def _grad_cam(
  logits: Callable[..., jax.Array],
  maps: jax.Array,
  params: hk.Params,
  state: hk.State,
  label: jax.Array,
) -> jax.Array:
  slopes = jax.grad(lambda x: logits(x, params, state)[label])(maps)
  weights = slopes.mean(axis=(1, 2), keepdims=True)
  return jax.nn.relu((weights * maps).sum(axis=-1))[0]


def best_stage(image_size: int) -> int:
  """Returns the deepest of the five maps that still says where something is.

  Args:
    image_size: side of the images, in pixels.
  """
  sides = [image_size // 2 ** (stage + 1) for stage in range(5)]
  return max((i for i, x in enumerate(sides) if x >= _SMALLEST_SIDE), default=0)
