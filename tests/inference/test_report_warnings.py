"""Warnings about a dataset and a result."""

import numpy as np
import pytest

from nfnets.inference import evaluation, report_warnings

NAMES = ['ant', 'bee', 'cat']
GOOD = 500 * np.eye(3, dtype=int) + 5


def found(matrix, num_failed=0):
  """Returns an evaluation with so many predictions, labels by predictions."""
  pairs = [
    np.repeat([pair], count, axis=0) for pair, count in np.ndenumerate(matrix)
  ]
  labels, predicted = np.concatenate(pairs).T
  predicted[:num_failed] = -1
  return evaluation.Evaluation(labels, predicted, 3, NAMES)


def of_counts(train, test):
  train = None if train is None else np.array(train)
  return report_warnings.check_class_counts(found(np.diag(test)), train)


def of_predictions(matrix, num_failed=0):
  return report_warnings.check_predictions(found(matrix, num_failed))


of_files, of_setup = report_warnings.check_files, report_warnings.check_setup
SIZES = np.full((9, 2), 100)


@pytest.mark.parametrize(
  ('warned', 'text', 'names'),
  [
    (lambda: of_counts([50, 9, 20], [50] * 3), 'unequal', ('ant', 'bee')),
    (lambda: of_counts([50, 0, 20], [50] * 3), 'nothing to learn', ('bee',)),
    (lambda: of_counts(None, [50, 9, 10]), 'Fewer than 10', ('bee',)),
    (lambda: of_counts(None, [50, 0, 10]), 'no test image', ('bee',)),
    (lambda: of_predictions(GOOD * [1, 0, 1]), 'never', ('bee',)),
    (lambda: of_predictions(GOOD // 100), 'too few', ()),
    (lambda: of_predictions(GOOD, 3), 'not finite for 3 of 1,545', ()),
    (
      lambda: of_predictions([[100, 200, 5], [99, 1, 5], [99, 1, 5]]),
      'does worse',
      (),
    ),
    (
      lambda: of_predictions([[300, 9, 9], [99, 1, 5], [99, 5, 1]]),
      'may be no better',
      (),
    ),
    (lambda: of_files({}, [('a', 'b')]), 'in two splits', ('a = b',)),
    (lambda: of_files({}, [], [('a', 'b')]), 'two classes', ('a = b',)),
    (lambda: of_files({'a': 'empty'}), 'One image', ('a (empty)',)),
    (
      lambda: of_files(dict.fromkeys('abcdefg', 'x')),
      '7 images cannot be read',
      tuple(f'{name} (x)' for name in 'abcdefg'),  # All of them.
    ),
    (
      lambda: of_setup('test', np.array([[60, 300], [70, 64]]), 192),
      'at most 62 pixels',
      (),
    ),
    (lambda: of_setup('test', SIZES, 99, [2.0, np.nan]), 'diverged', ()),
    (lambda: of_setup('validation', SIZES, 99), 'validation images', ()),
  ],
)
def test_what_is_wrong_is_said_with_the_names(warned, text, names):
  [only] = warned()
  assert text in only.text and only.names == names


def test_nothing_is_wrong_with_good_data():
  assert not [
    *of_counts([50, 20, 20], [50, 10, 10]),
    *of_predictions(GOOD),
    *of_files({}),
    *of_setup('test', SIZES, 192, [2.0, 1.0]),
    *of_setup('test', np.zeros((0, 2), int), 192),
  ]


def test_few_names_are_shown_and_the_others_counted():
  [only] = of_files({}, [(f'a{i}', f'b{i}') for i in range(8)])
  assert only.names[0] == 'a0 = b0' and len(only.names) == 5
  assert only.more == 3 and '8 files have' in only.text
