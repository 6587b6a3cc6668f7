"""Differentially private training: noise, sampling and privacy accounting.

Abadi et al. (arXiv 1607.00133) and De et al. (arXiv 2204.13650). Batches are
Poisson samples, per-example gradients are clipped by their norm, and the sum
gets Gaussian noise. See docs/private.md.
"""

import bisect
import dataclasses
import functools
import math
from typing import Any, NamedTuple

from absl import logging
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from nfnets.data import augmentation
from nfnets.data.batches import Poisson
from nfnets.errors import UserError

# Resolution of the privacy losses, which are rounded up: epsilon is a bound. A
# tenth of it makes epsilon 0.3 % lower over 70,000 updates and takes ten times
# as long.
_RESOLUTION = 1e-3
# With less noise, epsilon is in the thousands and needs gigabytes to compute.
_LEAST_NOISE = 0.1
# Maximum batch size: the mean plus this many standard deviations. The analysis
# includes the truncation.
_DEVIATIONS = 5


class NoiseState(NamedTuple):
  """State of `Privacy.noise`.

  Attributes:
    secret_key: uint32 [4], two words for the noise and two for the sampling.
      Only checkpoints store it.
    updates_noised: int32 scalar, number of updates.
  """

  secret_key: jax.Array
  updates_noised: jax.Array


@dataclasses.dataclass(frozen=True)
class Privacy:
  """The mechanism of private training.

  Attributes:
    noise_multiplier: standard deviation of the noise in the sum of the clipped
      gradients / clipping.
    delta: the delta of (epsilon, delta)-privacy.
    budget: maximum epsilon. Infinity: no limit.
    clipping: norm to which per-example gradients are clipped.
    batch_size: expected number of examples per update, over all devices.
    num_examples: number of examples per epoch.
    key: seed of noise and sampling, for tests. None: a secret random key.
  """

  noise_multiplier: float
  delta: float
  budget: float
  clipping: float
  batch_size: int
  num_examples: int
  key: int | None = None

  @property
  def probability(self) -> float:
    """Sampling probability of each example."""
    return self.batch_size / self.num_examples

  @property
  def largest_batch(self) -> int:
    """Maximum number of examples in a batch."""
    deviation = math.sqrt(self.batch_size * (1 - self.probability))
    room = math.ceil(_DEVIATIONS * deviation)
    return min(self.batch_size + room, self.num_examples)

  def epsilon(self, steps: int) -> float:
    """Return epsilon after a number of updates.

    Raises:
      UserError: if dp-accounting is not installed.
    """
    one = _loss_of_one_update(
      self.num_examples,
      self.probability,
      self.largest_batch,
      self.noise_multiplier,
    )
    return _epsilon(one, self.delta, steps)

  def last_step(self, most: int) -> int:
    """Return the number of updates within the budget, at most `most`."""

    def is_over(steps):
      epsilon = self.epsilon(steps)
      return not (epsilon <= self.budget and math.isfinite(epsilon))

    if not is_over(most):  # One epsilon may take seconds.
      return most
    return bisect.bisect_left(range(1, most), True, key=is_over)

  def limit_steps(
    self, config: Any, begun: dict[str, Any] | None, steps_made: int
  ) -> None:
    """Limit `training_steps` to the privacy budget.

    Args:
      config: JAXline's config. `training_steps` is changed.
      begun: run.json of the run to continue, or None.
      steps_made: steps of that run.

    Raises:
      UserError: if the budget is used up, or the used part is unknown.
    """
    if steps_made and not begun:
      raise UserError(
        'private: no run.json says with how much noise the steps in this '
        'folder were made. Choose another --checkpoint_dir.',
        2,
      )
    if self.key is not None:
      logging.warning(
        'private.key is set, as in a test: epsilon does not hold.'
      )
    last = self.last_step(config.training_steps)
    if last < max(steps_made, 1):
      spent = self.epsilon(max(steps_made, 1))
      made = f'the {steps_made} made so far' if steps_made else 'the first'
      raise UserError(
        f'private.epsilon is {self.budget}, and after {made} it is '
        f'{spent:.4g}: use a larger budget or delta, more noise or smaller '
        'batches.',
        2,
      )
    if last < config.training_steps:
      logging.info(
        'The budget of epsilon, %g, is spent after %d of %d steps.',
        self.budget,
        last,
        config.training_steps,
      )
    config.training_steps = last

  def new_key(self) -> np.ndarray:
    """Return a new `NoiseState.secret_key`, equal in all processes."""
    # A seed of None uses the operating system's entropy.
    words = np.random.SeedSequence(self.key).generate_state(4)
    return np.asarray(multihost_utils.broadcast_one_to_all(words))

  def sampling(self, secret_key: np.ndarray) -> Poisson:
    """Return the sampler of the batches."""
    low, high = (int(word) for word in secret_key[2:])
    return Poisson(self.probability, self.largest_batch, high << 32 | low)

  def noise(self) -> optax.GradientTransformation:
    """Return the transformation that adds noise to the mean gradient.

    The noise depends only on the key and the number of updates: all devices add
    the same noise once to the mean over all of them, and a resumed run adds the
    same as an uninterrupted one. optax's `differentially_private_aggregate`
    needs the gradients of all examples at once.
    """
    deviation = self.noise_multiplier * self.clipping / self.batch_size

    def init_fn(params):
      del params
      return NoiseState(jnp.zeros(4, jnp.uint32), jnp.zeros((), jnp.int32))

    def update_fn(updates, state, params=None):
      key = jax.random.fold_in(
        jax.random.wrap_key_data(state.secret_key[:2]), state.updates_noised
      )
      noise = optax.add_noise(deviation**2, 0.0, key)
      updates, _ = noise.update(updates, noise.init(params))
      return updates, state._replace(updates_noised=state.updates_noised + 1)

    return optax.GradientTransformation(init_fn, update_fn)

  def facts(self, steps: int) -> dict[str, float]:
    """Return the privacy metadata of weights after a number of updates."""
    return {
      'epsilon': self.epsilon(steps),
      'delta': self.delta,
      'noise_multiplier': self.noise_multiplier,
      'clipping': self.clipping,
      'batch_size': self.batch_size,
      'largest_batch': self.largest_batch,
      'num_examples': self.num_examples,
      'steps': steps,
      'key_is_secret': int(self.key is None),
    }


