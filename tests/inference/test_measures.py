"""The numbers of the report, beside SciPy's and scikit-learn's."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from nfnets.inference import measures


@pytest.mark.parametrize('trials', [1, 7, 360])
def test_wilsons_interval_is_scipys(trials):
  for successes in {0, 1, trials // 2, trials - 1, trials}:
    expected = stats.binomtest(successes, trials).proportion_ci(method='wilson')
    actual = measures.wilson(successes, trials)
    np.testing.assert_allclose(actual, expected, atol=1e-12)


def test_intervals_of_arrays_hold_nothing_outside_of_0_and_1():
  low, high = measures.wilson(np.array([0, 0, 3]), np.array([0, 3, 3]))
  assert low[0] == 0 and high[0] == 1  # Nothing is known.
  assert low[1] == 0 and 0 < high[1] < 1
  assert high[2] == 1 and 0 < low[2] < 1


@pytest.fixture
def predictions():
  rng = np.random.default_rng(0)
  labels, predicted = rng.integers(0, 5, (2, 200))
  predicted[:60] = labels[:60]
  labels[labels == 4] = 3
  return labels, predicted


def test_confusions_are_scikit_learns(predictions):
  expected = metrics.confusion_matrix(*predictions, labels=range(5))
  np.testing.assert_array_equal(
    measures.confusion(*predictions, 5, cells=9), expected
  )
  counts = measures.by_class(*predictions, 5)
  np.testing.assert_array_equal(counts.total, expected.sum(axis=1))
  np.testing.assert_array_equal(counts.predicted, expected.sum(axis=0))
  np.testing.assert_array_equal(counts.correct, expected.diagonal())
  pairs = measures.confused_pairs(*predictions, most=4)
  np.fill_diagonal(expected, 0)
  assert [n for *_, n in pairs] == sorted(expected.flat)[:-5:-1]
  assert all(expected[i, j] == n for i, j, n in pairs)


def test_classes_share_the_cells_of_a_small_matrix(predictions):
  labels, predicted = predictions
  matrix = measures.confusion(labels, predicted, 5, cells=2)
  # 0 to 2 and 3 to 4.
  expected = metrics.confusion_matrix(labels > 2, predicted > 2)
  np.testing.assert_array_equal(matrix, expected)


def test_a_prediction_of_no_class_is_a_mistake():
  labels, predicted = np.array([0, 1, 1]), np.array([-1, 1, 0])
  counts = measures.by_class(labels, predicted, 2)
  assert list(counts.total) == [1, 2] and list(counts.correct) == [0, 1]
  assert measures.confusion(labels, predicted, 2, 2).sum() == 2
  assert measures.confused_pairs(labels, predicted, 9) == [(1, 0, 1)]
