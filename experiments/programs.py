"""Compiled programs, and what lets runs in one process share them.

A program holds what the settings say as constants. With `numbers_as_arguments`
runs that differ in these numbers alone, or in their seed, take the same one.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax

from experiments import command_line, jaxline_compat, step_numbers
from experiments import recipe as recipe_lib
from experiments import step as step_lib

AXIS = jaxline_compat.AXIS
# Names the part of a batch by which hosts tell each other to end.
STOP = 'stop'


class Programs(NamedTuple):
  """What an experiment runs on the devices.

  Attributes:
    init: from (key, weights) to the first train state.
    train_step: `step.make_train_step`, pmapped.
    eval_step: `step.make_eval_step`, pmapped.
  """

  init: Callable[..., step_lib.TrainState]
  train_step: Callable[..., Any]
  eval_step: Callable[..., Any]


def make(built: recipe_lib.Recipe) -> Programs:
  """Returns the programs of a recipe, of which nothing is compiled yet."""
  config = built.config
  train_step = step_lib.make_train_step(
    built.model, built.optimizer, built.schedule, config, AXIS
  )
  return Programs(
    init=jax.jit(init_function(built)),
    train_step=jax.pmap(
      _with_stop(train_step),
      axis_name=AXIS,
      donate_argnums=0,
      out_axes=(0, None),
    ),
    eval_step=jax.pmap(
      step_lib.make_eval_step(built.model, config, AXIS),
      axis_name=AXIS,
      out_axes=None,
    ),
  )


def init_function(built: recipe_lib.Recipe) -> Callable[..., Any]:
  """Returns what makes the first train state, to be traced or compiled."""
  return functools.partial(
    step_lib.init_train_state,
    built.model,
    built.optimizer,
    built.config.use_ema,
  )


class Shared:
  """Programs that runs in this process take from one another."""

  def __init__(self):
    self._programs: dict[Any, Programs] = {}

  def __call__(self, built: recipe_lib.Recipe) -> Programs:
    """As `make`, but returns those of an earlier recipe where they fit."""
    key = _what_is_compiled(built)
    if key not in self._programs:
      self._programs[key] = make(built)
    return self._programs[key]


def _what_is_compiled(built: recipe_lib.Recipe) -> Any:
  """Returns what two recipes with the same programs have in common."""
  settings = dict(command_line.leaves(built.config))
  if built.config.numbers_as_arguments:
    for name in step_numbers.of(built.config):
      settings.pop(step_numbers.SETTINGS[name])
    # Which the rate of the last layer is divided by.
    if built.config.lr_head:
      settings['lr'] = built.config.lr
  # Values may be lists.
  return repr(sorted(settings.items())), built.num_examples


def _with_stop(train_step):
  """Has the devices of all hosts agree on whether one of them shall end."""

  def step(train_state, batch, rng):
    batch = dict(batch)
    stop = batch.pop(STOP, None)
    train_state, metrics = train_step(train_state, batch, rng)
    if stop is not None:
      metrics[STOP] = jax.lax.pmax(stop, AXIS)
    return train_state, metrics

  return step
