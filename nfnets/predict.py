"""What the commands that run a network on image files share.

`nfnets.classify` and `nfnets.embed` print results on standard output and
everything else on standard error. Their exit status is 0 if all went well, 1
for a failure, be it of a single image, and 2 for a wrong command.
"""

import argparse
from collections.abc import Callable, Iterator
from concurrent import futures
import dataclasses
import io
import os
import signal
import sys
from typing import Any, TextIO
import warnings

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from nfnets import weights, zoo

# Each holds an image in full.
_MAX_THREADS = 8


class CommandError(Exception):
  """The command cannot go on; the message says why, in one line."""

  def __init__(self, message: Any, status: int = 1):
    super().__init__(message)
    self.status = status


@dataclasses.dataclass(frozen=True)
class Network:
  """A model with its weights."""

  model: zoo.Model
  params: hk.Params
  state: hk.State

  def logits(self, images: np.ndarray) -> jax.Array:
    """Returns [B, num_classes] for preprocessed images."""
    return self.model.logits(self.params, images, self.state)

  def embed(self, images: np.ndarray) -> jax.Array:
    """Returns pooled features [B, C] for preprocessed images."""
    return self.model.embed(self.params, images, self.state)


def positive(text: str) -> int:
  """Returns a number of at least 1, for argparse."""
  if not text.isdecimal() or not int(text):
    raise argparse.ArgumentTypeError(f'{text} is no whole number above 0')
  return int(text)


def model_name(text: str) -> str:
  """Returns the name of a model, for argparse."""
  try:
    zoo.get_entry(text)
  except ValueError as error:
    raise argparse.ArgumentTypeError(str(error)) from error
  return text


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments that say which network runs on which images."""
  parser.add_argument(
    'paths',
    nargs='+',
    metavar='IMAGE',
    help='an image in any format that Pillow reads, or a folder: all images in '
    'it, at any depth, but for hidden ones and links to folders',
  )
  add_network_arguments(parser)
  parser.add_argument(
    '--batch_size',
    type=positive,
    default=8,
    metavar='N',
    help='how many images go through the network together (8)',
  )


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments that `open_network` reads."""
  parser.add_argument(
    '--weights',
    required=True,
    metavar='FILE',
    help='weights: .npz, .safetensors, a pickle of Haiku, or a file of timm',
  )
  parser.add_argument(
    '--model',
    type=model_name,
    metavar='NAME',
    help='whose weights they are (recognized from the file)',
  )
  parser.add_argument(
    '--image_size',
    type=positive,
    metavar='N',
    help="side of the images in pixels (the model's test size)",
  )


def run(command: Callable[[argparse.Namespace], int], args) -> int:
  """Runs a command; returns its exit status, with errors told in one line."""
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      # Names of files can hold what the terminal's encoding has not.
      stream.reconfigure(errors='backslashreplace')
  # Of oddities in files that it reads all the same.
  warnings.filterwarnings('ignore', module=r'PIL\.')
  previous = signal.getsignal(signal.SIGINT)
  if previous is signal.default_int_handler:  # Not where it is ignored.
    signal.signal(signal.SIGINT, _interrupt)
  try:
    _check_installed()
    return command(args)
  except CommandError as error:
    return fail(error, error.status)
  except KeyboardInterrupt:
    return fail('interrupted', 130)
  except OSError as error:
    # Nobody reads the results, or they cannot be written. Python would try
    # once more at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1 if isinstance(error, BrokenPipeError) else fail(error, 1)
  finally:
    signal.signal(signal.SIGINT, previous)


def open_network(args: argparse.Namespace) -> Network:
  """Reads the weights.

  Raises:
    CommandError: if they cannot be read or are of no model.
  """
  try:
    model, params, state = weights.open_model(args.weights, args.model)
  except (OSError, ValueError) as error:
    reason = getattr(error, 'strerror', None) or str(error)
    where = '' if args.weights in reason else f'{args.weights}: '
    raise CommandError(f'{where}{reason}') from error
  if args.image_size:
    entry = dataclasses.replace(model.entry, test_size=args.image_size)
    model = dataclasses.replace(model, entry=entry)
  params, state = jax.tree.map(jnp.asarray, (params, state))
  return Network(model, params, state)


def find_images(paths: list[str]) -> list[str]:
  """Returns the images that the arguments name; see `images.find_images`."""
  from nfnets import images  # pylint: disable=g-import-not-at-top

  return [image for path in paths for image in images.find_images(path)]


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
  import tqdm  # pylint: disable=g-import-not-at-top

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
      images = [future.result() for future in current]
      yield from zip(batch, _run_batch(function, images, size), strict=True)
      bar.update(len(batch))
  finally:
    pool.shutdown(cancel_futures=True)
    bar.close()


def say(text: str, file: TextIO) -> None:
  """Prints a line, above the bar if there is one."""
  import tqdm  # pylint: disable=g-import-not-at-top

  tqdm.tqdm.write(text, file=file)
  file.flush()


def _interrupt(*_: Any) -> None:
  # An exception could get lost inside of JAX, and ending in an orderly way
  # crashes while XLA is computing.
  os._exit(fail('interrupted', 130))


def _check_installed() -> None:
  try:
    # pylint: disable=g-import-not-at-top, unused-import
    import PIL  # noqa: F401
    import tqdm  # noqa: F401

    import nfnets.data  # noqa: F401
  except ModuleNotFoundError as error:
    raise CommandError(
      f'{error.name} is not installed, and images are prepared with it: pip '
      'install ".[train]" in the folder of this project.'
    ) from error


def _load(model: zoo.Model, path: str) -> np.ndarray | str:
  """Returns a preprocessed image or what is wrong with it."""
  from nfnets import images  # pylint: disable=g-import-not-at-top

  try:
    image = images.read_image(path)
  except images.ImageError as error:
    return str(error)
  try:
    return model.preprocess(image)
  except Exception:  # pylint: disable=broad-except
    if isinstance(image, np.ndarray):
      raise
    return 'cannot be decoded: damaged JPEG data'


def _run_batch(
  function: Callable[[np.ndarray], jax.Array],
  images: list[np.ndarray | str],
  size: int,
) -> Iterator[np.ndarray | str]:
  """Runs one batch, filled up to `size`, and passes on what is no image."""
  good = [image for image in images if not isinstance(image, str)]
  if good:
    batch = np.zeros((size, *good[0].shape), np.float32)
    batch[: len(good)] = good
    results = iter(np.asarray(function(batch)))
  for image in images:
    if isinstance(image, str):
      yield image
    else:
      result = next(results)
      is_finite = np.isfinite(result).all()
      yield result if is_finite else "the network's output is not finite"


def fail(error: Any, status: int) -> int:
  """Tells an error in one line; returns the exit status."""
  print(f'error: {error}', file=sys.stderr, flush=True)
  return status
