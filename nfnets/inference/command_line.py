"""What the commands on finished networks share: arguments, errors, exit status.

`python -m nfnets.classify`, `embed` and `export` print results on standard
output and everything else on standard error. Their exit status is 0 if all went
well, 1 for a failure, be it of a single image, and 2 for a wrong command.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
import difflib
import functools
import importlib.util
import io
import logging
import os
import signal
import sys
from typing import Any
import warnings

from nfnets import dataset_names, errors, messages, paths
from nfnets.inference import networks, runtimes
from nfnets.weights import fetching


class Parser(argparse.ArgumentParser):
  """A parser that expands every ~ and names the nearest of misspelt options."""

  def parse_args(self, args=None, namespace=None):
    """Parse arguments.

    Raises:
      UserError: if weights, a dataset or a run that they name do not exist.
    """
    args = sys.argv[1:] if args is None else args
    known = self._option_string_actions
    for arg in [] if self._subparsers else args:
      option = arg.partition('=')[0]
      if option == '--':
        break
      if option.startswith('--') and option not in known:
        close = difflib.get_close_matches(option, known, n=1)
        hint = ''.join(f' Did you mean {name}?' for name in close)
        self.error(f'There is no option {option}.{hint}')
    parsed = super().parse_args(args, namespace)
    names = ('weights', 'data', 'data_dir', 'run')
    check_exist(*(getattr(parsed, name, None) for name in names))
    return parsed

  def parse_known_args(self, args=None, namespace=None):
    """Parse what is known of the arguments."""
    try:
      args = paths.arguments(args)
    except errors.UserError as error:
      self.error(str(error))
    return super().parse_known_args(args, namespace)


def whole_number(low: int, high: int | None = None) -> Callable[[str], int]:
  """Return a function that reads a number from `low` on, for argparse."""

  def read(text: str) -> int:
    if not text.isdecimal() or not low <= int(text) <= (high or int(text)):
      bound = f'from {low} to {high}' if high else f'of at least {low}'
      raise argparse.ArgumentTypeError(f'{text} is no whole number {bound}')
    return int(text)

  return read


positive = whole_number(1)


def model_name(text: str) -> str:
  """Return the name of a model, for argparse."""
  from nfnets import zoo

  try:
    zoo.get_entry(text)
  except ValueError as error:
    raise argparse.ArgumentTypeError(str(error)) from error
  return text


def make_parser(
  name: str, doc: str, weights_required: bool = True
) -> argparse.ArgumentParser:
  """Return a parser with the arguments that `open_network` reads.

  Args:
    name: the command's.
    doc: of its module: the first paragraph introduces the help, and the last
      ends it.
    weights_required: whether --weights is.
  """
  description, *_, epilog = doc.split('\n\n')
  parser = Parser(
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
    'weights, which are downloaded once; timm/NAME or '
    'hf://org/repo[@revision] for weights from the Hugging Face Hub',
  )
  parser.add_argument(
    '--model',
    type=model_name,
    metavar='NAME',
    help='model of the weights (recognized from the file)',
  )
  parser.add_argument(
    '--image_size',
    type=positive,
    metavar='N',
    help="image size in pixels (the model's test size)",
  )
  return parser


def add_runtime_arguments(parser: argparse.ArgumentParser) -> None:
  """Add the arguments that say what computes the network, and how."""
  parser.add_argument(
    '--runtime',
    choices=runtimes.RUNTIMES,
    default='auto',
    help='JAX, ONNX Runtime, OpenVINO, or the fastest installed one for this '
    'device (auto)',
  )
  parser.add_argument(
    '--precision',
    choices=runtimes.PRECISIONS,
    default='float32',
    help='precision of the network (float32). bfloat16 is about twice as fast '
    'in OpenVINO on a CPU with AVX-512 bfloat16, and faster with AMX. Logits '
    'change by up to 4%% of the largest, and the most probable class of 0 to '
    '6%% of the images (random weights; see the table in docs/runtimes.md)',
  )
  parser.add_argument(
    '--threads',
    type=positive,
    metavar='N',
    help='number of threads of ONNX Runtime or OpenVINO (one per core)',
  )


def add_tta(parser: argparse.ArgumentParser) -> None:
  """Add the argument `--tta`, which `open_network` reads."""
  parser.add_argument(
    '--tta',
    choices=networks.TTA,
    help='test-time augmentation: average over the image and its mirror image '
    '(flip, twice the time), or over ten crops (crops, ten times)',
  )


def add_data_arguments(
  parser: argparse.ArgumentParser, required: bool = False
) -> None:
  """Add the arguments that `open_data` reads."""
  parser.add_argument(
    '--data',
    required=required,
    metavar='DATA',
    help='a folder of images with a subfolder per class, or the name of a '
    'prepared TFDS dataset',
  )
  parser.add_argument(
    '--data_dir',
    metavar='DIR',
    help="the TFDS data directory (TFDS's default)",
  )


def add_batch_size(parser: argparse.ArgumentParser, default: int) -> None:
  """Add the argument `--batch_size`."""
  parser.add_argument(
    '--batch_size',
    type=positive,
    default=default,
    metavar='N',
    help=f'images per batch ({default})',
  )


def add_run_or_data(parser: argparse.ArgumentParser) -> None:
  """Add RUN, and what stands in its place for weights that are no run's."""
  parser.add_argument('run', nargs='?', metavar='RUN', help='folder of a run')
  add_data_arguments(parser)


