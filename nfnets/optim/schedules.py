"""Learning rate schedules: functions from the step to the rate."""

import jax.numpy as jnp
import optax


def warmup_cosine(
  peak: float, warmup_steps: float, total_steps: float, end: float = 0.0
) -> optax.Schedule:
  """Return linear warm-up from 0, followed by half a cosine.

  `optax.warmup_cosine_decay_schedule` is the same function, but its warm-up is
  a difference from the peak, which in float32 is up to 3e-5 off in the first
  steps. The published warm-up is a product.

  Args:
    peak: the rate after the warm-up.
    warmup_steps: length of the warm-up; may be fractional.
    total_steps: the step at which the rate reaches `end`, and stays there.
    end: the last rate.

  Returns:
    A function from the step (from 0) to the rate. An optional second argument
    replaces `peak`, and may be an array.

  Raises:
    ValueError: if the warm-up is not shorter than `total_steps`.

  Example:
    >>> schedule = optim.warmup_cosine(0.4, warmup_steps=10, total_steps=100)
    >>> round(float(schedule(5)), 3)
    0.2
  """
  if not 0 <= warmup_steps < total_steps:
    raise ValueError(
      f'A warm-up of {warmup_steps} steps is not shorter than the '
      f'{total_steps} steps of training.'
    )

  def schedule(step, peak=peak):
    step = jnp.asarray(step, jnp.float32)
    part = (step - warmup_steps) / (total_steps - warmup_steps)
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(part, 0, 1)))
    rise = peak * step / warmup_steps if warmup_steps else peak
    return jnp.where(step < warmup_steps, rise, end + (peak - end) * cosine)

  return schedule
