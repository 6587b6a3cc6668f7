"""Any folder of pictures as a dataset.

It has the form of TFDS's own `tfds.folder_dataset.ImageFolder`, but knows more
layouts and formats, gives random access, and divides pictures that come in one
split (`docs/datasets.md`).
"""

import collections
from collections.abc import Iterable
import glob
import json
import os
import secrets

from absl import logging
import tensorflow as tf
import tensorflow_datasets as tfds

from nfnets.data import folder_digests, folder_listing, image_files
from nfnets.data.errors import DatasetError
from nfnets.data.folder_listing import some

# How much of a split is held out. Digests are uniform in [0, 2**64).
_HELD_OUT = 2**64 // 5


class Folder(tfds.core.DatasetBuilder, skip_registration=True):
  """A folder of pictures as a TFDS dataset.

  Attributes:
    root: The folder's absolute path.
    test_split_name: The split that 'test' is: 'test', or 'validation' where the
      folder has no test split.
  """

  VERSION = tfds.core.Version('1.0.0')

  def __init__(self, root: str):
    """Lists the pictures, and reads those that it has not seen before.

    Args:
      root: The folder.

    Raises:
      DatasetError: It is missing, cannot be read or is of no known layout.
    """
    self.root = _find(root)
    try:
      pictures = folder_listing.list_pictures(self.root)
    except DatasetError as error:
      raise _prepared_by_tfds(self.root) or error from None
    digests = folder_digests.digests(self.root, pictures)
    names = list(dict.fromkeys(picture.label for picture in pictures))
    self._names = names  # For `_info`.
    super().__init__(data_dir=self.root)
    self._data_dir = self.root  # Without a version below it.
    self._original_state = {'root': self.root}  # For copies in other processes.

    paths = [picture.path for picture in pictures]
    self._digests = dict(zip(paths, digests.tolist(), strict=True))
    found = {picture.split for picture in pictures}
    self._pictures = {
      split: [picture for picture in pictures if picture.split == split]
      for split in ('train', 'validation', 'test')
      if split in found
    }
    self._num_valid = 0  # Of those that come first in 'train'.
    if 'validation' not in self._pictures:
      self._hold_out()
    self._warn_of_contradictions()
    splits = [
      tfds.core.SplitInfo(name=name, shard_lengths=[len(pictures)], num_bytes=0)
      for name, pictures in self._pictures.items()
    ]
    self.info.set_splits(tfds.core.SplitDict(splits))

  @property
  def test_split_name(self) -> str:
    """The split that 'test' is."""
    return 'test' if 'test' in self._pictures else 'validation'

  def part(self, split: str) -> tuple[str, int, int]:
    """Says which examples belong to one of our splits.

    'test' is the test split, or else the validation split; 'valid' is the
    validation split, and 'train' and 'train_and_valid' are the training split.
    Where the folder has training and test splits alone, 'valid' is a part of
    the former and 'train' the rest; where it has a training split alone, a part
    of it has become the validation split.

    Args:
      split: One of `builders.SPLITS`.

    Returns:
      One of TFDS's splits, and which of its examples: [start, stop).
    """
    sizes = {name: len(pictures) for name, pictures in self._pictures.items()}
    name = self.test_split_name
    parts = {
      'train': ('train', self._num_valid, sizes['train']),
      'valid': ('train', 0, self._num_valid),
      'train_and_valid': ('train', 0, sizes['train']),
      'test': (name, 0, sizes[name]),
    }
    if 'validation' in sizes:
      parts['valid'] = ('validation', 0, sizes['validation'])
    return parts[split]

  def paths(self, split: str) -> list[str]:
    """Returns the paths of a split's pictures, in the order of its examples.

    Args:
      split: One of `builders.SPLITS`.

    Returns:
      Paths relative to the folder.
    """
    name, start, stop = self.part(split)
    return [picture.path for picture in self._pictures[name][start:stop]]

  def labels(self, split: str) -> list[int]:
    """Returns the labels of a split's pictures, in the order of `paths`."""
    name, start, stop = self.part(split)
    labels = {label: i for i, label in enumerate(self._names)}
    return [
      labels[picture.label] for picture in self._pictures[name][start:stop]
    ]

  def digests(self, split: str) -> list[int]:
    """Returns what tells contents apart, in the order of `paths`."""
    return [self._digests[path] for path in self.paths(split)]

  def duplicates(self) -> list[tuple[str, str]]:
    """Returns pairs of files of the same content, in two different splits."""
    first, pairs = {}, []
    for split, pictures in self._pictures.items():
      for picture in pictures:
        digest = self._digests[picture.path]
        other, path = first.setdefault(digest, (split, picture.path))
        if other != split:
          pairs.append((path, picture.path))
    return pairs

  def check_unchanged(self, listing: str) -> None:
    """Checks that the folder is what it was when a run began.

    What counts are the names of the files, their contents, classes and splits,
    not their times.

    Args:
      listing: A file, local or anything that tf.io.gfile writes. It is written
        if it is not there, in one step.

    Raises:
      DatasetError: The folder has changed, or the file cannot be read or
        written.
    """
    own = {
      picture.path: [split, picture.label, f'{self._digests[picture.path]:x}']
      for split, pictures in self._pictures.items()
      for picture in pictures
    }
    try:
      if not tf.io.gfile.exists(listing):
        _write_json(listing, own)
        return
      with tf.io.gfile.GFile(listing) as file:
        known = json.loads(file.read())
    except (tf.errors.OpError, ValueError) as error:
      reason = getattr(error, 'message', str(error))
      raise DatasetError(
        f'{listing}, the list of the pictures of this run, cannot be read or '
        f'written: {reason}'
      ) from error
    changes = {
      'added': [path for path in own if path not in known],
      'removed': [path for path in known if path not in own],
      'changed': [p for p in own if p in known and own[p] != known[p]],
    }
    if any(changes.values()):
      what = '; '.join(
        f'{len(paths):,} {how} ({some(paths, 3)})'
        for how, paths in changes.items()
        if paths
      )
      raise DatasetError(
        f'{self.root} has changed since this run began: {what}. Put it back as '
        'it was, or begin another run in a folder of its own '
        f'(--checkpoint_dir). The pictures of this run are listed in {listing}.'
      )

  def open_files(self, name: str) -> image_files.ImageFiles:
    """Opens one of TFDS's splits for random access.

    Raises:
      DatasetError: There is no such split.
    """
    if name not in self._pictures:
      raise DatasetError(
        f'{self.root} has no split {name!r}, but {", ".join(self._pictures)}.'
      )
    pictures = self._pictures[name]
    labels = {label: i for i, label in enumerate(self._names)}
    return image_files.ImageFiles(
      self.root,
      [picture.path for picture in pictures],
      [labels[picture.label] for picture in pictures],
      [picture.size for picture in pictures],
    )

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=f'The pictures in {self.root}.',
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(),
          'label': tfds.features.ClassLabel(names=self._names),
        }
      ),
      supervised_keys=('image', 'label'),
    )

  def _download_and_prepare(self, dl_manager, download_config=None) -> None:
    del dl_manager, download_config  # The pictures are there.

  def _as_dataset(
    self, split, decoders=None, read_config=None, shuffle_files=False
  ) -> tf.data.Dataset:
    """Returns the examples of one of TFDS's splits, as TFDS does."""
    del read_config  # Reading is not split among files.
    files = self.open_files(split)
    features = self.info.features
    skip = {'image': tfds.decode.SkipDecoding()}
    numbers = tf.data.Dataset.range(len(files))
    if shuffle_files:
      numbers = numbers.shuffle(len(files))

    def load(number: tf.Tensor) -> dict[str, tf.Tensor]:
      record = tf.numpy_function(
        lambda i: files.read([i])[0], [number], tf.string
      )
      example = features.deserialize_example(
        tf.ensure_shape(record, []), decoders=skip
      )
      example['image'] = image_files.decode(example['image'])
      return features.decode_example(example, decoders=decoders)

    return numbers.map(load, num_parallel_calls=tf.data.AUTOTUNE)

  def _hold_out(self) -> None:
    """Divides a validation split, or part, out of the training pictures."""
    pictures = self._pictures['train']
    contents = [(p.label, self._digests[p.path]) for p in pictures]
    chosen = held_out(contents)
    held = [p for p in pictures if self._digests[p.path] in chosen]
    rest = [p for p in pictures if self._digests[p.path] not in chosen]
    if 'test' in self._pictures:
      self._pictures['train'] = held + rest
      self._num_valid = len(held)
    elif not held:
      raise DatasetError(
        f'{self.root}: no class has two different pictures, so there is '
        'nothing to evaluate on. Add pictures, or a test split.'
      )
    else:
      self._pictures['train'] = rest
      self._pictures['validation'] = held
      logging.info(
        '%s: held out %d of %d pictures for validation.',
        self.root,
        len(held),
        len(pictures),
      )

  def _warn_of_contradictions(self) -> None:
    """Warns of pictures that stand in two classes."""
    first, count, example = {}, 0, ()
    for pictures in self._pictures.values():
      for picture in pictures:
        digest = self._digests[picture.path]
        other = first.setdefault(digest, picture)
        if other.label != picture.label:
          count += 1
          example = example or (other.path, picture.path)
    if count:
      logging.warning(
        '%s: %d pictures are there in two classes, such as %s and %s.',
        self.root,
        count,
        *example,
      )


