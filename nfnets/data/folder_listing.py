"""Which pictures there are in a folder, of which class and split."""

import collections
from collections.abc import Iterable, Iterator
import csv
import os
import re
import stat
from typing import NamedTuple
import unicodedata

from absl import logging

from nfnets.data.errors import DatasetError
from nfnets.inference import images

# The split that the pictures in a folder of that name belong to.
_SPLITS = {
  'train': 'train',
  'training': 'train',
  'val': 'validation',
  'valid': 'validation',
  'validation': 'validation',
  'test': 'test',
  'testing': 'test',
}
_TABLES = ('labels.csv', 'metadata.csv')
_COLUMNS = ('file_name', 'label')
_EXPECTED = (
  'Expected are DIR/CLASS/PICTURES, or DIR/train/CLASS/PICTURES with val or '
  'test beside train, or a labels.csv (file_name,label) beside the pictures.'
)


class Picture(NamedTuple):
  """A picture in a folder.

  Attributes:
    path: Of the file, relative to the folder.
    label: The name of its class.
    split: 'train', 'validation' or 'test'.
    size: In bytes.
    mtime_ns: When the file was last changed.
  """

  path: str
  label: str
  split: str
  size: int
  mtime_ns: int


def list_pictures(root: str) -> list[Picture]:
  """Finds the pictures of a folder, by class and path in natural order.

  Args:
    root: The folder.

  Returns:
    The pictures of at least two classes. Where the folder has no splits, they
    are all of 'train'.

  Raises:
    DatasetError: The folder is of none of the known layouts, or cannot be read.
  """
  try:
    pictures = _Lister(root).pictures()
  except OSError as error:
    raise DatasetError(
      f'{error.filename or root} cannot be read ({error.strerror}).'
    ) from error
  _check_classes(root, pictures)
  keys = {label: natural(label) for label in {p.label for p in pictures}}
  return sorted(pictures, key=lambda p: (keys[p.label], natural(p.path)))


def natural(name: str) -> tuple:
  """Returns what sorts names as people do: class2 before class10."""
  parts = re.split(r'([0-9]+)', name)
  parts[1::2] = map(int, parts[1::2])
  return parts, name


def some(names: Iterable[str], count: int = 5) -> str:
  """Returns the first of some names and how many more there are."""
  names = list(names)
  more = f' and {len(names) - count:,} more' if len(names) > count else ''
  return ', '.join(names[:count]) + more


