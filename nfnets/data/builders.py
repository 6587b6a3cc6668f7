"""Which datasets there are, and what is in them."""

import difflib
import os
import re
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from nfnets import imagenet, paths
from nfnets.data import digits
from nfnets.data.errors import DatasetError
from nfnets.data.folders import Folder

SPLITS = ('train', 'valid', 'train_and_valid', 'test')

# name[/config][:version]. TFDS knows more forms, but some of those download.
_NAME = r'\w+(/[\w.\-]+)?(:[\d*]+\.[\d*]+\.[\d*]+)?'

# What is a path, not a name.
_FOLDER = re.compile(r'[/~]|\.{1,2}(/|$)')


class Fields(NamedTuple):
  """Where a dataset keeps its images and labels.

  Attributes:
    image: The name of the image feature.
    label: The name of the label feature.
    is_encoded: Whether images are stored as JPEG or PNG, not as arrays.
  """

  image: str
  label: str
  is_encoded: bool


class Split(NamedTuple):
  """Examples [start, stop) of one of TFDS's splits."""

  tfds_split: str
  start: int
  stop: int


def load_builder(
  name: str, data_dir: str | None = None
) -> tfds.core.DatasetBuilder:
  """Opens a prepared image classification dataset; never downloads.

  Args:
    name: 'imagenet2012' (any version 5), 'digits' (made on first use), the
      TFDS name of another dataset, such as 'mnist' or 'my_dataset:1.0.0', or a
      folder of pictures. What begins with /, ./, ../ or ~ is a folder;
      otherwise TFDS's names come first.
    data_dir: The TFDS data directory, here or in a bucket (gs://); None means
      TFDS's default, $TFDS_DATA_DIR or ~/tensorflow_datasets.

  Returns:
    The TFDS builder; for a folder, `folders.Folder`.

  Raises:
    DatasetError: The dataset is unknown, has not been prepared, or does not
      hold images with class labels; or its bucket cannot be read.
    paths.PathError: A name is of no place that can be read.
  """
  if data_dir is not None:
    data_dir = _checked(data_dir)
  if paths.is_remote(paths.path(name)):
    raise DatasetError(
      f'{name}: pictures in a bucket cannot be read as a folder. Mount the '
      'bucket (gcsfuse) and name the folder that it then is, or prepare them '
      'as a TFDS dataset: --which_dataset=NAME --data_dir=gs://BUCKET/FOLDER.'
    )
  if _FOLDER.match(name):
    return Folder(name)
  is_folder = os.path.isdir(name)
  if not re.fullmatch(_NAME, name):
    if is_folder:
      return Folder(name)
    raise DatasetError(
      f'{name!r} is not the name of a dataset, nor a folder of this machine. '
      'Names read like mnist, my_dataset/config or imagenet2012:5.1.0.'
    )
  if name == 'digits':
    digits.prepare(data_dir)
  requested = 'imagenet2012:5.*.*' if name == 'imagenet2012' else name
  try:
    builder = tfds.builder(requested, data_dir=data_dir, try_gcs=False)
  except tfds.core.DatasetNotFoundError as error:
    if is_folder:
      return Folder(name)
    raise DatasetError(_unknown(name, data_dir)) from error
  except (AssertionError, ValueError, RuntimeError) as error:
    if is_folder:
      return Folder(name)
    # A version or a configuration that does not exist, says TFDS at length.
    raise DatasetError(
      f'TFDS cannot open the dataset {name!r} in {_root(data_dir)}: {error}'
    ) from error
  if not digits.is_prepared(builder):
    message = _not_prepared(builder, data_dir)
    if is_folder:
      message += f' For the folder of that name, write ./{name}.'
    raise DatasetError(message)
  image_and_label(builder)
  return builder


def image_and_label(builder: tfds.core.DatasetBuilder) -> Fields:
  """Finds the image and the label among the features of a dataset.

  They are the features 'image' and 'label', or else what the dataset says
  that supervised learning should use.

  Args:
    builder: A TFDS dataset.

  Returns:
    Their names, and how the image is stored.

  Raises:
    DatasetError: There is no uint8 image or no class label.
  """
  features = builder.info.features
  if not isinstance(features, tfds.features.FeaturesDict):
    raise DatasetError(_unsuitable(builder, 'it has no named features'))
  supervised = builder.info.supervised_keys or (None, None)
  image_key = 'image' if 'image' in features else supervised[0]
  label_key = 'label' if 'label' in features else supervised[-1]
  for key, what in ((image_key, 'an image'), (label_key, 'a label')):
    if not isinstance(key, str) or key not in features:
      raise DatasetError(_unsuitable(builder, f'none of them is {what}'))
  image, label = features[image_key], features[label_key]
  is_encoded = isinstance(image, tfds.features.Image)
  is_array = isinstance(image, tfds.features.Tensor)
  fits = (is_encoded or is_array) and image.np_dtype == np.uint8
  if is_encoded:
    fits = fits and image.shape[-1] in (1, 3, 4, None)
  else:
    fits = fits and len(image.shape) == 3 and image.shape[-1] in (1, 3)
  if not fits:
    raise DatasetError(
      _unsuitable(builder, f'{image_key!r} is not a uint8 image [H, W, 1 or 3]')
    )
  if not isinstance(label, tfds.features.ClassLabel) or not label.num_classes:
    raise DatasetError(
      _unsuitable(builder, f'{label_key!r} is not a class label of known size')
    )
  return Fields(image_key, label_key, is_encoded)