def held_out(contents: Iterable[tuple[str, int]]) -> set[int]:
  """Chooses which pictures are held out of a training split.

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


def _find(name: str) -> str:
  """Returns the absolute path of a folder."""
  root = os.path.abspath(os.path.expanduser(name))
  if not os.path.exists(root):
    raise DatasetError(
      f'There is no folder {root}. Expected is a folder of pictures, '
      'DIR/CLASS/PICTURES, or the name of a TFDS dataset, as mnist.'
    )
  if not os.path.isdir(root):
    raise DatasetError(
      f'{root} is a file. Expected is a folder of pictures, '
      'DIR/CLASS/PICTURES; archives have to be unpacked.'
    )
  return root


def _prepared_by_tfds(root: str) -> DatasetError | None:
  """Returns what to say of a folder that holds a dataset of TFDS's, if so."""
  # DATA_DIR/NAME[/CONFIG]/VERSION, or one of the folders in between.
  for depth in ('', '*', '*/*', '*/*/*'):
    pattern = os.path.join(glob.escape(root), depth, 'dataset_info.json')
    for path in sorted(glob.glob(pattern)):
      message = f'{root} holds what TFDS has prepared ({path}), not pictures.'
      try:
        with open(path) as file:
          name = json.load(file)['name']
        folders = os.path.dirname(path).split(os.sep)
        start = folders.index(name)
      except (OSError, ValueError, KeyError):
        return DatasetError(message)
      title = f'{"/".join(folders[start:-1])}:{folders[-1]}'
      return DatasetError(
        f'{message} Use --which_dataset={title} '
        f'--data_dir={os.sep.join(folders[:start])}'
      )
  return None


def _write_json(path: str, content: dict) -> None:
  """Writes a file in one step, whichever processes do so at once."""
  temporary = f'{path}.{secrets.token_hex(4)}.tmp'
  tf.io.gfile.makedirs(os.path.dirname(path) or '.')
  with tf.io.gfile.GFile(temporary, 'w') as file:
    file.write(json.dumps(content))  # ASCII, whatever the names are.
  tf.io.gfile.rename(temporary, path, overwrite=True)
