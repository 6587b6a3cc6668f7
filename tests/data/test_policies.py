"""Tests of what RandAugment and AutoAugment choose."""

import collections

import numpy as np
import pytest
import tensorflow as tf

from nfnets.data import autoaugment

# AutoAugment's policy: operation, probability and magnitude, twice per row.
POLICY = """
  Eq .8 1 ShY .8 4   Col .4 9 Eq .6 3    Col .4 1 Rot .6 8   Sol .8 3 Eq .4 7
  Sol .4 2 Sol .6 2  Col .2 0 Eq .8 8    Eq .4 8 SolA .8 3   ShX .2 9 Rot .6 8
  Col .6 1 Eq 1 2    Inv .4 9 Rot .6 0   Eq 1 9 ShY .6 3     Col .4 7 Eq .6 0
  Post .4 6 AutoC .4 7  Sol .6 8 Col .6 9  Sol .2 4 Rot .8 9  Rot 1 7 TrY .8 9
  ShX 0 0 Sol .8 4   ShY .8 0 Col .6 4   Col 1 0 Rot .6 2    Eq .8 4 Eq 0 8
  Eq 1 4 AutoC .6 2  ShY .4 7 SolA .6 7  Post .8 2 Sol .6 10
  Sol .6 8 Eq .6 1   Col .8 6 Rot .4 5
"""
NAMES = {
  'AutoC': 'AutoContrast', 'Eq': 'Equalize', 'Inv': 'Invert', 'Rot': 'Rotate',
  'Post': 'Posterize', 'Sol': 'Solarize', 'Col': 'Color', 'Con': 'Contrast',
  'Bri': 'Brightness', 'Sha': 'Sharpness', 'ShX': 'ShearX', 'ShY': 'ShearY',
  'TrX': 'TranslateX', 'TrY': 'TranslateY', 'Cut': 'Cutout',
  'SolA': 'SolarizeAdd',
}  # fmt: skip


def outcomes_of(name, m, wrap, translate, probability=1.0):
  """{(number of the operation, its argument): probability}."""
  threshold = int(25.6 * m) % 256 if wrap else int(25.6 * m)
  arguments = {
    'Post': int(0.4 * m), 'Sol': threshold, 'SolA': int(11 * m),
    'Cut': int(4 * m), 'Rot': 3 * m, 'ShX': 0.03 * m, 'ShY': 0.03 * m,
    'TrX': translate * m, 'TrY': translate * m,
  } | dict.fromkeys(('Col', 'Con', 'Bri', 'Sha'), 0.18 * m + 0.1)  # fmt: skip
  number = autoaugment._OPERATIONS.index(NAMES[name])
  signs = (1, -1) if name in ('Rot', 'ShX', 'ShY', 'TrX', 'TrY') else (1,)
  outcomes = collections.Counter()
  for sign in signs:
    value = round(float(sign * arguments.get(name, 0)), 4)
    outcomes[number, value] += probability / len(signs)
  outcomes[16, None] += 1 - probability
  return {key: p for key, p in outcomes.items() if p}


def seen(operations, arguments):
  """What was chosen, in the same form."""
  return [
    (int(i), None if i == 16 else round(float(x), 4) + 0.0)
    for i, x in zip(operations, arguments, strict=True)
  ]


def check_frequencies(counts, outcomes):
  """Chi-square test at five standard deviations; the numbers are fixed."""
  assert sum(outcomes.values()) == pytest.approx(1)
  assert counts.keys() <= outcomes.keys()
  num = sum(counts.values())
  cells = [(counts[key], num * p) for key, p in outcomes.items()]
  observed, expected = np.array(cells).T
  assert (expected > 5).all()
  deviation = (observed - expected) ** 2 / expected
  degrees = len(deviation) - 1
  assert deviation.sum() < degrees + 5 * (2 * degrees) ** 0.5
  assert deviation.max() < 5**2


def uniform(*shape):
  rng = np.random.default_rng(0)
  return tf.constant(rng.random(shape, np.float32))


@pytest.mark.parametrize('wrap', [True, False])
def test_a_layer_is_one_of_16_operations_with_the_published_argument(wrap):
  numbers = uniform(4000, 4)
  for magnitude in range(31):
    chosen = autoaugment._choose_any(numbers, magnitude, wrap)[:2]
    outcomes = collections.Counter()
    for name in NAMES:
      for key, p in outcomes_of(name, magnitude, wrap, 10).items():
        outcomes[key] += p / 16
    counts = collections.Counter(seen(*(x.numpy() for x in chosen)))
    check_frequencies(counts, outcomes)


def test_cutouts_are_anywhere_whatever_the_operation():
  chosen, _, places_of_all = autoaugment._choose_any(
    uniform(40_000, 4), 5, True
  )
  for i in range(16):
    places = places_of_all[chosen == i].numpy()
    np.testing.assert_allclose(places.mean(0), 0.5, atol=0.03)
    np.testing.assert_allclose(places.std(0), 12**-0.5, atol=0.02)
    assert places.min() >= 0 and places.max() < 1


@pytest.mark.parametrize('wrap', [True, False])
@pytest.mark.slow
def test_autoaugment_chooses_from_its_policy_with_its_probabilities(wrap):
  outcomes = collections.Counter()
  for row in np.reshape(POLICY.split(), (25, 2, 3)):
    first, second = (
      outcomes_of(name, int(m), wrap, 25, float(p)) for name, p, m in row
    )
    for one, p in first.items():
      for other, q in second.items():
        outcomes[one, other] += p * q / 25
  choose = tf.function(
    lambda numbers: tf.map_fn(
      lambda x: tuple(autoaugment._choose_policy(x, wrap)[:2]),
      numbers,
      fn_output_signature=(tf.int32, tf.float32),
    ),
    autograph=False,
  )
  chosen = (x.numpy() for x in choose(uniform(40_000, 2, 5)))
  counts = collections.Counter(
    tuple(seen(*pair)) for pair in zip(*chosen, strict=True)
  )
  check_frequencies(counts, outcomes)