class _Lister:
  """Lists the pictures of one folder."""

  def __init__(self, root: str):
    self._root = root
    self._walked: set[tuple[int, int]] = set()
    self._loose: list[str] = []  # Pictures that belong to no class.
    self._ignored = collections.Counter()  # Other files, by suffix.
    self._empty: list[str] = []

  def pictures(self) -> list[Picture]:
    """Returns all of them; see `list_pictures`."""
    table = self._table('')
    if table:
      found = self._of_table(table, '')
    elif splits := self._split_folders():
      found = []
      for folder, split in splits.items():
        self._walked.clear()
        pictures = self._of_folder(folder, split)
        if not pictures and not self._empty:
          raise DatasetError(
            f'{self._full(folder)} has no folders of classes. If its pictures '
            'have no labels, they have to be elsewhere.'
          )
        found += pictures
    else:
      found = self._of_folder('', 'train')
    if not found:
      raise DatasetError(self._nothing())
    if self._empty:
      raise DatasetError(
        f'{self._root}: no pictures in {some(self._empty)}. A folder stands '
        'for a class: put pictures there, or delete it.'
      )
    if self._loose:
      logging.warning(
        '%s: left out pictures that belong to no class: %s.',
        self._root,
        some(self._loose, 3),
      )
    if self._ignored:
      logging.info(
        '%s: left out files whose suffix is not that of an image: %s.',
        self._root,
        self._suffixes(),
      )
    return found

  def _of_folder(self, folder: str, split: str) -> list[Picture]:
    """Lists the pictures of a split."""
    table = self._table(folder)
    if table:
      return self._of_table(table, folder, split)
    loose, classes = self._scan(folder)
    self._loose += [path for path, _ in loose]
    # What a link leads to is looked at where it is, if it is here.
    self._enter(folder)
    for path in classes:
      if not os.path.islink(self._full(path)):
        self._enter(path)
    found = []
    for path in classes:
      own = {}
      if not os.path.islink(self._full(path)) or self._enter(path):
        for file, status in self._walk(path):
          # A file that several links lead to counts once.
          own.setdefault((status.st_dev, status.st_ino), (file, status))
      label = os.path.basename(path)
      found += [
        Picture(file, label, split, status.st_size, status.st_mtime_ns)
        for file, status in own.values()
      ]
      if not own:
        self._empty.append(path)
    return found

  def _of_table(
    self, table: str, folder: str, split: str | None = None
  ) -> list[Picture]:
    """Lists the pictures that a table names; by its folders without `split`."""
    rows = _read_table(self._full(table))
    missing, found = [], {}
    for name, (label, line) in rows.items():
      path = os.path.normpath(os.path.join(folder, name))
      if os.path.isabs(name) or os.path.normpath(name).startswith('../'):
        raise DatasetError(
          f'{self._full(table)}, line {line}: {name} is not in the folder of '
          'this file.'
        )
      try:
        status = os.stat(self._full(path))
      except OSError:
        status = None
      if status is None or not stat.S_ISREG(status.st_mode):
        missing.append(name)
      elif path in found:
        raise DatasetError(
          f'{self._full(table)}, line {line}: {name} is there twice.'
        )
      else:
        found[path] = label, status
    if missing:
      raise DatasetError(
        f'{self._full(table)} names files that are not there: {some(missing)}.'
      )
    self._enter(folder)
    listed = found.keys()
    self._loose += [p for p, _ in self._walk(folder) if p not in listed]
    splits = dict.fromkeys(found, split or 'train')
    if split is None:  # The table of all: train/a.jpg, test/b.jpg.
      own = {p: _SPLITS.get(p.split(os.sep)[0].lower()) for p in found}
      if set(own.values()) >= {'train'} and None not in own.values():
        splits = own
    return [
      Picture(path, label, splits[path], status.st_size, status.st_mtime_ns)
      for path, (label, status) in found.items()
    ]

  def _split_folders(self) -> dict[str, str]:
    """Returns {folder: split}, or nothing if the folders are classes."""
    _, folders = self._scan('')
    splits = {x: _SPLITS[x.lower()] for x in folders if x.lower() in _SPLITS}
    kinds = collections.Counter(splits.values())
    others = []
    if splits:
      others = [x for x in folders if x not in splits and any(self._walk(x))]
    self._walked.clear()  # It is all looked at once more.
    self._ignored.clear()
    if not splits or (others and (len(kinds) == 1 or 'train' not in kinds)):
      return {}  # There is a class named 'train', beside 'bus' and 'car'.
    if others:
      raise DatasetError(
        f'{self._root} has folders of splits ({some(splits)}) beside others '
        f'({some(others)}). If the latter are classes, they belong into the '
        'former; if not, elsewhere.'
      )
    for split, count in kinds.items():
      if count > 1:
        same = [x for x, of in splits.items() if of == split]
        raise DatasetError(
          f'{self._root} has {" and ".join(same)}, which are both the '
          f'{split} split. Put their pictures together.'
        )
    if 'train' not in kinds:
      raise DatasetError(
        f'{self._root} has {some(splits)} and no train: there is nothing to '
        f'train on. {_EXPECTED}'
      )
    return splits

  def _table(self, folder: str) -> str | None:
    paths = [os.path.join(folder, name) for name in _TABLES]
    paths = [path for path in paths if os.path.isfile(self._full(path))]
    if len(paths) > 1:
      raise DatasetError(
        f'{self._full(folder)} has both {" and ".join(_TABLES)}. '
        'Keep the one that has the labels.'
      )
    return paths[0] if paths else None

  def _walk(self, folder: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yields the pictures below a folder, those behind links last."""
    files, folders = self._scan(folder)
    yield from files
    for path in folders:
      if self._enter(path):
        yield from self._walk(path)

  def _enter(self, folder: str) -> bool:
    """Returns whether a folder is seen for the first time in this split."""
    status = os.stat(self._full(folder))
    key = status.st_dev, status.st_ino
    is_new = key not in self._walked
    self._walked.add(key)
    return is_new

  def _scan(
    self, folder: str
  ) -> tuple[list[tuple[str, os.stat_result]], list[str]]:
    """Returns the pictures in a folder itself, and the folders in it."""
    files, folders = [], []
    with os.scandir(self._full(folder)) as entries:
      entries = sorted(entries, key=lambda e: (e.is_symlink(), e.name))
    for entry in entries:
      if entry.name.startswith('.') or entry.name == '__MACOSX':
        continue
      path = os.path.join(folder, entry.name)
      if entry.is_dir():
        folders.append(path)
      elif not images.is_image_name(entry.name):
        if entry.name not in _TABLES:
          self._ignored[os.path.splitext(entry.name)[1] or 'none'] += 1
      elif entry.is_file():
        files.append((path, entry.stat()))
      else:
        raise DatasetError(
          f'{self._full(path)} is a link to nothing, or not a file. '
          'Delete it, or mend it.'
        )
    return files, folders

  def _full(self, path: str) -> str:
    return os.path.join(self._root, path) if path else self._root

  def _suffixes(self) -> str:
    return ', '.join(f'{x} {n}' for x, n in self._ignored.most_common(5))

  def _nothing(self) -> str:
    """The message for a folder without pictures in classes."""
    if self._loose:
      return (
        f'{self._root} has pictures ({some(self._loose)}), but nothing says of '
        f'which class they are. {_EXPECTED}'
      )
    others = f' (files by suffix: {self._suffixes()})' if self._ignored else ''
    return f'There are no pictures in {self._root}{others}. {_EXPECTED}'


def _read_table(path: str) -> dict[str, tuple[str, int]]:
  """Returns {file_name: (label, line)} of a CSV file."""
  rows = {}
  try:
    # Spreadsheets put a byte order mark first.
    with open(path, newline='', encoding='utf-8-sig') as file:
      reader = csv.DictReader(file, skipinitialspace=True)
      columns = [column.strip() for column in reader.fieldnames or ()]
      reader.fieldnames = columns
      if not set(_COLUMNS) <= set(columns):
        raise DatasetError(
          f'{path} must have the columns file_name and label, separated by '
          f'commas. Its first line is: {",".join(columns) or "empty"}'
        )
      for row in reader:
        name, label = (row[column] for column in _COLUMNS)
        if not name or not (label or '').strip():
          raise DatasetError(
            f'{path}, line {reader.line_num}: the file_name or the label is '
            'missing.'
          )
        if name in rows:
          raise DatasetError(
            f'{path}, line {reader.line_num}: {name} is there twice.'
          )
        rows[name] = label.strip(), reader.line_num
  except OSError as error:
    raise DatasetError(f'{path} cannot be read ({error.strerror}).') from error
  except UnicodeDecodeError as error:
    raise DatasetError(f'{path} is not in UTF-8; save it so.') from error
  except csv.Error as error:
    raise DatasetError(f'{path} is not a CSV file: {error}.') from error
  if not rows:
    raise DatasetError(f'{path} names no files.')
  return rows


def _check_classes(root: str, pictures: list[Picture]) -> None:
  """Raises DatasetError if the classes cannot be told apart or compared."""
  by_split = collections.defaultdict(set)
  for picture in pictures:
    by_split[picture.split].add(picture.label)
  classes = set().union(*by_split.values())
  alike = {}
  for name in sorted(classes):
    key = unicodedata.normalize('NFC', name).casefold()
    if key in alike:
      raise DatasetError(
        f'{root}: the classes {alike[key]!r} and {name!r} differ by case alone '
        '(or by how an accent is written). Rename one, or put them together.'
      )
    alike[key] = name
  for split, names in by_split.items():
    lacking = sorted(classes - names, key=natural)
    if lacking:
      raise DatasetError(
        f'{root}: the {split} split has no pictures of {some(lacking)}, other '
        'splits do. Every class must be in every split.'
      )
  if len(classes) == 1:
    (name,) = classes
    message = (
      f'{root} has pictures of one class only, {name!r}; a classifier needs '
      'two or more.'
    )
    start = os.path.join(name, '')
    below = {
      p.path.removeprefix(start).split(os.sep)[0]
      for p in pictures
      if p.path.startswith(start) and p.path.count(os.sep) > 1
    }
    if len(below) > 1:
      raise DatasetError(
        f'{message} If {some(sorted(below, key=natural))} are the classes or '
        f'splits, the folder to give is {os.path.join(root, name)}.'
      )
    raise DatasetError(f'{message} {_EXPECTED}')
