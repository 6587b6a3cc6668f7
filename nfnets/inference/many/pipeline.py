"""Images through a network, the next ones being read at the same time."""

from collections.abc import Callable, Iterator
from concurrent import futures
import io
import itertools
import os
import queue
import threading
from typing import NamedTuple

import numpy as np

from nfnets.inference import images
from nfnets.inference.many.sources import Item

# Each holds an image in full.
_MAX_THREADS = 8


class Answer(NamedTuple):
  """What a network says of an image.

  Attributes:
    name: of the image.
    label: what it is of, where that is known.
    output: of the network; None if there is an error.
    error: why there is no output.
  """

  name: str
  label: int | None
  output: np.ndarray | None
  error: str | None


def answers(
  function: Callable[[np.ndarray], np.ndarray],
  preprocess: Callable[[bytes | np.ndarray], np.ndarray],
  items: Iterator[Item],
  batch_size: int,
  *,
  calls: int = 1,
  all_whole: bool = False,
  check: bool = True,
  when_many: Callable[[], None] = lambda: None,
) -> Iterator[list[Answer]]:
  """Runs a network on images, in batches.

  Enumerating, reading and computing go on at the same time, a few batches
  ahead of what is taken and no more.

  Args:
    function: from preprocessed images [B, h, w, 3] to [B, ...]. B is always
      the same, so that it is compiled once.
    preprocess: from what items are read as to [h, w, 3].
    items: the images.
    batch_size: B, if there are as many images.
    calls: of `function`, at the same time.
    all_whole: whether B is the batch size however few images there are.
    check: whether to look for damages that `preprocess` may pass over.
    when_many: called when there are images for a second batch.

  Yields:
    Answers for the images of each batch, in the order of the images.
  """
  cores = os.cpu_count() or 1
  reading = futures.ThreadPoolExecutor(min(cores, _MAX_THREADS), 'read')
  computing = futures.ThreadPoolExecutor(calls, 'compute')
  batches: queue.Queue[futures.Future | None] = queue.Queue(calls + 1)
  stopped = threading.Event()

  def produce() -> None:
    try:
      size = batch_size if all_whole else None
      while batch := list(itertools.islice(items, batch_size)):
        if size is not None:
          when_many()
        size = size or len(batch)
        loads = [
          reading.submit(_load, preprocess, item, check) for item in batch
        ]
        batches.put(computing.submit(_run, function, batch, loads, size))
        if stopped.is_set():
          return
      batches.put(None)
    except BaseException as error:
      failed = futures.Future()
      failed.set_exception(error)
      batches.put(failed)

  # As a daemon it does not keep the program alive while it waits for a name.
  threading.Thread(target=produce, name='enumerate', daemon=True).start()
  try:
    while (batch := batches.get()) is not None:
      yield batch.result()
  finally:
    stopped.set()
    while not batches.empty():  # Where it may wait to put one more.
      batches.get_nowait()
    computing.shutdown(cancel_futures=True)
    reading.shutdown(cancel_futures=True)


def _load(
  preprocess: Callable[[bytes | np.ndarray], np.ndarray],
  item: Item,
  check: bool,
) -> tuple[np.ndarray | str, int | None]:
  """Returns a preprocessed image, or what is wrong with it, and its label."""
  try:
    image, label = item.read(check)
  except images.ImageError as error:
    return str(error), None
  try:
    return preprocess(image), label
  except Exception:
    if isinstance(image, np.ndarray):
      raise
  try:  # Decoded twice only where something is wrong with it.
    image = images.decode(io.BytesIO(image))
  except images.ImageError as error:
    return str(error), label
  if isinstance(image, np.ndarray):
    return preprocess(image), label
  return 'cannot be decoded: damaged JPEG data', label


def _run(
  function: Callable[[np.ndarray], np.ndarray],
  items: list[Item],
  loads: list[futures.Future],
  size: int,
) -> list[Answer]:
  """Runs one batch, filled up to `size`, and passes on what is no image."""
  loaded = [load.result() for load in loads]
  good = [image for image, _ in loaded if not isinstance(image, str)]
  outputs = iter(())
  if good:
    batch = np.zeros((size, *good[0].shape), np.float32)
    np.stack(good, out=batch[: len(good)])
    outputs = iter(np.asarray(function(batch)))
  found = []
  for item, (image, label) in zip(items, loaded, strict=True):
    output, error = None, image
    if not isinstance(image, str):
      output, error = next(outputs), None
      if not np.isfinite(output).all():
        output, error = None, "the network's output is not finite"
    found.append(Answer(item.name, label, output, error))
  return found
