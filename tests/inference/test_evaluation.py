"""Predictions for a split; numbers beside SciPy's and scikit-learn's."""

import dataclasses
import os

import evaluation_lib
import numpy as np
import pictures_lib
from PIL import Image
import pytest
import quick_lib
from scipy import stats
from sklearn import metrics

from nfnets import zoo
from nfnets.errors import UserError
from nfnets.inference import evaluation, networks

pictures, quickly_compiled = pictures_lib.pictures, quick_lib.quickly_compiled
BATCH, HEAD = evaluation_lib.BATCH, evaluation_lib.HEAD


@pytest.mark.parametrize('trials', [1, 7, 360])
def test_wilsons_interval_is_scipys(trials):
  for successes in {0, 1, trials // 2, trials - 1, trials}:
    expected = stats.binomtest(successes, trials).proportion_ci(method='wilson')
    actual = evaluation.share(successes, trials)
    np.testing.assert_allclose(
      (actual['low'], actual['high']), expected, atol=1e-12
    )
    assert actual['share'] == successes / trials
  assert evaluation.share(0, trials)['low'] == 0
  assert evaluation.share(trials, trials)['high'] == 1
  nothing = evaluation.share(0, 0)
  assert (nothing['share'], nothing['low'], nothing['high']) == (0, 0, 1)


def predictions(num_classes=5):
  """Returns predictions of classes of which the last has no example."""
  rng = np.random.default_rng(0)
  labels, predicted = rng.integers(0, num_classes, (2, 40 * num_classes))
  predicted[: 12 * num_classes] = labels[: 12 * num_classes]
  labels[labels == num_classes - 1] = num_classes - 2
  names = [f'class {i}' for i in range(num_classes + 1)]
  return evaluation.Evaluation(labels, predicted, num_classes, names)


def test_counts_are_scikit_learns():
  found = predictions()
  expected = metrics.confusion_matrix(
    found.labels, found.predicted, labels=range(5)
  )
  np.testing.assert_array_equal(found.confusion(9), expected)
  for i, row in enumerate(found.classes):
    assert row['name'] == f'class {i}' and row['label'] == i
    assert row['total'] == expected[i].sum()
    assert row['correct'] == expected[i, i]
    assert row['predicted'] == expected[:, i].sum()
  right = metrics.accuracy_score(found.labels, found.predicted)
  assert found.accuracy['share'] == pytest.approx(right)
  pairs = found.confused_pairs(4)
  np.fill_diagonal(expected, 0)
  assert [x['correct'] for x in pairs] == sorted(expected.flat)[:-5:-1]
  for pair in pairs:
    i, j = (found.names.index(pair[key]) for key in ('label', 'taken_for'))
    assert expected[i, j] == pair['correct']
    assert pair['total'] == found.classes[i]['total']
  # 0 to 2 and 3 to 4 share the cells of a small matrix.
  expected = metrics.confusion_matrix(found.labels > 2, found.predicted > 2)
  np.testing.assert_array_equal(found.confusion(2), expected)
  worst = found.worst_classes()
  assert [*worst[-1:], *worst[:-1]] == sorted(
    found.classes, key=lambda row: (row['total'] > 0, row['share'])
  )


def test_precision_recall_and_f1_are_scikit_learns():
  found = predictions()
  found.predicted[found.predicted == 1] = 0  # So that 1 is never predicted.
  found.predicted[:3] = -1, 5, -1
  for average, labels in ((None, range(5)), ('macro', range(4))):
    *expected, _ = metrics.precision_recall_fscore_support(
      *(found.labels, found.predicted),
      labels=labels,
      average=average,
      zero_division=0,
    )
    for name, values in zip(
      ('precision', 'recall', 'f1'), expected, strict=True
    ):
      actual = found.macro[f'macro_{name}']
      if average is None:
        actual = [row[name] for row in found.classes]
      np.testing.assert_allclose(actual, values, rtol=1e-12)


def test_a_prediction_of_no_class_of_the_dataset_is_a_mistake():
  labels, predicted = np.array([0, 1, 1, 0]), np.array([-1, 1, 0, 2])
  found = evaluation.Evaluation(labels, predicted, 2, ['a', 'b', 'other'])
  assert [row['total'] for row in found.classes] == [2, 2]
  assert [row['correct'] for row in found.classes] == [0, 1]
  assert [row['predicted'] for row in found.classes] == [1, 1]
  assert found.confusion(9).tolist() == [[0, 0, 1], [1, 1, 0], [0, 0, 0]]
  named = [(x['label'], x['taken_for']) for x in found.confused_pairs(9)]
  assert named == [('a', 'other'), ('b', 'a')]


def evaluate(pictures, model=None, params=None, split='test', most=4):
  digits = quick_lib.digits()
  network = networks.of(model or digits[0], params or digits[1], {})
  return evaluation.evaluate(network, pictures, split, BATCH, most)


@pytest.fixture(scope='module')
def found(pictures):
  return evaluate(pictures)


def test_every_image_counts_once_and_the_extremes_are_kept(pictures, found):
  model, params = quick_lib.digits()
  paths = [os.path.join(pictures.root, p) for p in pictures.paths('test')]
  images = [model.preprocess(np.asarray(Image.open(path))) for path in paths]
  images = np.stack(images + images[: -len(images) % BATCH])
  logits = [
    model.logits(params, images[i : i + BATCH])
    for i in range(0, len(images), BATCH)
  ]
  exp = np.exp(np.float64(np.concatenate(logits))[: len(paths)])
  probabilities = exp / exp.sum(axis=1, keepdims=True)
  best = probabilities.argmax(axis=1)
  labels = np.array(pictures.labels('test'))
  np.testing.assert_array_equal(found.labels, labels)
  np.testing.assert_array_equal(found.predicted, best)
  top = probabilities.max(axis=1)
  assert [x.index for x in found.uncertain] == [*np.argsort(top)[:4]]
  wrong = np.flatnonzero(best != labels)
  sure = wrong[np.argsort(-top[wrong])][:4]
  assert [x.index for x in found.mistakes] == [*sure]
  np.testing.assert_array_equal(found.indices, range(len(paths)))
  np.testing.assert_allclose(found.confidence, top, rtol=1e-3)
  of_label = probabilities[np.arange(len(labels)), labels]
  np.testing.assert_allclose(found.of_label, of_label, rtol=1e-3)
  for picture in found.mistakes:
    i = picture.index
    assert (picture.label, picture.predicted) == (labels[i], best[i])
    np.testing.assert_allclose(
      (picture.confidence, picture.of_label),
      (top[i], probabilities[i, labels[i]]),
      rtol=1e-3,
    )
    # It shows what the network gets.
    image = np.clip(model.denormalize(images[i]), 0, 255)
    assert picture.pixels.dtype == np.uint8
    np.testing.assert_allclose(picture.pixels, image, atol=0.51)


def with_classes(order, names, bias=0):
  """Returns `digits()` whose logits have another order, and names."""
  model, params = quick_lib.digits()
  last = {k: v[..., order] for k, v in params[HEAD].items()}
  last['b'] = last['b'] + bias
  model = zoo.with_num_classes(model, len(order))
  model = dataclasses.replace(model, class_names=tuple(names))
  return model, {**params, HEAD: last}


def test_an_equivalent_network_has_the_same_results(pictures, found):
  order = np.random.default_rng(0).permutation(10)
  names = np.array(pictures.names)[order]
  other = evaluate(pictures, *with_classes(order, names))
  np.testing.assert_array_equal(other.labels, found.labels)
  np.testing.assert_array_equal(other.predicted, found.predicted)
  shown = [[p._replace(pixels=0) for p in x.uncertain] for x in (other, found)]
  np.testing.assert_allclose(*shown, rtol=1e-5)
  assert 'by name' in other.note and 'by number' in found.note
  assert other.names == found.names


def test_classes_that_the_dataset_lacks_can_be_mistaken(pictures, found):
  # The most frequent prediction comes a little after one of its own.
  best = int(np.bincount(found.predicted).argmax())
  names, bias = ['<tabby>', *pictures.names], np.arange(11) == 0
  other = evaluate(pictures, *with_classes([best, *range(10)], names, bias))
  is_outside = other.predicted == 10
  assert is_outside[found.predicted == best].all()
  same = np.where(is_outside, found.predicted, other.predicted)
  np.testing.assert_array_equal(same, found.predicted)
  assert other.names[10] == '<tabby>' and other.num_classes == 10


@pytest.mark.parametrize('split', ['test', 'tset'])
def test_without_any_result_there_is_an_error(pictures, split):
  model, params = quick_lib.digits()
  params = {
    **params,
    HEAD: {'w': params[HEAD]['w'] * np.nan, 'b': np.zeros(10)},
  }
  message = {
    'test': 'not finite for any of 31 images',
    'tset': "Unknown split 'tset'",
  }
  with pytest.raises(UserError, match=message[split]):
    evaluate(pictures, model, params, split)


def test_output_that_is_not_finite_is_a_mistake(pictures, monkeypatch):
  logits = networks.Network.logits

  def spoil(self, images):
    is_first = np.arange(len(images))[:, None] == 0  # Of a batch.
    return np.where(is_first, np.nan, logits(self, images))

  monkeypatch.setattr(networks.Network, 'logits', spoil)
  found = evaluate(pictures, most=40)
  is_wrong = np.flatnonzero(found.predicted == -1)
  assert is_wrong.tolist() == [*range(0, 31, BATCH)]
  assert len(found.uncertain) == 31 - len(is_wrong)
  assert not {p.index for p in found.uncertain} & {*is_wrong}
