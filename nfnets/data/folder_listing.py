"""Which pictures there are in a folder, of which class and split."""

import collections
from collections.abc import Iterable
import csv
import os
import re
from typing import NoReturn
import unicodedata

from absl import logging

from nfnets.data.picture_files import Picture
from nfnets.errors import UserError
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
_EXPECTED = (
  'Expected are DIR/CLASS/PICTURES, or DIR/train/CLASS/PICTURES with val or '
  'test beside train, or a labels.csv (file_name,label) beside the pictures. '
  'For what TFDS has prepared, give its name and --data_dir instead.'
)


def list_pictures(root: str) -> list[Picture]:
  """Find the pictures of a folder, by class and path in natural order.

  Args:
    root: The folder.

  Returns:
    The pictures of at least two classes. Where the folder has no splits, they
    are all of 'train'.

  Raises:
    UserError: The folder is of none of the known layouts, or cannot be read.
  """
  try:
    pictures = _Lister(root).pictures()
  except OSError as error:
    raise UserError(
      f'{error.filename or root} cannot be read ({error.strerror}).'
    ) from error
  keys = {label: natural(label) for label in {p.label for p in pictures}}
  return sorted(pictures, key=lambda p: (keys[p.label], natural(p.path)))


def natural(name: str) -> tuple:
  """Return what sorts names as people do: class2 before class10."""
  parts = re.split(r'([0-9]+)', name)
  parts[1::2] = map(int, parts[1::2])
  return parts, name


def some(names: Iterable[str], count: int = 5) -> str:
  """Return the first of some names and how many more there are."""
  names = list(names)
  more = f' and {len(names) - count:,} more' if len(names) > count else ''
  return ', '.join(names[:count]) + more


