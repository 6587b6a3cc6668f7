"""Small TFDS datasets that the tests of nfnets.data share."""

import contextlib
import io
import itertools
import pathlib
import sys
import types

# isort: off
import nfnets.data  # noqa: F401  Keeps TensorFlow quiet; so it comes first.
import numpy as np
import pytest
import tensorflow_datasets as tfds
# isort: on

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import folder_lib  # noqa: E402
import tiny_imagenet  # noqa: E402

from nfnets.data import dataset  # noqa: E402

NUM_TRAIN, NUM_TEST = 64, 37
SHAPES = ((75, 100, 3), (100, 75, 3), (60, 100, 1), (20, 16, 3))


def make_dataset(
  name,
  data_dir,
  features,
  examples,
  supervised_keys=None,
  file_format=None,
  **download_config,
):
  """Prepares a TFDS dataset of {split: [example]} and returns its builder."""

  methods = {
    'VERSION': tfds.core.Version('1.0.0'),
    '_info': lambda self: tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(features),
      supervised_keys=supervised_keys,
    ),
    '_split_generators': lambda self, _: {
      k: enumerate(v) for k, v in examples.items()
    },
    '_generate_examples': lambda self: None,
  }
  base = tfds.core.GeneratorBasedBuilder
  cls = types.new_class(
    name, (base,), {'skip_registration': True}, lambda ns: ns.update(methods)
  )
  builder = cls(data_dir=data_dir)
  config = tfds.download.DownloadConfig(**download_config)
  with contextlib.redirect_stdout(io.StringIO()):
    builder.download_and_prepare(
      download_config=config, file_format=file_format
    )
  return builder


def take(count, builder, split, first_step=0, **options):
  """The first batches of training."""
  options = dataset.Options(**{'image_size': 24, 'batch_size': 12} | options)
  with dataset.train_batches(builder, split, options, first_step) as batches:
    return list(itertools.islice(batches, count))


def take_in_parts(count, builder, split, num_processes, **options):
  """The same, from the lists of batches that several processes have."""
  options |= {'process_count': num_processes}
  return joined_processes(
    take(count, builder, split, process_index=i, **options)
    for i in range(num_processes)
  )


def evaluate(builder, split='test', **options):
  """All batches of an evaluation."""
  settings = {'image_size': 24, 'batch_size': 12}
  settings |= {'preprocessing': 'crop_resize'} | options
  options = dataset.Options(**settings)
  with dataset.eval_batches(builder, split, options) as batches:
    return list(batches)


def assert_same(batches, others):
  """Asserts that lists of batches agree in every bit."""
  assert len(batches) == len(others)
  for batch, other in zip(batches, others, strict=True):
    assert batch.keys() == other.keys()
    for key in batch:
      np.testing.assert_array_equal(batch[key], other[key])


def joined_processes(parts):
  """The global batches, from the lists of batches that each process has."""
  return [
    {k: np.concatenate([part[k] for part in step]) for k in step[0]}
    for step in zip(*parts, strict=True)
  ]


@pytest.fixture(scope='session', autouse=True)
def no_cache_outside(tmp_path_factory):
  """Keeps the tests' indices out of the user's own cache."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
    yield


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp('tensorflow_datasets'))


@pytest.fixture(scope='session')
def imagenet(data_dir):
  """TFDS's own imagenet2012, with 64 training and 37 validation images."""
  with contextlib.redirect_stderr(io.StringIO()):
    return tiny_imagenet.make(data_dir, NUM_TRAIN, NUM_TEST, SHAPES)


@pytest.fixture
def sharded(tmp_path):
  """50 examples in 5 shards; example i is labelled i % 10, its pixels are i."""
  images = np.arange(50, dtype=np.uint8)[:, None, None, None]
  images = np.broadcast_to(images, (50, 6, 5, 1))
  return make_dataset(
    'Sharded',
    tmp_path / 'tfds',
    {
      'image': tfds.features.Image(shape=(6, 5, 1), encoding_format='png'),
      'label': tfds.features.ClassLabel(num_classes=10),
    },
    {'train': [{'image': x, 'label': x[0, 0, 0] % 10} for x in images]},
    num_shards=5,
  )


@pytest.fixture
def make_folder(tmp_path):
  """Returns a function that draws pictures in a folder, and returns it."""

  def make(*paths, folder='pictures'):
    for i, path in enumerate(paths):
      folder_lib.draw(tmp_path / folder / path, i)
    return tmp_path / folder

  return make