@functools.lru_cache(maxsize=1)
def _loss_of_one_update(
  num_examples: int, probability: float, most: int, noise_multiplier: float
):
  try:
    from dp_accounting.pld import privacy_loss_distribution
  except ModuleNotFoundError as error:
    raise UserError(
      'private: dp-accounting, which computes epsilon, is not installed. Run '
      'pip install ".[private]" in the folder of this project.',
      2,
    ) from error
  return privacy_loss_distribution.from_truncated_subsampled_gaussian_mechanism(
    num_examples,
    probability,
    most,
    noise_multiplier,
    value_discretization_interval=_RESOLUTION,
  )


@functools.lru_cache(maxsize=16)
def _epsilon(one: Any, delta: float, steps: int) -> float:
  if not steps:
    return 0.0
  return float(one.self_compose(steps).get_epsilon_for_delta(delta))


def make(config: ml_collections.ConfigDict, num_examples: int) -> Privacy:
  """Build the mechanism of `config.private`.

  Args:
    config: the experiment's config.
    num_examples: number of examples per epoch.

  Raises:
    UserError: if training would not be private with these settings.
  """
  private = config.private
  for is_wrong, message in (
    (
      min(private.noise_multiplier or 0, private.epsilon or 0) <= 0,
      f'private.noise_multiplier is {private.noise_multiplier} and '
      f'private.epsilon {private.epsilon}; they must be positive. epsilon '
      'may be inf. Set both to None for training without privacy.',
    ),
    (
      (private.noise_multiplier or 0) < _LEAST_NOISE,
      f'private.noise_multiplier is {private.noise_multiplier}; with less than '
      f'{_LEAST_NOISE} training is not private.',
    ),
    (
      not 0
      < (private.delta or 0)
      < 2 / num_examples,  # De et al. have 1.02 / N.
      f'private.delta is {private.delta}; it must be above 0 and at most '
      f'about 1 / {num_examples}, one example of the dataset.',
    ),
    (
      private.sampling != 'poisson',
      f'private.sampling is {private.sampling!r}; epsilon is known only for '
      "'poisson'.",
    ),
    (
      config.clip_per_example != 'norm',
      f'private: clip_per_example is {config.clip_per_example!r}; it must be '
      "'norm'.",
    ),
    (
      config.train_batch_size > num_examples,
      f'private: train_batch_size is {config.train_batch_size}, more than the '
      f'{num_examples} examples.',
    ),
    (
      augmentation.parse(config.augment_name or '').mixes,
      f'private: augment_name is {config.augment_name!r}, which mixes images: '
      'a gradient would depend on two examples.',
    ),
    (
      config.class_weights or config.balance_classes,
      'private: class_weights and balance_classes follow from the number of '
      'examples of each class, and would tell of it.',
    ),
    (
      config.skip_nonfinite,
      'private: skip_nonfinite is True; skipped updates would reveal '
      'information about the examples.',
    ),
    (
      config.skip_corrupt,
      'private: skip_corrupt is True; other examples would replace the skipped '
      'ones.',
    ),
  ):
    if is_wrong:
      raise UserError(message, 2)
  return Privacy(
    private.noise_multiplier,
    private.delta,
    private.epsilon,
    config.per_example.clipping,
    config.train_batch_size,
    num_examples,
    private.key,
  )
