"""Warnings about a dataset and a result."""

import numpy as np
import pytest

from nfnets.inference import curves, evaluation, report_warnings

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


def of_rows(train, valid, best, stopped_early=False):
  """Warns of a training with these losses, at every tenth step."""
  rows = [
    curves.Row(i / 2, 10 * i, x, y, 0.5, 0.1, is_best=10 * i == best)
    for i, (x, y) in enumerate(zip(train, valid, strict=True), 1)
  ]
  return report_warnings.check_training(rows, stopped_early)


# Validation gets better and then worse, the best of nine at step 40.
TURNS = [1.0, 0.7, 0.6, 0.5, 0.52, 0.55, 0.58, 0.6, 0.7]
FALLS = [1.0, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35, 0.3]
SETTLES = [1.0, 0.7, 0.6, 0.5, 0.45, 0.41, 0.4, 0.4, 0.4]


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
    (
      lambda: of_rows([0.1] * 9, SETTLES, 90),
      'at step 90 the loss is 0.100 in training and 0.400 in validation',
      (),
    ),
    (
      lambda: of_rows(TURNS, TURNS, 40),
      'was 40 of 90, and the loss of validation has risen from 0.500 to 0.700',
      (),
    ),
    (
      lambda: of_rows(FALLS, FALLS, 90),
      'its loss has fallen from 0.450 to 0.300 since step 60',
      (),
    ),
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
    *of_rows(SETTLES, SETTLES, 90),
    *of_rows([0.001] * 9, [0.15] * 9, 90),  # Little is left to learn.
    *of_rows(TURNS, TURNS, 40, stopped_early=True),
    *of_rows(TURNS, TURNS, 70),  # Not long before the end.
    *of_rows(FALLS[:3], FALLS[:3], 30),  # Too few to tell.
    *of_rows([], [], 0),
    *of_rows([np.nan] * 5, [np.nan] * 5, 0),  # None is best.
  ]


def test_few_names_are_shown_and_the_others_counted():
  [only] = of_files({}, [(f'a{i}', f'b{i}') for i in range(8)])
  assert only.names[0] == 'a0 = b0' and len(only.names) == 5
  assert only.more == 3 and '8 files have' in only.text
