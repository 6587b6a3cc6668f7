"""Images with labels: a dataset of TFDS, and a folder with one per class."""

import io
import json

import many_lib
import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from nfnets import classify, embed
from nfnets.data import dataset

network, run = many_lib.network, many_lib.run


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
  """Returns where TFDS has the handwritten digits."""
  folder = tmp_path_factory.mktemp('tfds')
  dataset.load_builder('digits', str(folder))
  return folder


@pytest.fixture
def counting(network):
  """Makes `network` tell digits, badly, by the sum of their pixels."""
  network.num_classes, network.class_names = 10, None

  def preprocess(image):
    image = np.asarray(Image.open(io.BytesIO(image)).convert('RGB'))
    return np.full((2, 2, 3), image.astype(int).sum() // 3, np.float32)

  def logits(images):
    return np.float32(images[:, 0, 0, :1] % 10 == np.arange(10))

  network.preprocess, network.logits = preprocess, logits
  return network


def test_examples_of_tfds_have_labels(run, digits, counting):
  args = '--data=digits', f'--data_dir={digits}', '--json', '--batch_size=100'
  status, out, _ = run(classify.main, *args)
  *rows, results = map(json.loads, out.splitlines())
  builder = dataset.load_builder('digits', str(digits))
  examples = [*tfds.as_numpy(builder.as_dataset('test'))]
  labels = np.array([example['label'] for example in examples])
  guesses = [int(example['image'].sum()) % 10 for example in examples]
  assert status == 0 and len(rows) == len(labels)
  assert [row['image'] for row in rows[:2]] == [
    *('digits/test[0]', 'digits/test[1]')
  ]
  np.testing.assert_array_equal([row['true_label'] for row in rows], labels)
  np.testing.assert_array_equal([x['top'][0]['label'] for x in rows], guesses)
  assert [row['correct'] for row in rows] == [*(labels == guesses)]
  assert results['accuracy'] == np.mean(labels == guesses)


def test_folders_with_classes_have_labels(run, tmp_path, network):
  rng = np.random.default_rng(0)
  for split, count in (('train', 1), ('test', 4)):
    for name in ('dog', 'ant', 'cat'):
      folder = tmp_path / 'pets' / split / name
      folder.mkdir(parents=True)
      for i in range(count):
        pixels = rng.integers(0, 256, (3, 3, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f'{i}.png')
  data = f'--data={tmp_path / "pets"}'
  output = tmp_path / 'x.npz'
  assert run(embed.main, data, f'--output={output}')[0] == 0
  with np.load(output, allow_pickle=False) as file:
    paths, labels = list(file['paths']), list(file['labels'])
  names = ('ant', 'cat', 'dog')
  expected = [(name, i) for name in names for i in range(4)]
  folder = tmp_path / 'pets' / 'test'
  assert paths == [str(folder / name / f'{i}.png') for name, i in expected]
  assert labels == [names.index(name) for name, _ in expected]
  _, out, _ = run(classify.main, data, '--threshold=1')
  assert out.startswith(f'{folder}/ant/0.png  (ant)\n\n')
  # Accuracy is that of the best class, whether it is told or not.
  _, printed, _ = run(classify.main, data, '--json')
  rows = [json.loads(line) for line in printed.splitlines()[:-1]]
  right = [row['top'][0]['label'] == row['true_label'] for row in rows]
  assert json.loads(out.splitlines()[-1])['accuracy'] == np.mean(right)


def test_other_numbers_of_classes_are_refused(run, digits, network):
  args = '--data=digits', f'--data_dir={digits}'
  status, out, err = run(classify.main, *args)
  assert (status, out) == (1, '')
  assert err == 'error: the dataset has 10 classes, and the network 3.\n'