class _Lister:
  """Lists the pictures of one folder.

  Attributes:
    files: What has the suffix of a picture, at any depth.
    folders: The folders and the tables, at any depth.
    classes: The names of the classes, of the empty ones, too.
    others: How many files of each other suffix there are.
    unreadable: Pictures in formats that are not read, by what to do about them.
  """

  def __init__(self, root: str):
    self.root = root
    self.files: dict[str, os.stat_result] = {}
    self.folders: list[str] = []
    self.classes: set[str] = set()
    self.others = collections.Counter()
    self.unreadable = collections.defaultdict(list)

  def pictures(self) -> list[Picture]:
    self._walk()
    splits = {'': 'train'} if self._table('') else self._splits()
    found = []
    for folder, split in splits.items():
      if table := self._table(folder):
        found += self._of_table(table, folder, split)
      else:
        found += self._of_classes(folder, split)
    listed = {picture.path for picture in found}
    loose = [path for path in self.files if path not in listed]
    left_out = ''.join(
      f' {some(paths, 3)}: {reason}.'
      for reason, paths in self.unreadable.items()
    )
    suffixes = ', '.join(f'{x} {n}' for x, n in self.others.most_common(5))
    if not found and loose:
      self._fail(
        f' has pictures ({some(loose)}), but nothing says of which class '
        f'they are. {_EXPECTED}'
      )
    if not found:
      self._fail(
        f': there are no pictures in it that can be read (files by suffix: '
        f'{suffixes or "none"}).{left_out} {_EXPECTED}'
      )
    self._check_classes(found, {*splits.values()}, left_out)
    if left_out:
      logging.warning('%s: left out some files.%s', self.root, left_out)
    if loose:
      logging.warning(
        '%s: left out pictures that belong to no class: %s.',
        *(self.root, some(loose, 3)),
      )
    if suffixes:
      logging.info(
        '%s: left out files whose suffix is not that of an image: %s.',
        *(self.root, suffixes),
      )
    return found

  def _walk(self) -> None:
    """Visit each folder once in a split; links after everything else."""
    waiting, seen = collections.deque(['']), set()
    while waiting:
      folder = waiting.popleft()
      status = os.stat(self._full(folder))
      top = folder.split(os.sep)[0].lower()
      key = _SPLITS.get(top), status.st_dev, status.st_ino
      if key in seen:
        continue
      seen.add(key)
      with os.scandir(self._full(folder)) as entries:
        entries = sorted(entries, key=lambda e: (e.is_symlink(), e.name))
      inside = []
      for entry in entries:
        path = os.path.join(folder, entry.name)
        if images.is_ignored_name(entry.name):
          continue
        if entry.is_dir():
          self.folders.append(path)
          (waiting if entry.is_symlink() else inside).append(path)
        elif entry.name in _TABLES:
          self.folders.append(path)
        elif not images.is_image_name(entry.name):
          self.others[os.path.splitext(entry.name)[1] or 'none'] += 1
        elif reason := images.why_unreadable(entry.name):
          self.unreadable[reason].append(path)
        elif entry.is_file():
          self.files[path] = entry.stat()
        else:
          self._fail(
            f'/{path} is a link to nothing, or not a file. Delete or mend it.'
          )
      waiting.extendleft(reversed(inside))

  def _splits(self) -> dict[str, str]:
    """Return {folder: split}; all is of 'train' if the folders are classes."""
    top = [path for path in self.folders if os.sep not in path]
    splits = {x: _SPLITS[x.lower()] for x in top if x.lower() in _SPLITS}
    filled = {path.split(os.sep)[0] for path in self.files if os.sep in path}
    others = sorted(filled - splits.keys())
    kinds = set(splits.values())
    if not splits or (others and (len(kinds) == 1 or 'train' not in kinds)):
      return {'': 'train'}  # A class may be named 'train', beside 'bus'.
    if others or len(kinds) < len(splits) or 'train' not in kinds:
      self._fail(
        f' has the folders {some(sorted([*splits, *others]))}, which are not '
        'splits of one dataset. Needed are train, at most one of val, valid '
        'and validation, one of test and testing, and nothing beside them.'
      )
    return splits

  def _of_classes(self, folder: str, split: str) -> list[Picture]:
    start = os.path.join(folder, '') if folder else ''
    self.classes |= {
      unicodedata.normalize('NFC', os.path.basename(x))
      for x in self.folders
      if os.path.dirname(x) == folder and os.path.basename(x) not in _TABLES
    }
    found = []
    for path, status in self.files.items():
      label, is_inside, _ = path.removeprefix(start).partition(os.sep)
      if path.startswith(start) and is_inside:
        found.append(_picture(path, label, split, status))
    return found

  def _of_table(self, table: str, folder: str, split: str) -> list[Picture]:
    # However accents are written there, and here.
    alike = {unicodedata.normalize('NFC', path): path for path in self.files}
    missing, found = [], {}
    try:
      # Spreadsheets put a byte order mark first.
      with open(self._full(table), newline='', encoding='utf-8-sig') as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        columns = [column.strip() for column in reader.fieldnames or ()]
        reader.fieldnames = columns
        if not {'file_name', 'label'} <= set(columns):
          self._fail(
            f'/{table} must have the columns file_name and label, separated by '
            f'commas. Its first line is: {",".join(columns) or "empty"}'
          )
        for row in reader:
          name, label = row['file_name'], (row['label'] or '').strip()
          line = f'/{table}, line {reader.line_num}: '
          if not name or not label:
            self._fail(f'{line}the file_name or the label is missing.')
          path = os.path.normpath(os.path.join(folder, name))
          if not os.path.isfile(self._full(path)):
            path = os.path.join(folder, name.replace('\\', '/'))
            path = unicodedata.normalize('NFC', os.path.normpath(path))
            path = alike.get(path, os.sep)
          if path.startswith(('../', os.sep)):
            missing.append(name)
            continue
          if path in found:
            self._fail(f'{line}{name} is there twice.')
          found[path] = _picture(path, label, split, os.stat(self._full(path)))
    except (UnicodeDecodeError, csv.Error) as error:
      self._fail(f'/{table} is not a CSV file in UTF-8: {error}.')
    if missing:
      self._fail(f'/{table} names files that are not there: {some(missing)}.')
    own = {path: _SPLITS.get(path.split(os.sep)[0].lower()) for path in found}
    kinds = set(own.values())
    if not folder and 'train' in kinds and None not in kinds:
      # The table of all: train/a.jpg, test/b.jpg.
      return [p._replace(split=own[path]) for path, p in found.items()]
    return [*found.values()]

  def _check_classes(
    self, pictures: list[Picture], splits: set[str], left_out: str
  ) -> None:
    """Raise UserError if the classes cannot be told apart or compared."""
    by_split = collections.defaultdict(set)
    for picture in pictures:
      by_split[picture.split].add(picture.label)
    classes = sorted(self.classes.union(*by_split.values()), key=natural)
    alike = {}
    for name in sorted(classes):
      other = alike.setdefault(name.casefold(), name)
      if other != name:
        self._fail(
          f': the classes {other!r} and {name!r} differ by case alone. Rename '
          'one, or put them together.'
        )
    for split in sorted(splits | by_split.keys(), reverse=True):
      if lacking := [name for name in classes if name not in by_split[split]]:
        where = f' in the {split} split' if len(by_split) > 1 else ''
        self._fail(
          f': no pictures of {some(lacking)}{where}.{left_out} Every class '
          'must be in every split: add pictures, or delete its folders. '
          'Pictures without labels must be elsewhere.'
        )
    if len(classes) == 1:
      [name] = classes
      inner = [p.path.split(os.sep)[1:-1] for p in pictures]
      below = {folders[0] for folders in inner if folders}
      hint = _EXPECTED
      if len(below) > 1:
        hint = (
          f'If {some(sorted(below, key=natural))} are the classes or splits, '
          f'the folder to give is {os.path.join(self.root, name)}.'
        )
      self._fail(
        f' has pictures of one class only, {name!r}; a classifier needs two or '
        f'more. {hint}'
      )

  def _table(self, folder: str) -> str | None:
    paths = (os.path.join(folder, name) for name in _TABLES)
    return next((path for path in paths if path in self.folders), None)

  def _full(self, path: str) -> str:
    return os.path.join(self.root, path) if path else self.root

  def _fail(self, what: str) -> NoReturn:
    raise UserError(f'{self.root}{what}')


def _picture(
  path: str, label: str, split: str, status: os.stat_result
) -> Picture:
  # Macs write accents in another way than other systems.
  label = unicodedata.normalize('NFC', label)
  return Picture(path, label, split, status.st_size, status.st_mtime_ns)
