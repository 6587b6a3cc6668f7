"""Running a network on image files, with a bar that shows how far it is."""

from collections.abc import Callable, Iterator
from concurrent import futures
import os
from typing import TextIO

import jax
import numpy as np
import tqdm

from nfnets import zoo
from nfnets.inference import images

# Each holds an image in full.
_MAX_THREADS = 8


def outputs(
  function: Callable[[np.ndarray], jax.Array],
  model: zoo.Model,
  paths: list[str],
  batch_size: int,
) -> Iterator[tuple[str, np.ndarray | str]]:
  """Runs a network on images, reading the next ones at the same time.

  Args:
    function: from preprocessed images [B, h, w, 3] to [B, ...]. B is always
      the same, so that it is compiled once.
    model: whose preprocessing to use.
    paths: images.
    batch_size: the largest B.

  Yields:
    Each path, in order, with the output for it, or with what is wrong.
  """
  size = min(batch_size, len(paths))
  batches = [paths[i : i + size] for i in range(0, len(paths), size)]
  pool = futures.ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS))
  bar = tqdm.tqdm(
    total=len(paths),
    unit='image',
    dynamic_ncols=True,
    # None: unless standard error is a terminal.
    disable=None if len(batches) > 1 else True,
  )

  def load(batch: list[str]) -> list[futures.Future]:
    return [pool.submit(_load, model, path) for path in batch]

  try:
    upcoming = load(batches[0])
    for batch, following in zip(batches, [*batches[1:], []], strict=True):
      current, upcoming = upcoming, load(following)
      loaded = [future.result() for future in current]
      yield from zip(batch, _run_batch(function, loaded, size), strict=True)
      bar.update(len(batch))
  finally:
    pool.shutdown(cancel_futures=True)
    bar.close()


def say(text: str, file: TextIO) -> None:
  """Prints a line, above the bar if there is one."""
  tqdm.tqdm.write(text, file=file)
  file.flush()


def _load(model: zoo.Model, path: str) -> np.ndarray | str:
  """Returns a preprocessed image or what is wrong with it."""
  try:
    image = images.read_image(path)
  except images.ImageError as error:
    return str(error)
  try:
    return model.preprocess(image)
  except Exception:
    if isinstance(image, np.ndarray):
      raise
    return 'cannot be decoded: damaged JPEG data'


def _run_batch(
  function: Callable[[np.ndarray], jax.Array],
  loaded: list[np.ndarray | str],
  size: int,
) -> Iterator[np.ndarray | str]:
  """Runs one batch, filled up to `size`, and passes on what is no image."""
  good = [image for image in loaded if not isinstance(image, str)]
  if good:
    batch = np.zeros((size, *good[0].shape), np.float32)
    batch[: len(good)] = good
    results = iter(np.asarray(function(batch)))
  for image in loaded:
    if isinstance(image, str):
      yield image
    else:
      result = next(results)
      is_finite = np.isfinite(result).all()
      yield result if is_finite else "the network's output is not finite"
