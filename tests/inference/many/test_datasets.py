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
def classify_digits(run, digits, network):
  """Returns a function that has digits classified: (rows, results, err).

  The network tells them, badly, by the sum of their pixels.
  """

  def preprocess(image):
    image = np.asarray(Image.open(io.BytesIO(image)).convert('RGB'))
    return np.full((2, 2, 3), image.astype(int).sum() // 3, np.float32)

  def run_command(order, *args, class_names=None):
    network.num_classes, network.class_names = len(order), class_names
    network.preprocess = preprocess
    network.logits = lambda images: np.float32(
      images[:, 0, 0, :1] % 10 == np.array(order)
    )
    options = f'--data_dir={digits}', '--json', '--batch_size=100', *args
    status, out, err = run(classify.main, '--data=digits', *options)
    assert status == 0
    *rows, results = map(json.loads, out.splitlines())
    return rows, results, err

  return run_command


def test_examples_of_tfds_have_labels(digits, classify_digits):
  rows, results, err = classify_digits(range(10))
  assert 'labels are matched by number' in err
  builder = dataset.load_builder('digits', str(digits))
  examples = [*tfds.as_numpy(builder.as_dataset('test'))]
  labels = np.array([example['label'] for example in examples])
  guesses = [int(example['image'].sum()) % 10 for example in examples]
  assert [row['image'] for row in rows] == [
    f'digits/test[{i}]' for i in range(len(labels))
  ]
  np.testing.assert_array_equal([row['true_label'] for row in rows], labels)
  np.testing.assert_array_equal([x['top'][0]['label'] for x in rows], guesses)
  assert [row['correct'] for row in rows] == [*(labels == guesses)]
  assert results['accuracy'] == np.mean(labels == guesses)


@pytest.mark.parametrize('how', ['names', 'labels'])
def test_labels_are_those_of_the_names(classify_digits, tmp_path, how):
  _, expected, _ = classify_digits(range(10))
  # The same network, whose logits have another order, and one that never wins.
  order = [*np.random.default_rng(0).permutation(10), -1]
  names = [str(i) for i in order]
  (tmp_path / 'labels.txt').write_text('\n'.join(names))
  rows, results, err = (
    classify_digits(order, class_names=tuple(names))
    if how == 'names'
    else classify_digits(order, f'--labels={tmp_path / "labels.txt"}')
  )
  assert 'labels are matched by name' in err and len(err.splitlines()) == 1
  assert results['accuracy'] == expected['accuracy'] > 0
  for row in rows:
    assert names[row['true_label']] == row['true_name']
    assert row['correct'] == (row['top'][0]['label'] == row['true_label'])


def test_folders_with_classes_have_labels(run, tmp_path, network):
  names = network.class_names = 'ant', 'cat', 'dog'
  rng = np.random.default_rng(0)
  for split in ('train', 'test'):
    for i in range(9):
      path = tmp_path / 'pets' / split / names[i % 3] / f'{i // 3}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(rng.integers(0, 256, (3, 3, 3), np.uint8)).save(path)
  data, output = f'--data={tmp_path / "pets"}', tmp_path / 'x.npz'
  assert run(embed.main, data, f'--output={output}')[0] == 0
  folder = tmp_path / 'pets' / 'test'
  with np.load(output, allow_pickle=False) as file:
    assert file['labels'].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [*file['paths']] == sorted(map(str, folder.glob('*/*')))
  _, out, _ = run(classify.main, data, '--threshold=1')
  assert out.startswith(f'{folder}/ant/0.png  (ant)\n\n')
  # Accuracy is that of the best class, whether it is told or not.
  *printed, _ = run(classify.main, data, '--json')[1].splitlines()
  rows = map(json.loads, printed)
  right = [row['top'][0]['label'] == row['true_label'] for row in rows]
  assert json.loads(out.splitlines()[-1])['accuracy'] == np.mean(right)


def test_other_numbers_of_classes_are_refused(run, digits, network):
  status, out, err = run(classify.main, '--data=digits', f'--data_dir={digits}')
  assert (status, out) == (1, '')
  assert err.startswith('error: digits has classes that the network does not ')
  assert "'0' (number 0), '1' (number 1), '2' (number 2) and 7 more" in err
