"""Learning rate schedules: functions from the step to the rate."""

import optax


def warmup_cosine(
  peak: float, warmup_steps: float, total_steps: float, end: float = 0.0
) -> optax.Schedule:
  """Rises linearly from 0, then falls along half a cosine.

  optax's schedule. Its type hints ask for whole steps, but it takes others too:
  5 epochs of ImageNet in batches of 4096 are 1563.9 steps. Unlike optax, this
  refuses a warm-up that does not fit.

  Args:
    peak: the rate after the warm-up.
    warmup_steps: length of the warm-up; need not be whole.
    total_steps: the step at which `end` is reached; the rate stays there.
    end: the last rate.

  Returns:
    A function from the step, from 0, to the rate.

  Raises:
    ValueError: if the warm-up is not shorter than the whole.
  """
  if not 0 <= warmup_steps < total_steps:
    raise ValueError(
      f'A warm-up of {warmup_steps} steps does not fit into {total_steps}.'
    )
  return optax.warmup_cosine_decay_schedule(
    0.0, peak, warmup_steps, total_steps, end
  )
