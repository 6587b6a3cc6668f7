"""Differentially private training: its noise, and what it tells of an example.

Abadi et al. (arXiv 1607.00133), and De et al. (arXiv 2204.13650): the gradient
of each example is clipped to a norm, and Gaussian noise is added to their sum.
What the numbers assume is in docs/private.md.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax

from nfnets.data import augmentation

# Of losses of privacy; reckoned upwards, so that epsilon is a bound. A tenth of
# it makes epsilon 0.3 % lower over 70,000 updates, and takes ten times as long.
_RESOLUTION = 1e-3
# With less, epsilon is in the thousands, and takes gigabytes to reckon.
_LEAST_NOISE = 0.1


class NoiseState(NamedTuple):
  """State of `add_noise`.

  Attributes:
    noise_key: uint32 data of the key of all updates, here so that runs which
      differ in it share a compiled program.
    updates_noised: int32 scalar, the number of updates.
  """

  noise_key: jax.Array
  updates_noised: jax.Array


@dataclasses.dataclass(frozen=True)
class Privacy:
  """What private training tells about an example, by the number of updates.

  Attributes:
    noise_multiplier: standard deviation of the noise in the sum of a batch's
      clipped gradients, in units of the norm that they are clipped to.
    delta: the probability that epsilon's bound may fail by.
    budget: the largest epsilon; infinite for none.
    clipping: the norm that examples' gradients are clipped to.
    batch_size: examples of an update, over all devices.
    num_examples: of an epoch.
  """

  noise_multiplier: float
  delta: float
  budget: float
  clipping: float
  batch_size: int
  num_examples: int

  def epsilon(self, steps: int) -> float:
    """Returns epsilon after so many updates, for Poisson-sampled batches.

    Raises:
      ValueError: if the package that reckons it is not installed.
    """
    sampling = self.batch_size / self.num_examples
    return _epsilon(self.noise_multiplier, sampling, self.delta, steps)

  def epsilon_of_any_order(self, steps: int) -> float:
    """Returns epsilon whatever the order in which epochs are gone through.

    An example is in one batch of each epoch, so that its gradients are a
    composition of so many Gaussian mechanisms. Where a batch lies over the end
    of an epoch, it may hold an example twice, and counts as four.
    """
    from dp_accounting import gaussian_mechanism

    if not steps:
      return 0.0
    epochs = math.ceil(steps * self.batch_size / self.num_examples)
    squares = epochs + 2 * self._count_doubles(epochs)
    sigma = self.noise_multiplier / math.sqrt(squares)
    return float(gaussian_mechanism.get_epsilon_gaussian(sigma, self.delta))

  def _count_doubles(self, epochs: int) -> int:
    """Returns how many batches may hold an example twice."""
    number, last = 0, 0
    for epoch in range(1, epochs):
      # Each place in an epoch is either in its first batch or in its last.
      if epoch * self.num_examples % self.batch_size and last != epoch - 1:
        number, last = number + 1, epoch
    return number

  def last_step(self, most: int) -> int:
    """Returns how many updates the budget allows, up to `most`."""
    if self._is_within(most):
      return most
    low, high = 0, most  # Too few, or just right; too many.
    while high - low > 1:
      middle = (low + high) // 2
      if self._is_within(middle):
        low = middle
      else:
        high = middle
    return low

  def _is_within(self, steps: int) -> bool:
    epsilon = self.epsilon(steps)
    return epsilon <= self.budget and math.isfinite(epsilon)

  def noise(self, seed: int) -> optax.GradientTransformation:
    """Returns what adds the noise to the mean over a batch."""
    deviation = self.noise_multiplier * self.clipping / self.batch_size
    return add_noise(deviation, jax.random.key(seed))

  def facts(self, steps: int) -> dict[str, float]:
    """Returns what the weights after so many updates may be said to keep."""
    return {
      'epsilon': self.epsilon(steps),
      'epsilon_of_any_order': self.epsilon_of_any_order(steps),
      'delta': self.delta,
      'noise_multiplier': self.noise_multiplier,
      'clipping': self.clipping,
      'batch_size': self.batch_size,
      'num_examples': self.num_examples,
      'steps': steps,
    }


@functools.lru_cache(maxsize=1)
def _loss_of_one_update(noise_multiplier: float, sampling: float):
  try:
    from dp_accounting.pld import privacy_loss_distribution
  except ModuleNotFoundError as error:
    raise ValueError(
      'private: dp-accounting is not installed, which reckons epsilon; '
      'pip install ".[private]" in the folder of this project.'
    ) from error
  return privacy_loss_distribution.from_gaussian_mechanism(
    noise_multiplier,
    sampling_prob=sampling,
    value_discretization_interval=_RESOLUTION,
    use_connect_dots=True,
  )


@functools.lru_cache(maxsize=16)
def _epsilon(
  noise_multiplier: float, sampling: float, delta: float, steps: int
) -> float:
  one = _loss_of_one_update(noise_multiplier, sampling)
  if not steps:
    return 0.0
  return float(one.self_compose(steps).get_epsilon_for_delta(delta))


def make(
  config: ml_collections.ConfigDict, num_examples: int
) -> Privacy | None:
  """Returns what `config.private` asks for; None if that is nothing.

  Args:
    config: the experiment's.
    num_examples: of an epoch.

  Raises:
    ValueError: for settings with which training is not private.
  """
  private = config.private
  if not private.noise_multiplier and not private.epsilon:
    return None
  for key in ('noise_multiplier', 'epsilon'):
    if not private[key] > 0:
      raise ValueError(
        f'private.{key} is {private[key]}; it must be positive, as without '
        'noise or a budget (inf is a large one) nothing is private. Both 0 is '
        'training that is not meant to be.'
      )
  if private.noise_multiplier < _LEAST_NOISE:
    raise ValueError(
      f'private.noise_multiplier is {private.noise_multiplier}; with less than '
      f'{_LEAST_NOISE} nothing is private.'
    )
  if not 0 < private.delta < 2 / num_examples:  # De et al. have 1.02 / N.
    raise ValueError(
      f'private.delta is {private.delta}; it must be above 0 and no more than '
      f'about 1 / {num_examples}, one example of those that there are.'
    )
  if config.clip_per_example != 'norm':
    raise ValueError(
      f'private: clip_per_example is {config.clip_per_example!r}; the noise is '
      "for gradients that are clipped by their norm, 'norm'."
    )
  if config.train_batch_size > num_examples:
    raise ValueError(
      f'private: train_batch_size is {config.train_batch_size}, more than the '
      f'{num_examples} examples that there are.'
    )
  if augmentation.parse(config.augment_name).mixes:
    raise ValueError(
      f'private: augment_name is {config.augment_name!r}, which mixes images, '
      'so that a gradient would tell of two.'
    )
  for key, why in (
    ('skip_nonfinite', 'what is left out would tell of the examples'),
    ('skip_corrupt', 'others would be seen in the place of those left out'),
  ):
    if config[key]:
      raise ValueError(f'private: {key} is True, and {why}.')
  return Privacy(
    private.noise_multiplier,
    private.delta,
    private.epsilon,
    config.per_example.clipping,
    config.train_batch_size,
    num_examples,
  )


def add_noise(
  standard_deviation: float, key: jax.Array
) -> optax.GradientTransformation:
  """Adds Gaussian noise that follows from a key and the number of updates.

  So that all devices add the same, once to the mean over all of them, and a run
  that goes on adds what it would have added. The noise is that of
  `optax.add_noise`, whose own state is no array that a checkpoint can hold.
  `optax.contrib.differentially_private_aggregate` adds it to the
  gradients of all examples, which are never in one place here.

  Args:
    standard_deviation: of the noise in each number.
    key: a typed key, of all updates.
  """

  def init_fn(params):
    del params
    return NoiseState(jax.random.key_data(key), jnp.zeros((), jnp.int32))

  def update_fn(updates, state, params=None):
    key_now = jax.random.fold_in(
      jax.random.wrap_key_data(state.noise_key), state.updates_noised
    )
    noise = optax.add_noise(standard_deviation**2, 0.0, key_now)
    updates, _ = noise.update(updates, noise.init(params))
    return updates, NoiseState(state.noise_key, state.updates_noised + 1)

  return optax.GradientTransformation(init_fn, update_fn)


def plan(
  config: Any,
  privacy: Privacy | None,
  begun: dict[str, Any] | None,
  steps_made: int,
) -> None:
  """Has training end where its budget is spent.

  Args:
    config: JAXline's; `training_steps` is changed.
    privacy: what the run keeps now.
    begun: what is in run.json of a run to go on with; None if there is none.
    steps_made: of that run.

  Raises:
    ValueError: if nothing is left of the budget, or what was spent is unknown.
  """
  if steps_made:
    _check_same(privacy, (begun or {}).get('privacy'))
  if privacy is None:
    return
  last = privacy.last_step(config.training_steps)
  if last < max(steps_made, 1):
    spent = privacy.epsilon(max(steps_made, 1))
    made = f'the {steps_made} made so far' if steps_made else 'the first'
    raise ValueError(
      f'private.epsilon is {privacy.budget}, and after {made} it is '
      f'{spent:.4g}: a larger budget or delta, more noise or smaller batches '
      'are needed.'
    )
  config.training_steps = last


def _check_same(privacy: Privacy | None, begun: dict[str, Any] | None) -> None:
  """Raises ValueError unless the updates made are of the same kind."""
  keys = ('noise_multiplier', 'batch_size', 'num_examples')
  now = privacy and {key: getattr(privacy, key) for key in keys}
  before = begun and {key: begun.get(key) for key in keys}
  if now != before:
    raise ValueError(
      f'private: the run in this folder has begun with {_describe(before)}, '
      f'and now there is {_describe(now)}; epsilon is reckoned for all of its '
      'updates alike. Go on as it began, or choose another --checkpoint_dir.'
    )


def _describe(facts: dict[str, Any] | None) -> str:
  if not facts:
    return 'no noise'
  return (
    f'a noise multiplier of {facts["noise_multiplier"]} and batches of '
    f'{facts["batch_size"]} of {facts["num_examples"]} examples'
  )
