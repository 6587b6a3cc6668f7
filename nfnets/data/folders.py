"""Any folder of pictures as a dataset (`docs/datasets.md`).

It knows many layouts and formats, gives random access, and divides pictures
that come in one split.

Reading 100,000 files takes seconds to minutes, and decoding 10,000 as long, so
what was found in them is kept in the user's cache. Only files whose size or
time has changed are looked at again, and those that could not be decoded: what
reads them may have been installed.
"""

import collections
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
import hashlib
import json
import os
from typing import BinaryIO

from absl import logging
import tqdm

from nfnets import dataset_names, paths
from nfnets.data import folder_listing, picture_files
from nfnets.data.folder_listing import some
from nfnets.data.picture_files import Picture
from nfnets.errors import UserError, prefix
from nfnets.inference import images

# In folders of more pictures, those that are damaged are found in training.
MOST_DECODED = 10_000

_READ_THREADS = 16

# Only both ends are read of files larger than four times this, if they are
# compressed: then a change anywhere changes the size, or what follows it. A
# PNG even ends with checksums. Of bitmaps everything is read, as drawings and
# scans of one size may well have the same margins.
_END_BYTES = 16 * 1024
_COMPRESSED = (b'\xff\xd8\xff', b'\x89PNG', b'GIF8', b'RIFF')

# The held-out fraction of a split. Digests are uniform in [0, 2**64).
_HELD_OUT = 2**64 // 5


