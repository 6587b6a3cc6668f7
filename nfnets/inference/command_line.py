"""What the commands on finished networks share: arguments, errors, exit status.

`python -m nfnets.classify`, `embed` and `export` print results on standard
output and everything else on standard error. Their exit status is 0 if all went
well, 1 for a failure, be it of a single image, and 2 for a wrong command.
"""

import argparse
from collections.abc import Callable, Iterable
import importlib
import importlib.util
import io
import logging
import os
import signal
import sys
from typing import Any
import warnings

from nfnets import paths
from nfnets.inference import networks, runtimes


class CommandError(Exception):
  """The command cannot go on; the message says why, in one line."""

  def __init__(self, message: Any, status: int = 1):
    super().__init__(message)
    self.status = status


def positive(text: str) -> int:
  """Returns a number of at least 1, for argparse."""
  if not text.isdecimal() or not int(text):
    raise argparse.ArgumentTypeError(f'{text} is no whole number above 0')
  return int(text)


def model_name(text: str) -> str:
  """Returns the name of a model, for argparse."""
  from nfnets import zoo

  try:
    zoo.get_entry(text)
  except ValueError as error:
    raise argparse.ArgumentTypeError(str(error)) from error
  return text


def make_parser(
  name: str, description: str, epilog: str, weights_required: bool = True
) -> argparse.ArgumentParser:
  """Returns a parser with the arguments that `open_network` reads."""
  parser = argparse.ArgumentParser(
    prog=f'python -m nfnets.{name}',
    description=description,
    epilog=epilog,
    allow_abbrev=False,
  )
  parser.add_argument(
    '--weights',
    required=weights_required,
    metavar='WEIGHTS',
    help='a file (.npz, .safetensors, a pickle of Haiku, or a file of timm), '
    'the folder of a run, or a name: nfnet_f0 to nfnet_f6 for the released '
    'weights, which are fetched once; timm/NAME or hf://org/repo[@revision] '
    'for those of the Hugging Face Hub',
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
  return parser


def add_runtime_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments that say what computes the network, and how."""
  parser.add_argument(
    '--runtime',
    choices=runtimes.RUNTIMES,
    default='auto',
    help='what computes the network: JAX, ONNX Runtime or OpenVINO, or the '
    'fastest that is installed for this device (auto)',
  )
  parser.add_argument(
    '--precision',
    choices=runtimes.PRECISIONS,
    default='float32',
    help='what is computed in (float32). bfloat16 is about twice as fast in '
    'OpenVINO where the CPU has instructions for it, those of AVX-512, and '
    'more so with AMX; logits change by up to 4%% of the largest, and the most '
    'probable class of 0 to 6%% of pictures (random weights; docs/runtimes.md '
    'has a table of all families)',
  )
  parser.add_argument(
    '--threads',
    type=positive,
    metavar='N',
    help='how many threads compute, for ONNX Runtime and OpenVINO (one per '
    'core)',
  )


def add_data_arguments(
  parser: argparse.ArgumentParser, required: bool = False
) -> None:
  """Adds the arguments that `open_data` reads."""
  parser.add_argument(
    '--data',
    required=required,
    metavar='DATA',
    help='a folder of images, one folder inside per class, or the name of a '
    'prepared dataset of TFDS',
  )
  parser.add_argument(
    '--data_dir',
    metavar='DIR',
    help="where TFDS's datasets are (TFDS's own default)",
  )


def add_batch_size(parser: argparse.ArgumentParser, default: int) -> None:
  """Adds the argument `--batch_size`."""
  parser.add_argument(
    '--batch_size',
    type=positive,
    default=default,
    metavar='N',
    help=f'how many images go through the network together ({default})',
  )


def add_run_or_data(parser: argparse.ArgumentParser) -> None:
  """Adds RUN, and what stands in its place for weights that are no run's."""
  parser.add_argument('run', nargs='?', metavar='RUN', help='folder of a run')
  add_data_arguments(parser)


def check_run_or_data(
  parser: argparse.ArgumentParser,
  args: argparse.Namespace,
  without_run: tuple[str, ...],
) -> None:
  """Ends the command where RUN and what it settles are both given, or neither.

  Args:
    parser: has `add_run_or_data`.
    args: what it parsed.
    without_run: the arguments that are needed where there is no RUN.
  """
  names = ('weights', 'data', 'data_dir', 'model', 'image_size')
  others = [f'--{n}' for n in names if getattr(args, n) is not None]
  if args.run is not None and others:
    parser.error(f'RUN has its own settings; {", ".join(others)} cannot be set')
  if args.run is None and any(getattr(args, n) is None for n in without_run):
    needed = ' and '.join(f'--{n}' for n in without_run)
    parser.error(f'RUN is needed, or {needed}')


def run(
  command: Callable[[argparse.Namespace], int], args: argparse.Namespace
) -> int:
  """Runs a command; returns its exit status, with errors told in one line."""
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      # Names of files can hold what the terminal's encoding has not.
      stream.reconfigure(errors='backslashreplace')
  # Of oddities in files that it reads all the same.
  warnings.filterwarnings('ignore', module=r'PIL\.')
  handler = logging.StreamHandler()  # To standard error, as it is now.
  handler.setFormatter(logging.Formatter('%(message)s'))
  log = logging.getLogger('nfnets.inference')
  log.setLevel(logging.INFO)
  log.addHandler(handler)
  previous = signal.getsignal(signal.SIGINT)
  if previous is signal.default_int_handler:  # Not where it is ignored.
    signal.signal(signal.SIGINT, _interrupt)
  try:
    return command(args)
  except CommandError as error:
    return _fail(error, error.status)
  except paths.PathError as error:
    return _fail(error, 2)
  except KeyboardInterrupt:
    return _fail('interrupted', 130)
  except OSError as error:
    # Nobody reads the results, or they cannot be written. Python would try
    # once more at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1 if isinstance(error, BrokenPipeError) else _fail(error, 1)
  finally:
    signal.signal(signal.SIGINT, previous)
    log.removeHandler(handler)


def let_interrupts_raise() -> None:
  """Has an interrupt raise KeyboardInterrupt, for the rest of a command.

  So that what was begun is cleaned up, at the risk that Python crashes instead
  if XLA is computing.
  """
  if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def open_network(
  args: argparse.Namespace, throughput: bool = False
) -> networks.Network:
  """Reads the weights that the arguments name.

  Args:
    args: of `make_parser`; without those of `add_runtime_arguments`, JAX
      computes the network.
    throughput: whether many images matter rather than the time of one call.

  Raises:
    CommandError: if they cannot be read or are of no model.
    PathError: if their name cannot be one.
  """
  options = {
    name: getattr(args, name)
    for name in ('runtime', 'precision', 'threads')
    if hasattr(args, name)
  }
  try:
    return networks.open_network(
      *(args.weights, args.model, args.image_size),
      **options,
      throughput=throughput,
    )
  except paths.PathError:
    raise
  except networks.RuntimeMissingError as error:
    raise CommandError(error) from error
  except (OSError, ValueError) as error:
    reason = getattr(error, 'strerror', None) or str(error)
    where = '' if args.weights in reason else f'{args.weights}: '
    raise CommandError(f'{where}{reason}') from error


def open_data(args: argparse.Namespace) -> Any:
  """Opens the dataset that the arguments name; see `load_builder`.

  Raises:
    CommandError: if there is none, or it has no images with labels.
  """
  from nfnets.data import dataset

  try:
    return dataset.load_builder(args.data, args.data_dir)
  except dataset.DatasetError as error:
    raise CommandError(error) from error


def check_images_can_be_read() -> None:
  """Raises CommandError if a package that prepares images is missing.

  `nfnets.inference.images` and `many` can be imported if not.
  """
  names = ['PIL', 'tqdm']
  if not importlib.util.find_spec('simplejpeg'):  # TensorFlow decodes JPEGs.
    names.append('nfnets.data')
  check_installed('Reading images', names, 'train')


def check_installed(what: str, names: Iterable[str], extra: str) -> None:
  """Raises CommandError if a package of an extra is missing.

  Args:
    what: what the packages are for.
    names: modules that must be importable.
    extra: the extra of the project that has them.
  """
  missing = []
  for name in names:
    try:
      importlib.import_module(name)
    except ModuleNotFoundError as error:
      missing.append(error.name or name)
  if missing:
    raise CommandError(
      f'{what} needs packages that are not installed: {", ".join(missing)}; '
      f'pip install ".[{extra}]" in the folder of this project.'
    )


def check_output(path: str, suffix: str = '') -> None:
  """Raises CommandError unless a file can be written, as far as one sees.

  And PathError if its name cannot be one.

  Args:
    path: the file, of the argument `--output`.
    suffix: how its name has to end.
  """
  target = paths.path(path)
  folder = str(target.parent)
  if not path.endswith(suffix):
    raise CommandError(f'--output={path} does not end in {suffix}.', 2)
  if paths.is_remote(path):
    try:
      paths.make_folder(folder)
    except OSError as error:
      raise CommandError(f'--output={path}: {error.strerror}.') from error
    return
  if not os.path.isdir(folder):
    raise CommandError(f'--output={path}: there is no folder {folder}.')
  if target.is_dir():
    raise CommandError(f'--output={path} is a folder.')
  if not os.access(folder, os.W_OK):
    raise CommandError(
      f'--output={path}: nothing can be written to the folder {folder}.'
    )


def _interrupt(*_: Any) -> None:
  # An exception could get lost inside of JAX, and ending in an orderly way
  # crashes while XLA is computing.
  os._exit(_fail('interrupted', 130))


def _fail(error: Any, status: int) -> int:
  """Tells an error in one line; returns the exit status."""
  print(f'error: {error}', file=sys.stderr, flush=True)
  return status
