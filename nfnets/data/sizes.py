"""Sizes that are arguments of what makes batches."""


def image_sides(image_size: int | tuple[int, int]) -> tuple[int, int]:
  """Returns (height, width), or raises ValueError."""
  size = (image_size,) * 2 if isinstance(image_size, int) else tuple(image_size)
  if len(size) != 2 or min(size) < 1:
    raise ValueError(
      'The image size has to be a number of pixels or (height, width), not '
      f'{image_size}.'
    )
  return size


def local_batch_size(
  global_batch_size: int, process_index: int, process_count: int
) -> int:
  """Returns this process's share of a batch, or raises ValueError."""
  if not 0 <= process_index < process_count:
    raise ValueError(f'There is no process {process_index} of {process_count}.')
  if global_batch_size < 1 or global_batch_size % process_count:
    raise ValueError(
      f'The global batch size {global_batch_size} has to be a multiple of '
      f'the number of processes, {process_count}.'
    )
  return global_batch_size // process_count


def positive(name: str, value: int) -> int:
  """Returns a whole number of at least 1, or raises ValueError."""
  if value != int(value) or value < 1:
    raise ValueError(f'{name} has to be a whole number from 1 on, not {value}.')
  return int(value)
