"""Which images a command is given: files, folders, patterns, lists, datasets.

They are enumerated while the network runs, in an order that depends on nothing
but the names.
"""

import argparse
from collections.abc import Callable, Iterator
import fnmatch
import functools
import glob
import io
import os
import pathlib
import sys
from typing import IO, Any, NamedTuple

import numpy as np

from nfnets import errors
from nfnets import paths as paths_lib
from nfnets.inference import command_line, images

# The name of an image, or of a list, that comes from standard input.
STDIN = '-'
_CHUNK = 2**16  # Bytes of a list.
_SPLITS = ('train', 'valid', 'train_and_valid', 'test')


class Item(NamedTuple):
  """An image that is still to be read.

  Attributes:
    name: its name in results.
    read: returns the image, as `Network.preprocess` takes it, and its label,
      None if that is unknown. The argument says whether to look for damage
      that preprocessing may miss; see `images.read_image`.
  """

  name: str
  read: Callable[[bool], tuple[bytes | np.ndarray, int | None]]


class Source(NamedTuple):
  """Images, and what is known about them beforehand.

  Attributes:
    items: returns all images, from the first on whenever it is called.
    count: returns the number of images, which takes a while; None if only
      reading them all tells.
    class_names: names of the labels for people; None without labels.
    label_names: names of the labels in the dataset: WordNet ids for ImageNet.
  """

  items: Callable[[], Iterator[Item]]
  count: Callable[[], int] | None
  class_names: tuple[str, ...] | None = None
  label_names: tuple[str, ...] | None = None


def add_arguments(
  parser: argparse.ArgumentParser, suffixes: tuple[str, ...], has_output: bool
) -> None:
  """Add IMAGE and what replaces it, `--output` and `--resume`.

  Args:
    parser: the command's parser.
    suffixes: suffixes of its output files.
    has_output: whether --output is required.
  """
  parser.add_argument(
    'paths',
    nargs='*',
    metavar='IMAGE',
    help='an image in any format that Pillow reads; a folder: all images in '
    'it, at any depth, except hidden ones and links to folders; a pattern in '
    "quotes, such as 'photos/**/*.jpg'; or - for an image from standard input",
  )
  parser.add_argument(
    '--list',
    metavar='FILE',
    help='a file with more paths, separated by newlines or NULs; - for '
    'standard input',
  )
  command_line.add_data_arguments(parser)
  parser.add_argument(
    '--split',
    choices=_SPLITS,
    help='the split of --data, which replaces IMAGE (test)',
  )
  command_line.add_batch_size(parser, 8)
  command_line.add_tta(parser)
  parser.add_argument(
    '--output',
    required=has_output,
    metavar='FILE',
    help=f'the file to write: {", ".join(suffixes[:-1])} or {suffixes[-1]}. '
    'It replaces an existing file at the end',
  )
  parser.add_argument(
    '--resume',
    action='store_true',
    help='continue the output of a command that was stopped, if there is one',
  )


def check_arguments(
  parser: argparse.ArgumentParser,
  args: argparse.Namespace,
  suffixes: tuple[str, ...],
) -> None:
  """End the program with a message if arguments do not go together."""
  has_paths = bool(args.paths) or args.list is not None
  output = args.output
  for is_wrong, message in (
    (args.data and has_paths, '--data stands instead of IMAGE and --list'),
    (
      not args.data and not has_paths,
      'the following arguments are required: IMAGE, or --list or --data',
    ),
    (
      not args.data and (args.split or args.data_dir),
      '--split and --data_dir belong to --data',
    ),
    (
      [*args.paths, args.list].count(STDIN) > 1,
      'standard input, -, can be read once',
    ),
    (
      output is not None and not output.endswith(suffixes),
      f'--output={output} ends in none of {", ".join(suffixes)}',
    ),
    (
      args.resume and output is None,
      '--resume goes on with the file of --output, which is missing',
    ),
  ):
    if is_wrong:
      parser.error(message)
  args.split = args.split or 'test'


def may_be_many(args: argparse.Namespace) -> bool:
  """Return whether the images may fill more than one batch."""
  return (
    args.data is not None
    or args.list is not None
    or len(args.paths) > args.batch_size
    or not all(os.path.isfile(path) for path in args.paths)
  )


def open_source(args: argparse.Namespace) -> Source:
  """Return the images that the arguments name.

  Raises:
    UserError: if a list or a dataset cannot be read.
  """
  if args.data is not None:
    return _open_data(args)
  paths, file = args.paths, args.list
  is_file = file not in (None, STDIN) and not paths_lib.is_remote(file)
  if is_file:
    with errors.prefix(f'--list={file}', status=2):
      is_file = os.path.isfile(paths_lib.path(file))
      open(paths_lib.path(file), 'rb').close()

  def names() -> Iterator[str]:
    for name in paths:
      # A shell's * stands for @eaDir as well, though not for hidden names.
      base = os.path.basename(name.rstrip(os.sep))
      if len(paths) > 1 and base[:1] != '.' and images.is_ignored_name(base):
        continue
      yield from [STDIN] if name == STDIN else find(name)
    for name in read_list(file) if file is not None else ():
      yield from find(name, is_pattern=False)

  # A bucket is not listed twice for that, nor a pipe read.
  is_countable = (file is None or is_file) and not any(
    map(paths_lib.is_remote, paths)
  )
  return Source(
    lambda: (Item(name, functools.partial(_read, name)) for name in names()),
    (lambda: sum(1 for _ in names())) if is_countable else None,
  )