class Folder:
  """A folder of pictures.

  Attributes:
    root: The folder's absolute path.
    names: The names of the classes, by label.
    pictures: The pictures of each of our splits, in the order of examples.
      'test' is the test split, or else the validation split; 'valid' is the
      validation split, and 'train' and 'train_and_valid' are the training
      split. Where the folder has training and test splits alone, 'valid' is a
      part of the former and 'train' the rest; where it has a training split
      alone, a part of it has become the validation split.
    test_split_name: The split that 'test' is: 'test', or 'validation' where the
      folder has no test split.
    unreadable: {path: what is wrong} of the pictures that cannot be decoded.
      Of more than 10,000 pictures nobody tried.
  """

  def __init__(self, root: str):
    """List the pictures, and read those that it has not seen before.

    Args:
      root: The folder.

    Raises:
      UserError: It is missing, cannot be read or is of no known layout.
    """
    self.root = dataset_names.find_folder(root)
    pictures = _examine(self.root, folder_listing.list_pictures(self.root))
    self.names = list(dict.fromkeys(picture.label for picture in pictures))
    self.unreadable = {p.path: p.error for p in pictures if p.error}
    self._has_logged = False  # The unreadable examples.
    train, valid, test = (
      [p for p in pictures if p.split == split]
      for split in ('train', 'validation', 'test')
    )
    whole = train
    if not valid:
      chosen = held_out((p.label, p.digest) for p in train)
      valid = [p for p in train if p.digest in chosen]
      train = [p for p in train if p.digest not in chosen]
      whole = valid + train
      if not test:
        whole = train
        valid = [p._replace(split='validation') for p in valid]
        if not valid:
          raise UserError(
            f'{self.root}: no class has two different pictures, so there is '
            'nothing to evaluate on. Add pictures, or a test split.'
          )
        logging.info(
          '%s: held out %d of %d pictures for validation.',
          *(self.root, len(valid), len(pictures)),
        )
    self.test_split_name = 'test' if test else 'validation'
    self.pictures = {
      **{'train': train, 'valid': valid, 'train_and_valid': whole},
      'test': test or valid,
    }
    # Each once.
    self._all = {p.path: p for part in (train, valid, test) for p in part}
    large = [p for p in pictures if p.pixels > images.LARGE_PIXELS]
    if large:
      share = sum(p.pixels for p in large) / sum(p.pixels for p in pictures)
      logging.warning(
        '%s: %d of %d pictures have more than %.3g megapixels, and %.0f %% of '
        'all pixels: %s. They are decoded one at a time. Training reads copies '
        'of %.1f megapixels, which are kept in %s; evaluation reads the '
        'originals.',
        *(self.root, len(large), len(pictures), images.LARGE_PIXELS / 1e6),
        100 * share,
        some(f'{p.path} ({p.pixels / 1e6:.3g} megapixels)' for p in large),
        picture_files.REDUCED_PIXELS / 1e6,
        picture_files.copies_folder(),
      )
    if pairs := self.contradictions():
      logging.warning(
        '%s: the same pictures are there in two classes: %s.',
        *(self.root, some([f'{one} = {other}' for one, other in pairs], 1)),
      )

  def paths(self, split: str) -> list[str]:
    """Return the paths of a split's pictures, relative to the folder."""
    return [picture.path for picture in self.pictures[split]]

  def labels(self, split: str) -> list[int]:
    """Return the labels of a split's pictures."""
    labels = {name: label for label, name in enumerate(self.names)}
    return [labels[picture.label] for picture in self.pictures[split]]

  def duplicates(self) -> list[tuple[str, str]]:
    """Return pairs of files of the same content, in two different splits."""
    return self._copies(lambda picture: picture.split)

  def contradictions(self) -> list[tuple[str, str]]:
    """Return pairs of files of the same content, in two different classes."""
    return self._copies(lambda picture: picture.label)

  def _copies(self, key: Callable[[Picture], str]) -> list[tuple[str, str]]:
    first, pairs = {}, []
    for picture in self._all.values():
      other = first.setdefault(picture.digest, picture)
      if key(other) != key(picture):
        pairs.append((other.path, picture.path))
    return pairs

  def check_readable(self, paths: Iterable[str], skip_corrupt: bool) -> None:
    """Check that pictures can be decoded, as far as that is known.

    Args:
      paths: Some of the folder's pictures.
      skip_corrupt: Whether to log those that cannot, once, instead of raising.

    Raises:
      UserError: Some cannot. All of the folder that cannot are listed.
    """
    if not any(path in self.unreadable for path in paths):
      return
    count = f'{len(self.unreadable):,} of {len(self._all):,} pictures'
    each = [
      f'{path}: {why.removeprefix("cannot be decoded: ")}'
      for path, why in self.unreadable.items()
    ]
    if not skip_corrupt:
      raise UserError(
        '\n  '.join([f'{self.root}: {count} cannot be decoded:', *each])
        + '\nReplace or delete them; or --skip_corrupt leaves them out.'
      )
    if not self._has_logged:
      logging.warning(
        '%s: %s cannot be decoded and are left out: %s.',
        *(self.root, count, some(each, 10)),
      )
    self._has_logged = True

  def check_unchanged(self, listing: str) -> None:
    """Check that the folder is what it was when a run began.

    What counts are the names of the files, their contents, classes and splits,
    not their times.

    Args:
      listing: A file, here or in a bucket. If it does not exist, it is written
        in one step.

    Raises:
      UserError: The folder has changed, or the file cannot be read or
        written.
    """
    own = {
      path: [picture.split, picture.label, f'{picture.digest:x}']
      for path, picture in self._all.items()
    }
    with prefix(
      f'{listing}, the list of the pictures of this run, cannot be read or '
      'written'
    ):
      if not paths.is_file(listing):
        # ASCII, whatever the names are.
        paths.write_bytes(listing, json.dumps(own).encode())
        return
      known = json.loads(paths.read_bytes(listing))
    changes = {
      'added': [path for path in own if path not in known],
      'removed': [path for path in known if path not in own],
      'changed': [p for p in own if p in known and own[p] != known[p]],
    }
    what = '; '.join(
      f'{len(files):,} {how} ({some(files, 3)})'
      for how, files in changes.items()
      if files
    )
    if what:
      raise UserError(
        f'{self.root} has other pictures than this run began with: {what}. Put '
        'them back as they were, or begin another run in a folder of its own '
        f'(--checkpoint_dir). The pictures of this run are listed in {listing}.'
      )


