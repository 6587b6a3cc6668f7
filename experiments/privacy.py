"""Differentially private training: noise, sampling, and what they spend.

Abadi et al. (arXiv 1607.00133), and De et al. (arXiv 2204.13650): each example
is in each batch by a draw of its own, its gradient is clipped to a norm, and
Gaussian noise is added to their sum. See docs/private.md.
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

# The step of privacy losses. They are rounded up, so that epsilon is a bound. A
# tenth of it makes epsilon 0.3 % lower over 70,000 updates and takes ten times
# as long.
_RESOLUTION = 1e-3
# With less, epsilon is in the thousands, and takes gigabytes to compute.
_LEAST_NOISE = 0.1
# A batch has room for its mean and so many standard deviations more. What does
# not fit is left out, which the analysis counts.
_DEVIATIONS = 5


class NoiseState(NamedTuple):
  """State of `Privacy.noise`.

  Attributes:
    secret_key: uint32 [4], two words for the noise of all updates and two for
      their samples. A checkpoint is the only file that has it.
    updates_noised: int32 scalar, the number of updates.
  """

  secret_key: jax.Array
  updates_noised: jax.Array


@dataclasses.dataclass(frozen=True)
class Privacy:
  """The mechanism of private training.

  Attributes:
    noise_multiplier: standard deviation of the noise in the sum of a batch's
      clipped gradients, in units of the norm that they are clipped to.
    delta: the probability that epsilon's bound may fail by.
    budget: the largest epsilon; infinite for none.
    clipping: the norm that examples' gradients are clipped to.
    batch_size: expected examples of an update, over all devices.
    num_examples: of an epoch.
    key: what noise and samples follow from, in tests; None is a secret.
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
    """Probability of each example to be in a batch."""
    return self.batch_size / self.num_examples

  @property
  def largest_batch(self) -> int:
    """Most examples that a batch may have."""
    deviation = math.sqrt(self.batch_size * (1 - self.probability))
    room = math.ceil(_DEVIATIONS * deviation)
    return min(self.batch_size + room, self.num_examples)

  def epsilon(self, steps: int) -> float:
    """Return epsilon after so many updates.

    Raises:
      UserError: if the package that computes it is not installed.
    """
    one = _loss_of_one_update(
      self.num_examples,
      self.probability,
      self.largest_batch,
      self.noise_multiplier,
    )
    return _epsilon(one, self.delta, steps)

  def last_step(self, most: int) -> int:
    """Return how many updates the budget allows, up to `most`."""

    def is_over(steps):
      epsilon = self.epsilon(steps)
      return not (epsilon <= self.budget and math.isfinite(epsilon))

    if not is_over(most):  # One epsilon may take seconds.
      return most
    return bisect.bisect_left(range(1, most), True, key=is_over)

  def limit_steps(
    self, config: Any, begun: dict[str, Any] | None, steps_made: int
  ) -> None:
    """End training where its budget is spent.

    Args:
      config: JAXline's; `training_steps` is changed.
      begun: what is in run.json of a run to go on with; None if there is none.
      steps_made: of that run.

    Raises:
      UserError: if nothing is left of the budget, or what was spent is unknown.
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
        f'{spent:.4g}: a larger budget or delta, more noise or smaller batches '
        'are needed.',
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
    """Return a `NoiseState.secret_key`, the same for all processes."""
    # Without a number, the operating system's entropy.
    words = np.random.SeedSequence(self.key).generate_state(4)
    return np.asarray(multihost_utils.broadcast_one_to_all(words))

  def sampling(self, secret_key: np.ndarray) -> Poisson:
    """Return the draws of all batches."""
    low, high = (int(word) for word in secret_key[2:])
    return Poisson(self.probability, self.largest_batch, high << 32 | low)

  def noise(self) -> optax.GradientTransformation:
    """Return what adds the noise to the mean over a batch.

    It follows from the key and the number of updates, so that all devices add
    the same, once to the mean over all of them, and a run that goes on adds
    what it would have added. `optax.contrib.differentially_private_aggregate`
    needs the gradients of all examples, which are never in one place here.
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
    """Return what weights after so many updates may be said to keep."""
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
      'private: dp-accounting is not installed, which computes epsilon; '
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
  """Build what `config.private` asks for.

  Args:
    config: the experiment's.
    num_examples: of an epoch.

  Raises:
    UserError: for settings with which training is not private.
  """
  private = config.private
  for is_wrong, message in (
    (
      min(private.noise_multiplier or 0, private.epsilon or 0) <= 0,
      f'private.noise_multiplier is {private.noise_multiplier} and '
      f'private.epsilon {private.epsilon}; they must be positive, as without '
      'noise or a budget (inf is a large one) nothing is private. With both '
      'None, training is not meant to be.',
    ),
    (
      (private.noise_multiplier or 0) < _LEAST_NOISE,
      f'private.noise_multiplier is {private.noise_multiplier}; with less than '
      f'{_LEAST_NOISE} nothing is private.',
    ),
    (
      not 0
      < (private.delta or 0)
      < 2 / num_examples,  # De et al. have 1.02 / N.
      f'private.delta is {private.delta}; it must be above 0 and no more than '
      f'about 1 / {num_examples}, one example of those that there are.',
    ),
    (
      private.sampling != 'poisson',
      f'private.sampling is {private.sampling!r}; epsilon is known for '
      "'poisson' alone.",
    ),
    (
      config.clip_per_example != 'norm',
      f'private: clip_per_example is {config.clip_per_example!r}; the noise is '
      "for gradients that are clipped by their norm, 'norm'.",
    ),
    (
      config.train_batch_size > num_examples,
      f'private: train_batch_size is {config.train_batch_size}, more than the '
      f'{num_examples} examples that there are.',
    ),
    (
      augmentation.parse(config.augment_name or '').mixes,
      f'private: augment_name is {config.augment_name!r}, which mixes images, '
      'so that a gradient would tell of two.',
    ),
    (
      config.class_weights or config.balance_classes,
      'private: class_weights and balance_classes follow from the number of '
      'examples of each class, and would tell of it.',
    ),
    (
      config.skip_nonfinite,
      'private: skip_nonfinite is True, and what is left out would tell of the '
      'examples.',
    ),
    (
      config.skip_corrupt,
      'private: skip_corrupt is True, and others would be seen in the place of '
      'those left out.',
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