def title(builder: tfds.core.DatasetBuilder) -> str:
  """Returns what a dataset is called in messages."""
  if isinstance(builder, Folder):
    return builder.root
  return builder.info.full_name


def num_classes(builder: tfds.core.DatasetBuilder) -> int:
  """Returns the number of classes of a dataset."""
  return builder.info.features[image_and_label(builder).label].num_classes


def label_names(builder: tfds.core.DatasetBuilder) -> list[str]:
  """Returns the names of the classes by label (WordNet ids for ImageNet)."""
  return list(builder.info.features[image_and_label(builder).label].names)


def class_names(builder: tfds.core.DatasetBuilder) -> list[str]:
  """Returns names that people know, by label: 'tench', not n01440764."""
  known = imagenet.classes()
  return [known.get(name, name) for name in label_names(builder)]


def num_examples(builder: tfds.core.DatasetBuilder, split: str) -> int:
  """Returns the number of examples in one of our splits.

  Args:
    builder: A prepared TFDS dataset.
    split: One of `SPLITS`; see `find_split`.

  Raises:
    DatasetError: There is no such split.
  """
  found = find_split(builder, split)
  return found.stop - found.start


def find_split(builder: tfds.core.DatasetBuilder, split: str) -> Split:
  """Says which examples belong to a split.

  `train_and_valid` is all of TFDS's train, `valid` its first 10,000 examples or
  its first tenth, whichever is less, `train` the rest, and `test` is TFDS's
  validation split (ImageNet's test labels are not public), or its test split
  where there is no validation. Of a folder see `Folder.part`.

  Args:
    builder: A dataset from `load_builder`.
    split: One of the names above.

  Raises:
    DatasetError: There is no such split.
  """
  if split not in SPLITS:
    raise DatasetError(
      f'Unknown split {split!r}: the splits are {", ".join(SPLITS)}.'
    )
  if isinstance(builder, Folder):
    return Split(*builder.part(split))
  sizes = {name: s.num_examples for name, s in builder.info.splits.items()}
  if split == 'test':
    source = 'validation' if 'validation' in sizes else 'test'
  else:
    source = 'train'
  if source not in sizes:
    raise DatasetError(
      f'{builder.info.full_name} in {builder.data_path} has no {split!r}: '
      f'that would be its TFDS split {source!r}, but it was prepared with '
      f'{", ".join(sizes) or "no splits"} only.'
    )
  total = sizes[source]
  num_valid = min(10_000, total // 10)
  start, stop = {
    'train': (num_valid, total),
    'valid': (0, num_valid),
  }.get(split, (0, total))
  return Split(source, start, stop)


def _checked(data_dir: str) -> str:
  """Returns a data directory without ~; raises if its bucket is of no use."""
  found = os.fspath(paths.path(data_dir))
  if paths.is_remote(found):
    # TFDS would say that nothing is prepared there.
    try:
      paths.is_file(f'{found}/.may-be-read')
    except OSError as error:
      raise DatasetError(f'--data_dir={data_dir}: {error}') from error
  return found


def _root(data_dir: str | None) -> str:
  return data_dir or os.fspath(tfds.core.constants.DATA_DIR)


def _unknown(name: str, data_dir: str | None) -> str:
  known = tfds.list_builders(with_community_datasets=False)
  close = difflib.get_close_matches(name.split(':')[0].split('/')[0], known)
  hint = f' Did you mean {" or ".join(close)}?' if close else ''
  return (
    f'Unknown dataset {name!r}: TFDS has none of that name, and there is none '
    f'prepared in {_root(data_dir)}.{hint} To try things out without any '
    'data of your own, use --config=digits.'
  )


def _not_prepared(
  builder: tfds.core.DatasetBuilder, data_dir: str | None
) -> str:
  """The message for a dataset that TFDS knows but that is not on the disk."""
  root = _root(data_dir)
  name = builder.name
  if builder.builder_config:
    name += f'/{builder.builder_config.name}'
  # Not `tfds build`, which needs apache-beam.
  command = (
    'python -c "import tensorflow_datasets as tfds; '
    f"tfds.builder('{name}', data_dir='{root}').download_and_prepare()\""
  )
  if builder.name == 'imagenet2012':
    how = (
      'Get ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from '
      f'https://image-net.org, put them in {root}/downloads/manual and run'
    )
  elif builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
    how = (
      f'Its files have to be put in {root}/downloads/manual by hand (see '
      f'https://www.tensorflow.org/datasets/catalog/{builder.name}); then run'
    )
  else:
    how = 'To download and prepare it, run'
  return (
    f'The dataset {builder.name} is not prepared: looked for it in '
    f'{builder.data_path}.\n{how}\n\n  {command}\n\nIf it is somewhere else, '
    'set TFDS_DATA_DIR or --data_dir=DIR. To '
    'try things out without it, use --config=digits.'
  )


def _unsuitable(builder: tfds.core.DatasetBuilder, why: str) -> str:
  features = builder.info.features
  if isinstance(features, tfds.features.FeaturesDict):
    held = ', '.join(f'{k}: {_short(f)}' for k, f in features.items())
  else:
    held = _short(features)
  return (
    f'{builder.info.full_name} cannot be used to train a classifier: {why}. '
    f'It has {held}. Needed are an image (a tfds.features.Image, or a uint8 '
    'array [H, W, 1 or 3]) and a tfds.features.ClassLabel.'
  )


def _short(feature: tfds.features.FeatureConnector) -> str:
  return ' '.join(repr(feature).split())