def check_run_or_data(
  parser: argparse.ArgumentParser,
  args: argparse.Namespace,
  without_run: tuple[str, ...],
) -> None:
  """End the command where RUN and what it settles are both given, or neither.

  Args:
    parser: has `add_run_or_data`.
    args: the parsed arguments.
    without_run: the arguments that are needed where there is no RUN.
  """
  names = ('weights', 'data', 'data_dir', 'model', 'image_size')
  others = [f'--{n}' for n in names if getattr(args, n) is not None]
  if args.run is not None and others:
    parser.error(f'RUN has its own settings; {", ".join(others)} cannot be set')
  if args.run is None and any(getattr(args, n) is None for n in without_run):
    needed = ' and '.join(f'--{n}' for n in without_run)
    parser.error(f'RUN is needed, or {needed}')


def run(command: Callable[[Any], int], args: Any) -> int:
  """Run a command; return its exit status, with errors told in one line."""
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      # Names of files can hold what the terminal's encoding has not.
      stream.reconfigure(errors='backslashreplace')
  warnings.filterwarnings('ignore', module=r'PIL\.')
  # The root has this handler before anything logs, because Python would
  # otherwise add one of its own, which prints each line again with a prefix.
  handler = logging.StreamHandler()
  handler.setFormatter(logging.Formatter('%(message)s'))
  log = logging.getLogger()
  log.addHandler(handler)
  logging.getLogger('nfnets').setLevel(logging.INFO)
  previous = signal.getsignal(signal.SIGINT)
  if previous is signal.default_int_handler:  # Not where it is ignored.
    signal.signal(signal.SIGINT, _interrupt)
  try:
    return command(args)
  except errors.UserError as error:
    return _fail(error, error.status)
  except ModuleNotFoundError as error:
    return _fail(
      f'this needs a package that is not installed: {error.name}; pip install '
      '".[train]" in the folder of this project.',
      1,
    )
  except KeyboardInterrupt:
    return _fail('interrupted', 130)
  except OSError as error:
    if error.filename is not None:
      return _fail(f'{error.filename}: {messages.one_line(error)}', 1)
    # Nobody reads the results, or they cannot be written. Python would try
    # once more at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1 if isinstance(error, BrokenPipeError) else _fail(error, 1)
  finally:
    signal.signal(signal.SIGINT, previous)
    log.removeHandler(handler)


