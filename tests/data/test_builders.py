"""Tests of what is said about datasets, the good and the unsuitable."""

import contextlib
import io

from conftest import NUM_TEST, NUM_TRAIN, make_dataset
import numpy as np
import pytest
import tensorflow_datasets as tfds

from nfnets.data import builders
from nfnets.data.errors import DatasetError

LABEL = tfds.features.ClassLabel(names=['cat', 'dog'])


def test_splits_follow_from_the_sizes_in_the_builder(imagenet):
  sizes = {s: builders.num_examples(imagenet, s) for s in builders.SPLITS}
  assert sizes == {
    'train': NUM_TRAIN - NUM_TRAIN // 10,
    'valid': NUM_TRAIN // 10,
    'train_and_valid': NUM_TRAIN,
    'test': NUM_TEST,
  }
  assert builders.find_split(imagenet, 'test').tfds_split == 'validation'


def test_valid_is_at_most_ten_thousand(imagenet, monkeypatch):
  info = imagenet.info.splits['train']
  large = info.replace(shard_lengths=[1_281_167])
  monkeypatch.setattr(
    type(imagenet.info),
    'splits',
    property(lambda _: {'train': large}),
  )
  assert builders.find_split(imagenet, 'valid')[1:] == (0, 10_000)
  assert builders.find_split(imagenet, 'train')[1:] == (10_000, 1_281_167)


def test_imagenet_has_its_thousand_classes(imagenet, data_dir):
  builder = builders.load_builder('imagenet2012', data_dir)
  assert builder.info.full_name == imagenet.info.full_name
  assert builders.num_classes(builder) == 1000
  assert builders.label_names(builder)[0] == 'n01440764'
  names = builders.class_names(builder)
  assert len(names) == 1000
  assert (names[0], names[1], names[999]) == (
    'tench',
    'goldfish',
    'toilet tissue',
  )


def test_other_datasets_are_found_by_name(tmp_path):
  image = tfds.features.Image(shape=(4, 4, 3))
  example = {'image': np.zeros((4, 4, 3), np.uint8), 'label': 1}
  make_dataset(
    'Pets',
    tmp_path,
    {'image': image, 'label': LABEL},
    {'train': [example] * 3, 'test': [example]},
  )
  for name in ('pets', 'pets:1.0.0', 'pets:1.*.*'):
    builder = builders.load_builder(name, str(tmp_path))
    assert builders.label_names(builder) == ['cat', 'dog']
    assert builders.class_names(builder) == ['cat', 'dog']
    assert builders.num_examples(builder, 'test') == 1


@pytest.mark.parametrize('split', ['', 'validation', 'train[:10]', 'Test'])
def test_unknown_split_is_refused_with_the_known_ones(imagenet, split):
  with pytest.raises(DatasetError, match='train, valid, train_and_valid, test'):
    builders.num_examples(imagenet, split)


def test_split_that_was_not_prepared_is_named(sharded):
  with pytest.raises(DatasetError, match="no 'test'.*prepared with train only"):
    builders.num_examples(sharded, 'test')


def test_missing_imagenet_says_how_to_prepare_it(tmp_path):
  with pytest.raises(DatasetError) as error:
    builders.load_builder('imagenet2012', str(tmp_path))
  for part in (
    f'{tmp_path}/imagenet2012/5.1.0',
    'ILSVRC2012_img_train.tar',
    f'{tmp_path}/downloads/manual',
    f"tfds.builder('imagenet2012', data_dir='{tmp_path}').download_and",
    '--config=digits',
  ):
    assert part in str(error.value)
  assert not list(tmp_path.iterdir())


def test_missing_dataset_is_not_downloaded_but_explained(tmp_path):
  with pytest.raises(DatasetError) as error:
    builders.load_builder('mnist', str(tmp_path))
  command = f"tfds.builder('mnist', data_dir='{tmp_path}').download_and_prepare"
  assert command in str(error.value)
  assert f'{tmp_path}/mnist/3.0.1' in str(error.value)
  assert not list(tmp_path.iterdir())


def test_unknown_dataset_suggests_similar_names(tmp_path):
  with pytest.raises(DatasetError, match='Did you mean .*cifar10'):
    builders.load_builder('cifar_10', str(tmp_path))


@pytest.mark.parametrize(
  'name',
  ['', 'huggingface:mnist', 'a b', 'mnist/x=1', 'mnist:x', 'mnist:1'],
)
def test_names_that_tfds_would_take_elsewhere_are_refused(name, tmp_path):
  with pytest.raises(DatasetError, match='not the name of a dataset'):
    builders.load_builder(name, str(tmp_path))


@pytest.mark.parametrize('name', ['mnist:9.9.9', 'imagenet2012:1.0.0'])
def test_unknown_version_is_refused(name, tmp_path):
  with pytest.raises(DatasetError, match=name):
    builders.load_builder(name, str(tmp_path))


@pytest.mark.parametrize(
  ('features', 'message'),
  [
    ({'text': tfds.features.Text(), 'label': LABEL}, 'none of them is an im'),
    ({'image': tfds.features.Image(), 'text': tfds.features.Text()}, 'a label'),
    (
      {
        'image': tfds.features.Tensor(shape=(4, 4, 3), dtype=np.float32),
        'label': LABEL,
      },
      "'image' is not a uint8 image",
    ),
    (
      {
        'image': tfds.features.Tensor(shape=(4, 4), dtype=np.uint8),
        'label': LABEL,
      },
      "'image' is not a uint8 image",
    ),
    (
      {
        'image': tfds.features.Image(),
        'label': tfds.features.Scalar(np.float32),
      },
      "'label' is not a class label",
    ),
  ],
)
def test_unsuitable_dataset_says_what_it_has(features, message, tmp_path):
  example = {
    key: 'x'
    if key == 'text'
    else np.zeros([side or 4 for side in feature.shape], feature.np_dtype)
    for key, feature in features.items()
  }
  make_dataset('Odd', tmp_path, features, {'train': [example]})
  with pytest.raises(DatasetError, match=message) as error:
    builders.load_builder('odd', str(tmp_path))
  for key in features:
    assert f'{key}: ' in str(error.value)


def test_loading_writes_nothing_to_the_terminal(imagenet, data_dir):
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    builders.load_builder('imagenet2012', data_dir)
  assert (out.getvalue(), err.getvalue()) == ('', '')
