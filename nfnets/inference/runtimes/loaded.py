"""A model whose outputs another runtime computes, for its own parameters."""

import dataclasses
from typing import Any

import jax
import numpy as np

from nfnets import zoo


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedModel(zoo.Model):
  """A model of `nfnets.load` with another runtime than JAX.

  `logits`, `features` and `embed` run on it, for the parameters and the state
  that it was loaded with, and return NumPy arrays. The rest, such as `apply`,
  is the model's in JAX.
  """

  runner: Any = dataclasses.field(default=None, repr=False)
  leaves: tuple[np.ndarray, ...] = dataclasses.field(default=(), repr=False)

  def _output(
    self, key: str, params: Any, images: Any, state: Any | None
  ) -> Any:
    given = jax.tree.leaves((params, state or {}))
    own = self.leaves
    if state is None:  # It belongs to the parameters anyhow.
      own = own[: len(given)]
    if len(given) != len(own) or any(
      a is not b for a, b in zip(given, own, strict=True)
    ):
      raise ValueError(
        f'This {self.name} was loaded to run on {self.runner.runtime}, which '
        'it does for the parameters that nfnets.load returned with it, as they '
        "are. nfnets.load(..., runtime='jax') gives one for any parameters."
      )
    if isinstance(images, jax.core.Tracer):
      raise ValueError(
        f'This {self.name} runs on {self.runner.runtime}, which JAX cannot '
        "trace. nfnets.load(..., runtime='jax') gives one that it can."
      )
    return self.runner.run(key, images)


def connect(
  model: zoo.Model, params: Any, state: Any, runner: Any
) -> LoadedModel:
  """Returns the model as one that a runner runs.

  Args:
    model: the model.
    params: its parameters, of NumPy, which can no longer be written to.
    state: its state, likewise.
    runner: see `nfnets.inference.runtimes`; of these very numbers.
  """
  leaves = tuple(jax.tree.leaves((params, state)))
  for leaf in leaves:
    leaf.flags.writeable = False
  fields = {
    field.name: getattr(model, field.name)
    for field in dataclasses.fields(zoo.Model)
  }
  return LoadedModel(**fields, runner=runner, leaves=leaves)