def command(
  main: Callable[[Sequence[str] | None], int],
) -> Callable[[Sequence[str] | None], int]:
  """Have a `main` do what `run` does: a decorator."""

  @functools.wraps(main)
  def wrapped(argv: Sequence[str] | None = None) -> int:
    return run(main, argv)

  return wrapped


def let_interrupts_raise() -> None:
  """Have an interrupt raise KeyboardInterrupt, for the rest of a command.

  So that what was begun is cleaned up, at the risk that Python crashes instead
  if XLA is computing.
  """
  if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def check_exist(
  weights: str | None = None,
  data: str | None = None,
  data_dir: str | None = None,
  run: str | None = None,
) -> None:
  """Raise UserError where weights, a dataset or a run do not exist.

  Before what takes seconds to import. What is in a bucket, or has to be
  fetched, is not looked for yet.
  """
  if weights:
    with errors.prefix(weights):
      fetching.check(weights)
  if data:
    dataset_names.check(data, data_dir)
  if run and not paths.is_remote(run):
    info = paths.path(run) / 'run.json'
    if not info.is_file():
      raise errors.UserError(
        f'{run} is no folder of a run: there is no {info}.'
      )


def open_network(
  args: argparse.Namespace, throughput: bool = False
) -> networks.Network:
  """Read the weights that the arguments name.

  Args:
    args: of `make_parser`; without those of `add_runtime_arguments`, JAX
      computes the network.
    throughput: whether many images matter rather than the time of one call.

  Raises:
    UserError: if they cannot be read or are of no model.
  """
  options = {
    name: getattr(args, name)
    for name in ('runtime', 'precision', 'threads', 'tta')
    if hasattr(args, name)
  }
  with errors.prefix(args.weights):
    return networks.open_network(
      *(args.weights, args.model, args.image_size),
      **options,
      throughput=throughput,
    )


def open_data(args: argparse.Namespace) -> Any:
  """Open the dataset that the arguments name; see `load_builder`.

  Raises:
    UserError: if there is none, or it has no images with labels.
  """
  from nfnets.data import dataset

  return dataset.load_builder(args.data, args.data_dir)


def check_images_can_be_read() -> None:
  """Raise UserError if a package that prepares images is missing."""
  check_installed('Reading images', ('PIL', 'simplejpeg', 'tqdm'), 'images')


def check_installed(what: str, names: Iterable[str], extra: str) -> None:
  """Raise UserError if a package of an extra is missing.

  Args:
    what: the purpose of the packages, in words.
    names: modules that must be importable.
    extra: the extra of the project that has them.
  """
  missing = [name for name in names if importlib.util.find_spec(name) is None]
  if missing:
    raise errors.UserError(
      f'{what} needs packages that are not installed: {", ".join(missing)}; '
      f'pip install ".[{extra}]" in the folder of this project.'
    )


def check_output(path: str, suffix: str = '', option: str = '--output') -> None:
  """Raise UserError unless a file can be written, as far as one sees.

  Args:
    path: the file.
    suffix: required suffix of its name.
    option: the argument that names it.
  """
  target = paths.path(path)
  folder = str(target.parent)
  if not path.endswith(suffix):
    raise errors.UserError(f'{option}={path} does not end in {suffix}.', 2)
  reason = ''
  if paths.is_remote(path):
    with errors.prefix(f'{option}={path}'):
      paths.make_folder(folder)
  elif not os.path.isdir(folder):
    reason = f': there is no folder {folder}'
  elif target.is_dir():
    reason = ' is a folder'
  elif not os.access(folder, os.W_OK):
    reason = f': nothing can be written to the folder {folder}'
  if reason:
    raise errors.UserError(f'{option}={path}{reason}.')


def _interrupt(*_: Any) -> None:
  # An exception could get lost inside of JAX, and ending in an orderly way
  # crashes while XLA is computing.
  os._exit(_fail('interrupted', 130))


def _fail(error: Any, status: int) -> int:
  print(f'error: {error}', file=sys.stderr, flush=True)
  return status
