"""Datasets: which there are, their splits, their examples and their sizes."""

from collections.abc import Callable
import contextlib
import hashlib
import io
import os
from typing import NamedTuple

import numpy as np
from PIL import Image
import tensorflow as tf
import tensorflow_datasets as tfds

from nfnets import dataset_names, errors, imagenet, paths
from nfnets.data import digits, picture_files, preprocess, records
from nfnets.data.folders import Folder
from nfnets.errors import ImageError, UserError
from nfnets.inference import images

SPLITS = ('train', 'valid', 'train_and_valid', 'test')
_EXAMPLES_PER_READ = 1024

Dataset = tfds.core.DatasetBuilder | Folder


class Split(NamedTuple):
  """Examples [start, stop) of one of TFDS's splits."""

  tfds_split: str
  start: int
  stop: int


def load_builder(name: str, data_dir: str | None = None) -> Dataset:
  """Opens a prepared image classification dataset; never downloads.

  Args:
    name: 'imagenet2012' (any version 5), 'digits' (made on first use), the
      TFDS name of another dataset, such as 'mnist' or 'my_dataset:1.0.0', or a
      folder of pictures. What begins with /, ./, ../ or ~ is a folder;
      otherwise TFDS's names come first.
    data_dir: The TFDS data directory, here or in a bucket (gs://); None means
      TFDS's default, $TFDS_DATA_DIR or ~/tensorflow_datasets.

  Returns:
    The TFDS builder, or a `folders.Folder`.

  Raises:
    UserError: The dataset is unknown, has not been prepared, or does not
      hold images with class labels; or there is no such folder or bucket.
  """
  root = os.fspath(paths.path(data_dir or tfds.core.constants.DATA_DIR))
  if data_dir and paths.is_remote(root):
    # TFDS would say that nothing is prepared there.
    with errors.prefix(f'--data_dir={data_dir}'):
      paths.is_file(f'{root}/.may-be-read')
  if paths.is_remote(paths.path(name)):
    raise UserError(
      f'{name}: pictures in a bucket cannot be read as a folder. Mount the '
      'bucket (gcsfuse) and name the folder that it then is, or prepare them '
      'as a TFDS dataset: --which_dataset=NAME --data_dir=gs://BUCKET/FOLDER.'
    )
  dataset_names.check(name, data_dir)
  is_folder = os.path.isdir(name)
  if not dataset_names.is_name(name):
    return Folder(name)
  if name == 'digits':
    digits.prepare(root)
  requested = 'imagenet2012:5.*.*' if name == 'imagenet2012' else name
  try:
    builder = tfds.builder(requested, data_dir=root, try_gcs=False)
  except (
    *(tfds.core.DatasetNotFoundError, AssertionError),
    *(ValueError, RuntimeError),
  ) as error:
    if is_folder:
      return Folder(name)
    # A version or a configuration that does not exist, says TFDS at length.
    message = f'TFDS cannot open the dataset {name!r} in {root}: {error}'
    raise UserError(message) from error
  if not digits.is_prepared(builder):
    config = builder.builder_config
    config = f'{builder.name}/{config.name}' if config else builder.name
    hint = f' For the folder of that name, write ./{name}.' if is_folder else ''
    how = 'To download and prepare it, run'
    if needed := builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
      how = (
        f'Its files have to be put in {root}/downloads/manual by hand '
        f'({" ".join(needed.split())}); then run'
      )
    # Not `tfds build`, which needs apache-beam.
    raise UserError(
      f'The dataset {builder.name} is not prepared: looked for it in '
      f'{builder.data_path}.\n{how}\n\n  python -c "import tensorflow_datasets '
      f"as tfds; tfds.builder('{config}', data_dir='{root}')"
      '.download_and_prepare()"\n\nIf it is somewhere else, set TFDS_DATA_DIR '
      'or --data_dir=DIR. To try things out without it, use --config=digits.'
      + hint
    )
  _image_and_label(builder)
  return builder


def title(builder: Dataset) -> str:
  """Returns what a dataset is called in messages."""
  is_folder = isinstance(builder, Folder)
  return builder.root if is_folder else builder.info.full_name


def num_classes(builder: Dataset) -> int:
  """Returns the number of classes of a dataset."""
  return len(label_names(builder))


def label_names(builder: Dataset) -> list[str]:
  """Returns the names of the classes by label (WordNet ids for ImageNet)."""
  if isinstance(builder, Folder):
    return list(builder.names)
  return list(builder.info.features[_image_and_label(builder)[1]].names)


def class_names(builder: Dataset) -> list[str]:
  """Returns names that people know, by label: 'tench', not n01440764."""
  known = imagenet.classes()
  return [known.get(name, name) for name in label_names(builder)]


def num_examples(builder: Dataset, split: str) -> int:
  """Returns the number of examples in one of our splits; see `find_split`."""
  found = find_split(builder, split)
  return found.stop - found.start