def held_out(contents: Iterable[tuple[str, int]]) -> set[int]:
  """Choose which pictures are held out of a training split.

  About a fifth: those whose digest is below a fifth of the largest possible.
  So it does not depend on the other pictures, and the same content is on the
  same side, whatever it is called and whichever class it is in. Only where
  this would take none of a class, the one of the lowest digest is taken, and
  where it would take all, the one of the highest stays, as long as the class
  has two different pictures.

  Args:
    contents: The class and the digest of each picture.

  Returns:
    The digests of those that are held out.
  """
  by_class = collections.defaultdict(set)
  for label, digest in contents:
    by_class[label].add(digest)
  divided = [digests for digests in by_class.values() if len(digests) > 1]
  chosen = {x for digests in divided for x in digests if x < _HELD_OUT}
  chosen |= {min(digests) for digests in divided if not digests & chosen}
  return chosen - {max(digests) for digests in divided if digests <= chosen}


def _examine(root: str, pictures: Sequence[Picture]) -> list[Picture]:
  """Return pictures with their contents; up to `MOST_DECODED` are decoded.

  Raises:
    UserError: Files cannot be read.
  """
  decodes = len(pictures) <= MOST_DECODED
  name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:12]
  file = paths.cache_folder() / f'folder-{name}.json'
  try:
    known = json.loads(file.read_bytes())
    # By path: size and time; digest, pixels and error.
    found = {
      p.path: p._replace(digest=digest, pixels=pixels, error=error)
      for p in pictures
      for *stamp, digest, pixels, error in [known.get(p.path, [None] * 5)]
      if stamp == [p.size, p.mtime_ns] and (error is not None or not decodes)
    }
  except (OSError, ValueError, AttributeError, TypeError):
    known, found = {}, {}  # There is none, or it is damaged.
  new = [p for p in pictures if p.path not in found]

  def look(picture: Picture) -> Picture:
    path, error = os.path.join(root, picture.path), None
    with prefix(f'{path} cannot be read'), open(path, 'rb') as opened:
      pixels = images.num_pixels(opened)
      if decodes:
        opened.seek(0)
        error = picture_files.find_error(opened.read())
      digest = _digest(opened, picture.size)
    return picture._replace(digest=digest, pixels=pixels, error=error)

  # Decoded images take memory.
  threads = (os.cpu_count() or 1) if decodes else _READ_THREADS
  with futures.ThreadPoolExecutor(threads) as pool:
    bar = tqdm.tqdm(
      pool.map(look, new),
      desc='Checking pictures' if decodes else 'Indexing pictures',
      total=len(new),
      unit='file',
      dynamic_ncols=True,
      delay=0.5,
      disable=None,  # Unless standard error is a terminal.
    )
    found |= {picture.path: picture for picture in bar}
  if new or len(known) != len(found):
    kept = {path: p[3:] for path, p in found.items() if not p.error}
    try:
      file.parent.mkdir(parents=True, exist_ok=True)
      paths.write_bytes(file, json.dumps(kept).encode())
    except OSError as error:
      logging.warning(
        'The index of the pictures cannot be kept as %s (%s), and is made '
        'again in every run.',
        *(file, error.strerror),
      )
  return [found[p.path] for p in pictures]


def _digest(file: BinaryIO, size: int) -> int:
  file.seek(0)
  content = file.read(_END_BYTES)
  if size > 4 * _END_BYTES and content.startswith(_COMPRESSED):
    file.seek(-_END_BYTES, os.SEEK_END)
  content += file.read()
  digest = hashlib.blake2b(content, digest_size=8, salt=b'nfnets')
  digest.update(size.to_bytes(8, 'little'))
  return int.from_bytes(digest.digest(), 'little')