def _open_data(args: argparse.Namespace) -> Source:
  """Return the images of a split of a dataset, in its order."""
  builder, split = command_line.open_data(args), args.split
  from nfnets.data import builders
  from nfnets.data.folders import Folder

  total = builders.num_examples(builder, split)
  name = builders.example_names(builder, split)
  if isinstance(builder, Folder):
    labels = builder.labels(split)

    def item(i: int) -> Item:
      return Item(name(i), functools.partial(_read, name(i), label=labels[i]))

  else:
    examples = builders.SplitReader(builder, split)

    def item(i: int) -> Item:
      return Item(name(i), lambda check: examples.example(i))

  return Source(
    lambda: map(item, range(total)),
    lambda: total,
    tuple(builders.class_names(builder)),
    tuple(builders.label_names(builder)),
  )


def _read(path: str, check: bool, label: int | None = None) -> Any:
  if path == STDIN:
    return images.read(sys.stdin.buffer.read(), check), label
  return images.read_image(path, check), label


def find(name: str, is_pattern: bool = True) -> Iterator[str]:
  """Yield the images that a path stands for.

  In a folder these are the files, sorted, at any depth, whose suffix is that of
  an image. Links to folders are left out, and so are names that
  `images.is_ignored_name`. A pattern stands for the same among its matches and
  in folders that match; and for files of every kind if it ends in a suffix.

  Args:
    name: a file, which need not exist; a folder; a pattern with *, ?, [...]
      and **; or a file or a folder in a bucket.
    is_pattern: whether the name may be a pattern.

  Yields:
    Paths. A folder that cannot be listed, or has no images, is among them, and
    so is a pattern without a match: `read_image` says what is wrong with it.

  Raises:
    OSError: if a bucket cannot be listed.
    UserError: for other schemes.
  """
  if paths_lib.is_remote(name):
    found = (
      f'{name.rstrip("/")}/{below}'
      for below in paths_lib.names(name)
      if images.is_image_name(below)
      and not any(map(images.is_ignored_name, below.split('/')))
    )
  elif paths_lib.path(name).is_dir():
    found = _walk(name)
  elif is_pattern and glob.has_magic(name) and not os.path.lexists(name):
    found = iter(_matches(name))
  else:
    found = iter(())
  yield next(found, name)
  yield from found


def _walk(folder: str) -> Iterator[str]:
  try:
    with os.scandir(folder) as entries:
      # With the / of folders, this is the order of all the paths.
      found = sorted(
        (entry.name + '/' * entry.is_dir(follow_symlinks=False), entry.path)
        for entry in entries
        if not images.is_ignored_name(entry.name)
      )
  except OSError:
    yield folder
    return
  for name, path in found:
    if name.endswith('/'):
      yield from _walk(path)
    elif images.is_image_name(name) and not os.path.isdir(path):
      yield path


def _matches(pattern: str) -> list[str]:
  """Return the images that a pattern stands for, sorted."""
  whole = pathlib.Path(pattern)
  root = pathlib.Path(whole.anchor)
  rest = whole.relative_to(root)
  any_kind = whole.suffix and not glob.has_magic(whole.suffix)
  # Such names match only patterns that name them: '.*' and '@eaDir'.
  named = [part for part in rest.parts if images.is_ignored_name(part)]
  found = set()
  with errors.prefix(pattern, status=2):
    for path in root.glob(str(rest)):
      if any(
        images.is_ignored_name(part)
        and not any(fnmatch.fnmatch(part, name) for name in named)
        for part in path.relative_to(root).parts
      ):
        continue
      if path.is_dir():
        found.update(() if path.is_symlink() else _walk(str(path)))
      elif any_kind or images.is_image_name(path.name):
        found.add(str(path))
  return sorted(found)


def read_list(name: str) -> Iterator[str]:
  """Yield the paths in a list; those of standard input as they arrive.

  Args:
    name: a file with a path on every line, or with a NUL after every path, as
      `find -print0` writes them; or `STDIN`.

  Raises:
    OSError: if it cannot be read.
  """
  if name == STDIN:
    file = open(sys.stdin.fileno(), 'rb', buffering=0, closefd=False)
  else:
    file = io.BytesIO(paths_lib.read_bytes(name))
  with file:
    for entry in filter(None, _entries(file)):
      yield paths_lib.expand(os.fsdecode(entry))


def _entries(file: IO[bytes]) -> Iterator[bytes]:
  """Split a list at NULs if there is one in the beginning, or at lines."""
  rest, end = b'', None
  while chunk := file.read(_CHUNK):
    if end is None:
      chunk = chunk.removeprefix(b'\xef\xbb\xbf')
      end = b'\0' if b'\0' in chunk else b'\n'
    *entries, rest = (rest + chunk).split(end)
    for entry in entries:
      yield entry if end == b'\0' else entry.removesuffix(b'\r')
  yield rest.removesuffix(b'\r')