def example_names(builder: Dataset, split: str) -> Callable[[int], str]:
  """Returns what names an example: a path, or in TFDS NAME/SPLIT[NUMBER]."""
  if not isinstance(builder, Folder):
    return lambda i: f'{builder.name}/{split}[{i}]'
  found = builder.paths(split)
  return lambda i: os.path.join(builder.root, found[i])


def find_split(builder: Dataset, split: str) -> Split:
  """Says which examples belong to a split.

  `train_and_valid` is all of TFDS's train, `valid` its first 10,000 examples or
  its first tenth, whichever is less, `train` the rest, and `test` is TFDS's
  validation split (ImageNet's test labels are not public), or its test split
  where there is no validation. Of a folder see `Folder.pictures`.

  Args:
    builder: A dataset from `load_builder`.
    split: One of the names above.

  Raises:
    UserError: There is no such split.
  """
  if split not in SPLITS:
    raise UserError(
      f'Unknown split {split!r}: the splits are {", ".join(SPLITS)}.'
    )
  if isinstance(builder, Folder):
    same = {'valid': 'validation', 'test': builder.test_split_name}
    return Split(same.get(split, split), 0, len(builder.pictures[split]))
  sizes = {name: s.num_examples for name, s in builder.info.splits.items()}
  source = 'train'
  if split == 'test':
    source = 'validation' if 'validation' in sizes else 'test'
  if source not in sizes:
    raise UserError(
      f'{builder.info.full_name} in {builder.data_path} has no {split!r}: '
      f'that would be its TFDS split {source!r}, but it was prepared with '
      f'{", ".join(sizes) or "no splits"} only.'
    )
  total = sizes[source]
  num_valid = min(10_000, total // 10)
  parts = {'train': (num_valid, total), 'valid': (0, num_valid)}
  return Split(source, *parts.get(split, (0, total)))


def is_test_split(builder: Dataset, split: str) -> bool:
  """Return whether a split has the examples of 'test', as 'valid' may."""
  return find_split(builder, split) == find_split(builder, 'test')


class SplitReader:
  """The examples of a split, by their number in it.

  Attributes:
    title: The names of the dataset and the split, for messages.
    num_examples: The number of examples in the split.
    mean_bytes: The size of an example, on average.
    parallel_reads: How many calls of `read` are worth making at once.
    unreadable: What is wrong with each example that is known to be unreadable,
      by its number.
  """

  def __init__(
    self,
    builder: Dataset,
    split: str,
    skip_corrupt: bool = True,
    reduces: bool = False,
  ):
    """Opens the files.

    Args:
      builder: A dataset from `load_builder`.
      split: One of `SPLITS`.
      skip_corrupt: Whether pictures of a folder may be unreadable.
      reduces: Whether to read large pictures of a folder as smaller copies.

    Raises:
      UserError: The split is unknown, empty or damaged.
    """
    tfds_split, self._start, stop = find_split(builder, split)
    self.num_examples = stop - self._start
    self.title = f'{title(builder)}, split {split!r}'
    if not self.num_examples:
      raise UserError(f'{self.title} is empty.')
    self.unreadable = {}
    if isinstance(builder, Folder):
      builder.check_readable(builder.paths(split), skip_corrupt)
      pictures = builder.pictures[split]
      self._files = picture_files.PictureFiles(
        builder.root, pictures, builder.labels(split), reduces
      )
      self.unreadable = {i: p.error for i, p in enumerate(pictures) if p.error}
      self._image, self._label = 'image', 'label'
      features = {'image': tfds.features.Image(), 'label': np.int64}
    else:
      self._files = records.open_records(builder, tfds_split)
      self._image, self._label = _image_and_label(builder)
      # Other features are not even parsed.
      features = builder.info.features
      features = {key: features[key] for key in (self._image, self._label)}
    self._features = tfds.features.FeaturesDict(features)
    is_encoded = isinstance(self._features[self._image], tfds.features.Image)
    skip = {self._image: tfds.decode.SkipDecoding()}
    self._decoders = skip if is_encoded else None
    self.mean_bytes = self._files.mean_bytes
    self.parallel_reads = self._files.parallel_reads
    self.stop, self.close = self._files.stop, self._files.close

  def read(self, indices: np.ndarray) -> list[bytes]:
    """Returns the records of these examples.

    Raises:
      UserError: A file is gone, or not what it was when it was indexed.
    """
    return self._files.read(self._start + indices)

  def parse(
    self, record: tf.Tensor, process: Callable | None = None
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the image (string [] or uint8 [H, W, C]) and the int32 label.

    Args:
      record: What `read` returns of an example.
      process: From the image to float32, which is returned in its stead. One
        large picture of a folder is decoded and processed at a time.
    """
    example = self._features.deserialize_example(
      record, decoders=self._decoders
    )
    image, label = example[self._image], example[self._label]
    if isinstance(self._files, picture_files.PictureFiles):
      image = picture_files.decode(image, process)
    elif process is not None:
      image = process(image)
    return image, tf.cast(label, tf.int32)

  def example(self, index: int) -> tuple[bytes | np.ndarray, int]:
    """Returns one image as training and evaluation see it, and its label.

    It is encoded if all decoders agree on it, and uint8 [H, W, C] if not: the
    published decoder of records knows neither EXIF nor transparency.

    Raises:
      UserError: As `read` does.
      ImageError: The example is damaged.
    """
    [record] = self.read(np.array([index]))
    try:
      image, label = self.parse(tf.constant(record))
      if image.dtype == tf.string and not images.is_plain(image.numpy()):
        image = preprocess.decode(image)
    except tf.errors.OpError as error:
      raise ImageError('the example cannot be read') from error
    return image.numpy(), int(label)

  def where(self, index: int) -> str:
    """Says in words where an example is, for messages."""
    return self._files.where(self._start + index)


def class_counts(builder: Dataset, split: str) -> np.ndarray:
  """Counts the examples of each class, without decoding images: int64 [K].

  Raises:
    UserError: The split is unknown, empty or damaged.
  """
  if isinstance(builder, Folder):
    labels = builder.labels(split)
  else:
    labels = []
    with contextlib.closing(SplitReader(builder, split)) as source:
      read = tf.autograph.experimental.do_not_convert(
        lambda record: source.parse(record)[1]
      )
      everything = np.arange(source.num_examples)
      for start in everything[::_EXAMPLES_PER_READ]:
        found = source.read(everything[start : start + _EXAMPLES_PER_READ])
        found = tf.data.Dataset.from_tensor_slices(found)
        labels.extend(found.map(read).as_numpy_iterator())
  return np.bincount(labels, minlength=num_classes(builder))


def image_sizes(builder: Dataset, split: str, most: int = 100) -> np.ndarray:
  """Returns (height, width) of some images of a split, before preprocessing.

  Args:
    builder: A dataset from `load_builder`.
    split: One of `SPLITS`.
    most: How many; they are evenly spread over the split.

  Returns:
    int64 [N, 2], in pixels; without the images that cannot be opened.
  """
  sizes = []
  with contextlib.closing(SplitReader(builder, split)) as source:
    count = min(most, source.num_examples)
    for index in np.arange(count) * source.num_examples // count:
      # Evaluation says what is wrong with an image.
      with contextlib.suppress(ImageError):
        image, _ = source.example(index)
        if isinstance(image, bytes):
          with Image.open(io.BytesIO(image)) as opened:  # The header alone.
            sizes.append((opened.height, opened.width))
        else:
          sizes.append(image.shape[:2])
  return np.array(sizes, np.int64).reshape(-1, 2)


def fingerprint(builder: Dataset, split: str) -> str:
  """Returns what changes whenever the images or labels of a split do.

  Of a folder, the contents of the files in their order. Of a dataset of TFDS,
  its name and version, which examples of it they are, and the size and time of
  its files.

  Raises:
    UserError: There is no such split.
  """
  found = find_split(builder, split)
  if isinstance(builder, Folder):
    digests = [picture.digest for picture in builder.pictures[split]]
    described = [*zip(digests, builder.labels(split), strict=True)]
  else:
    info = builder.info.splits[found.tfds_split]
    described = [builder.info.full_name, *found, list(info.shard_lengths)]
    for path in map(os.fspath, info.filepaths):
      stat = tf.io.gfile.stat(path)
      described.append((path, stat.length, stat.mtime_nsec))
  return hashlib.sha256(repr(described).encode()).hexdigest()


def _image_and_label(builder: tfds.core.DatasetBuilder) -> tuple[str, str]:
  """Returns the names of the image and the label among a dataset's features.

  They are the features 'image' and 'label', or else what the dataset says
  that supervised learning should use.

  Raises:
    UserError: There is no uint8 image or no class label.
  """
  features, kinds = builder.info.features, tfds.features
  named = features if isinstance(features, kinds.FeaturesDict) else {}
  supervised = builder.info.supervised_keys or (None, None)
  image_key = 'image' if 'image' in named else supervised[0]
  label_key = 'label' if 'label' in named else supervised[-1]
  image, label = (
    named[key] if isinstance(key, str) and key in named else None
    for key in (image_key, label_key)
  )
  if isinstance(image, kinds.Image):
    fits = image.shape[-1] in (1, 3, 4, None)
  else:
    fits = isinstance(image, kinds.Tensor) and len(image.shape) == 3
    fits = fits and image.shape[-1] in (1, 3)
  fits = fits and image.np_dtype == np.uint8
  if not (fits and isinstance(label, kinds.ClassLabel) and label.num_classes):
    listed = ', '.join(f'{key}: {value!r}' for key, value in named.items())
    raise UserError(
      f'{builder.info.full_name} cannot be used to train a classifier. Needed '
      'are an image (a tfds.features.Image, or a uint8 array [H, W, 1 or 3]) '
      'and a tfds.features.ClassLabel of known size, called image and label or '
      f'named as its supervised_keys. It has {" ".join(listed.split())}.'
    )
  return image_key, label_key
