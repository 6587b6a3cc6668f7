"""What the report warns of."""

import numpy as np
import pytest

from nfnets.inference import advice, measures

NAMES = ['ant', 'bee', 'cat']


def on_counts(train, test):
  train = None if train is None else np.array(train)
  return advice.on_counts(NAMES, train, np.array(test))


def on_predictions(matrix, num_failed=0):
  matrix = np.array(matrix)
  counts = measures.ByClass(
    matrix.sum(axis=1), matrix.diagonal(), matrix.sum(axis=0)
  )
  return advice.on_predictions(NAMES, counts, num_failed)


GOOD = 500 * np.eye(3, dtype=int) + 5


@pytest.mark.parametrize(
  ('warned', 'text', 'names'),
  [
    (lambda: on_counts([50, 9, 20], [50] * 3), 'unequal', ('ant', 'bee')),
    (lambda: on_counts([50, 0, 20], [50] * 3), 'nothing to learn', ('bee',)),
    (lambda: on_counts(None, [50, 9, 10]), 'Fewer than 10', ('bee',)),
    (lambda: on_counts(None, [50, 0, 10]), 'no test image', ('bee',)),
    (lambda: on_predictions(GOOD * [1, 0, 1]), 'never', ('bee',)),
    (lambda: on_predictions(GOOD // 100), 'too few', ()),
    (lambda: on_predictions(GOOD, 3), 'not finite for 3 of 1,545', ()),
    (
      lambda: on_predictions([[100, 200, 5], [99, 1, 5], [99, 1, 5]]),
      'does worse',
      (),
    ),
    (
      lambda: on_predictions([[300, 9, 9], [99, 1, 5], [99, 5, 1]]),
      'may be no better',
      (),
    ),
    (
      lambda: advice.on_images(np.array([[60, 300], [70, 64]]), 192),
      'at most 62 pixels',
      (),
    ),
    (lambda: advice.on_duplicates([('a', 'b')]), 'One file', ('a = b',)),
    (lambda: advice.on_curves([2.0, float('nan')]), 'diverged', ()),
    (lambda: advice.on_split('validation'), 'validation images', ()),
  ],
)
def test_a_colleague_would_warn(warned, text, names):
  [only] = warned()
  assert text in only.text and only.names == names


def test_nothing_is_wrong_with_good_data():
  sizes = np.full((9, 2), 100)
  assert not [
    *on_counts([50, 20, 20], [50, 10, 10]),
    *on_predictions(GOOD),
    *advice.on_images(sizes, 192),
    *advice.on_images(np.zeros((0, 2), int), 192),
    *advice.on_duplicates([]),
    *advice.on_curves([]),
    *advice.on_curves([2.0, 1.0]),
    *advice.on_split('test'),
  ]


def test_few_names_are_shown_and_the_others_counted():
  pairs = [(f'a{i}', f'b{i}') for i in range(8)]
  [only] = advice.on_duplicates(pairs)
  assert only.names[0] == 'a0 = b0' and len(only.names) == 5
  assert only.more == 3 and '8 files have' in only.text
