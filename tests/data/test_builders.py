"""Tests of what is said about datasets, the good and the unsuitable."""

import os

from conftest import NUM_TEST, NUM_TRAIN, make_dataset
import numpy as np
import pytest
from sklearn import datasets
import tensorflow_datasets as tfds

from nfnets.data import builders, class_balance, digits
from nfnets.errors import UserError

LABEL = tfds.features.ClassLabel(names=['cat', 'dog'])
load = builders.load_builder


def sizes_of(builder):
  return [builders.num_examples(builder, split) for split in builders.SPLITS]


def test_splits_follow_from_the_sizes_in_the_builder(imagenet, monkeypatch):
  tenth = NUM_TRAIN // 10
  assert sizes_of(imagenet) == [NUM_TRAIN - tenth, tenth, NUM_TRAIN, NUM_TEST]
  assert builders.find_split(imagenet, 'test').tfds_split == 'validation'
  large = imagenet.info.splits['train'].replace(shard_lengths=[1_281_167])
  splits = property(lambda _: {'train': large})
  monkeypatch.setattr(type(imagenet.info), 'splits', splits)
  assert builders.find_split(imagenet, 'valid')[1:] == (0, 10_000)
  assert builders.find_split(imagenet, 'train')[1:] == (10_000, 1_281_167)


def test_imagenet_has_its_thousand_classes(imagenet, data_dir, capfd):
  builder = load('imagenet2012', data_dir)
  assert capfd.readouterr() == ('', '')  # TFDS says nothing.
  assert builder.info.full_name == imagenet.info.full_name
  assert builders.num_classes(builder) == 1000
  assert builders.label_names(builder)[0] == 'n01440764'
  names = builders.class_names(builder)
  assert names[:2] + names[999:] == ['tench', 'goldfish', 'toilet tissue']


@pytest.mark.parametrize('name', ['pets', 'pets:1.0.0', 'pets:1.*.*'])
def test_other_datasets_are_found_by_name(tmp_path, name):
  features = {'image': tfds.features.Image(shape=(4, 4, 3)), 'label': LABEL}
  example = {'image': np.zeros((4, 4, 3), np.uint8), 'label': 1}
  examples = {'train': [example] * 3, 'test': [example]}
  make_dataset('Pets', tmp_path, features, examples)
  builder = load(name, str(tmp_path))
  assert builders.class_names(builder) == ['cat', 'dog']
  assert builders.num_examples(builder, 'test') == 1
  assert class_balance.class_counts(builder, 'train').tolist() == [0, 3]


@pytest.mark.parametrize('split', ['', 'validation', 'train[:10]', 'Test'])
def test_unknown_split_is_refused_with_the_known_ones(imagenet, split):
  with pytest.raises(UserError, match='train, valid, train_and_valid, test'):
    builders.num_examples(imagenet, split)


def test_split_that_was_not_prepared_is_named(sharded):
  with pytest.raises(UserError, match="no 'test'.*prepared with train only"):
    builders.num_examples(sharded, 'test')


@pytest.mark.parametrize(
  ('name', 'parts'),
  [
    ('mnist', ['mnist/3.0.1', "tfds.builder('mnist', data_dir='{}').downloa"]),
    (
      'imagenet2012',
      [
        '{}/imagenet2012/5.1.0',
        'ILSVRC2012_img_train.tar',
        '{}/downloads/manual',
        "tfds.builder('imagenet2012', data_dir='{}').download_and",
        '--config=digits',
      ],
    ),
    ('cifar_10', ['Did you mean', 'cifar10']),
    ('mnist:9.9.9', ['mnist:9.9.9']),
    ('imagenet2012:1.0.0', ['imagenet2012:1.0.0']),
    # TFDS would take these elsewhere.
    ('', ['not the name of a dataset']),
    ('huggingface:mnist', ['not the name of a dataset']),
    ('a b', ['not the name of a dataset']),
    ('mnist/x=1', ['not the name of a dataset']),
    ('mnist:1', ['not the name of a dataset']),
  ],
)
def test_missing_dataset_is_not_downloaded_but_explained(tmp_path, name, parts):
  with pytest.raises(UserError) as error:
    load(name, str(tmp_path))
  for part in parts:
    assert part.format(tmp_path) in str(error.value)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'features',
  [
    {'text': tfds.features.Text(), 'label': LABEL},
    {'image': tfds.features.Image(), 'text': tfds.features.Text()},
    {
      'image': tfds.features.Tensor(shape=(4, 4, 3), dtype=np.float32),
      'label': LABEL,
    },
    {
      'image': tfds.features.Tensor(shape=(4, 4), dtype=np.uint8),
      'label': LABEL,
    },
    {
      'image': tfds.features.Image(),
      'label': tfds.features.Scalar(np.float32),
    },
  ],
)
def test_unsuitable_dataset_says_what_it_has(features, tmp_path):
  example = {
    key: 'x'
    if key == 'text'
    else np.zeros([side or 4 for side in feature.shape], feature.np_dtype)
    for key, feature in features.items()
  }
  make_dataset('Odd', tmp_path, features, {'train': [example]})
  with pytest.raises(UserError, match='Needed are an image .* It has') as error:
    load('odd', str(tmp_path))
  for key in features:
    assert f'{key}: ' in str(error.value)


# The digits.


def test_digits_are_those_of_scikit_learn(data_dir):
  builder = load('digits', data_dir)
  assert sizes_of(builder) == [1294, 143, 1437, 360]
  assert builders.label_names(builder) == list('0123456789')
  found = [
    (int(example['label']), (example['image'] / 255 * 16).round().tolist())
    for split in ('train', 'test')
    for example in builder.as_dataset(split=split).as_numpy_iterator()
  ]
  original = datasets.load_digits()
  images = original.images[..., None].tolist()
  expected = zip(original.target.tolist(), images, strict=True)
  assert sorted(found) == sorted(expected)


@pytest.mark.slow
def test_several_processes_may_prepare_digits_at_once(tmp_path, monkeypatch):
  rename, final = os.rename, str(tmp_path / 'digits' / '1.0.0')
  raced = []

  def rename_too_late(source, target):
    if str(target) == final and not raced:
      raced.append(os.listdir(tmp_path))
      digits.prepare(str(tmp_path))  # Another process is faster.
    rename(source, target)

  monkeypatch.setattr(os, 'rename', rename_too_late)
  builder = load('digits', str(tmp_path))
  assert len(raced) == 1 and builder.info.dataset_size > 0
  assert os.listdir(tmp_path) == ['digits']
  assert os.listdir(tmp_path / 'digits') == ['1.0.0']


def test_folder_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match=f'{tmp_path}/file/digits.*TFDS_DATA'):
    load('digits', str(tmp_path / 'file'))
