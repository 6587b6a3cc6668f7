"""The probe: classifiers on embeddings, and what is kept of these."""

import dataclasses

import numpy as np
import pictures_lib
import pytest
import quick_lib
from scipy import stats
from sklearn import datasets, linear_model, pipeline, preprocessing

from nfnets import weights
from nfnets.errors import UserError
from nfnets.inference import evaluation, networks, probing

pictures, quickly_compiled = pictures_lib.pictures, quick_lib.quickly_compiled

BATCH = 5  # As in other tests, which have it compiled.


def clouds(num_classes, count, seed=0):
  """Returns embeddings that are neither centred nor of one scale."""
  rng = np.random.default_rng([1, num_classes])
  centers, scales = (
    rng.normal(size=(num_classes, 8)),
    10.0 ** rng.normal(size=8),
  )
  rng = np.random.default_rng(seed)
  labels = np.repeat(np.arange(num_classes, dtype=np.int32), count)
  noise = rng.normal(size=(len(labels), 8))
  features = 3 + scales * (centers[labels] + noise)
  names = [f'class {i}' for i in range(num_classes)]
  return probing.Embeddings(features.astype(np.float32), labels, names)


@pytest.mark.parametrize('num_classes', [2, 3])
def test_the_layer_gives_scikit_learns_probabilities(num_classes):
  train, test = clouds(num_classes, 1), clouds(num_classes, 20, seed=1)
  # With one image per class, the strength is known.
  expected = pipeline.make_pipeline(
    preprocessing.StandardScaler(),
    linear_model.LogisticRegression(C=probing.FIXED_STRENGTH, max_iter=1000),
  ).fit(train.features.astype(np.float64), train.labels)
  head = probing.fit(train)
  assert head.w.shape == (8, num_classes) and head.b.shape == (num_classes,)
  logits = test.features @ head.w + head.b
  decision = expected.decision_function(test.features.astype(np.float64))
  if num_classes == 2:
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], decision, atol=1e-4)
  else:
    np.testing.assert_allclose(logits, decision, atol=1e-4)
  accuracy = expected.score(test.features.astype(np.float64), test.labels)
  assert head.evaluate(test).accuracy['share'] == pytest.approx(accuracy)


def test_the_strength_follows_the_data():
  train, test = clouds(3, 30), clouds(3, 200, seed=9)
  noise = np.random.default_rng(0).permutation(train.labels)
  informed, misled = map(probing.fit, (train, train._replace(labels=noise)))
  assert informed.evaluate(test).accuracy['share'] > 0.6
  # Where features say nothing, the best penalty leaves next to nothing.
  scale = train.features.std(axis=0)[:, None]
  assert np.abs(misled.w * scale).max() < 0.1 * np.abs(informed.w * scale).max()


def test_a_class_without_images_is_named():
  train = clouds(3, 4)
  with pytest.raises(UserError, match='a fox'):
    probing.fit(train._replace(names=[*train.names, 'a fox']))


def test_cross_validation_tests_on_nothing_that_it_was_fitted_to():
  train = clouds(3, 9)
  # Alone of its class, an example is not tested; of two, both are.
  keep = np.r_[0:9, 9:10, 18:20]
  train = train._replace(indices=np.arange(27)).select(keep)
  found = probing.cross_validate(train)
  assert sorted(found.indices) == [*range(9), 18, 19]
  np.testing.assert_array_equal(found.labels, found.indices // 9)
  # Noise is remembered by a layer that was fitted to it, and not by others.
  rng = np.random.default_rng(0)
  noise = train._replace(
    features=rng.normal(size=(60, 400)).astype(np.float32),
    labels=rng.integers(0, 3, 60).astype(np.int32),
    indices=np.arange(60),
  )
  assert probing.fit(noise).evaluate(noise).accuracy['share'] > 0.9
  assert probing.cross_validate(noise).accuracy['share'] < 0.6


def test_wrong_labels_are_contradicted_most():
  # Of 600 handwritten digits, 20 get another label.
  pixels, true = datasets.load_digits(return_X_y=True)
  pixels, true, indices = np.float32(pixels[:600]), true[:600], np.arange(600)
  rng = np.random.default_rng(0)
  wrong = rng.choice(600, 20, replace=False)
  labels = true.astype(np.int32)
  labels[wrong] = (labels[wrong] + rng.integers(1, 10, 20)) % 10
  names = [*'0123456789']
  found = probing.cross_validate(
    probing.Embeddings(pixels, labels, names, indices)
  )
  first = found.indices[np.argsort(found.of_label - found.confidence)]
  is_wrong = np.isin(first, wrong)
  assert is_wrong[:20].sum() >= 14 and is_wrong[:40].sum() >= 18


def test_draws_have_so_many_of_every_class():
  labels = np.array([2, 0, 1, 0, 0, 1, 2, 0, 2, 1] * 3)
  chosen, again, other, everything = (
    [*probing.draw(labels, shots, (0, i))]
    for shots, i in ((4, 0), (4, 0), (4, 1), (99, 0))
  )
  assert list(np.bincount(labels[chosen])) == [4, 4, 4]
  assert len({*chosen}) == 12 and chosen == again != other
  assert everything == [*range(30)]


def with_shares(shares, total):
  """Returns evaluations with these accuracies."""
  return [
    evaluation.Evaluation(
      np.zeros(total, int),
      np.int64(np.arange(total) >= x * total),
      2,
      ['a', 'b'],
    )
    for x in shares
  ]


def test_the_interval_of_all_images_is_wilsons():
  expected = stats.binomtest(97, 100).proportion_ci(method='wilson')
  actual = probing.estimate(with_shares([0.97], 100))
  np.testing.assert_allclose([*actual.values()], (0.97, *expected))


def test_the_interval_of_draws_is_students_t_where_there_are_many_images():
  values = [0.5, 0.6, 0.55, 0.52, 0.58]
  low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
  actual = probing.estimate(with_shares(values, 10**6))
  np.testing.assert_allclose([*actual.values()], (0.55, low, high), rtol=1e-3)
  # Few images widen it.
  assert probing.estimate(with_shares(values, 100))['low'] < low - 0.01


def test_shots_that_take_all_are_left_out():
  train, test = clouds(3, 6), clouds(3, 20, seed=1)
  rows = list(probing.measure(train, test, (2, 5, 6, 9), 3, draws=2))
  assert [row['shots'] for row, _ in rows] == [2, 5, None]
  assert [row['draws'] for row, _ in rows] == [2, 2, 1]
  row, head = rows[-1]
  best = head.evaluate(test).accuracy['share']
  assert row['logistic']['accuracy'] == best


def test_neighbours_vote_by_angle():
  train = probing.Embeddings(
    np.float32([[1, 0], [9, 1], [0, 1]]), np.int32([0, 0, 1]), ['a', 'b']
  )
  test = train._replace(features=np.float32([[0, 99], [2, 1]]), labels=None)
  for count in (1, 99):
    assert probing.vote(train, test, count).predicted.tolist() == [1, 0]


@pytest.fixture
def embed(pictures, tmp_path, monkeypatch):
  """Returns a function: embeddings, and whether they were computed."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  compute, computed = probing._compute, []
  monkeypatch.setattr(
    probing, '_compute', lambda *args: computed.append(1) or compute(*args)
  )
  digits = quick_lib.digits()

  def run(model=digits[0], params=digits[1], split='test'):
    before = len(computed)
    network = networks.of(model, params, {})
    return probing.embed(network, pictures, split, BATCH), computed[before:]

  return run


def test_embeddings_are_computed_once_per_network_and_split(
  embed, pictures, monkeypatch
):
  model, params = quick_lib.digits()
  found, computed = embed()
  assert computed and found.features.shape == (31, 256)
  np.testing.assert_array_equal(found.labels, pictures.labels('test'))
  linear = {'NFNet/~/linear': {'w': np.zeros((256, 2)), 'b': np.zeros(2)}}
  again, computed = embed(params={**params, **linear})  # Another last layer.
  np.testing.assert_array_equal(again.features, found.features)
  assert not computed
  fake = {'features': np.ones((3, 2)), 'labels': np.zeros(3)}
  monkeypatch.setattr(probing, '_compute', lambda *_: fake)
  first = next(iter(params))
  changed = {key: value + 1 for key, value in params[first].items()}

  def with_entry(**values):
    entry = dataclasses.replace(model.entry, **values)
    return {'model': dataclasses.replace(model, entry=entry)}

  for arguments in (
    {'params': {**params, first: changed}},
    with_entry(test_size=40),
    with_entry(eval_preproc='crop_resize'),
    with_entry(mean=model.entry.mean + 1),
    {'split': 'valid'},
  ):
    found, _ = embed(**arguments)
    assert found.features.shape == (3, 2), arguments


def test_damaged_and_foreign_embeddings_are_made_again(embed, tmp_path):
  found, _ = embed()
  [path] = tmp_path.glob('nfnets/embeddings/*.npz')
  good = path.read_bytes()
  embed(split='valid')
  [other] = {*path.parent.glob('*.npz')} - {path}
  flipped = bytearray(good)
  flipped[len(good) // 2] ^= 1
  for bad in (b'', good[:-9], bytes(flipped), other.read_bytes()):
    path.write_bytes(bad)
    again, computed = embed()
    assert computed
    np.testing.assert_array_equal(again.features, found.features)


def test_a_cache_that_cannot_be_written_is_done_without(embed, tmp_path):
  (tmp_path / 'nfnets').write_text('a file, where the folder would be')
  assert embed()[1] and embed()[1]


@pytest.mark.parametrize('suffix', ['npz', 'safetensors'])
def test_the_network_with_its_new_layer_can_be_opened(tmp_path, suffix):
  model, params = quick_lib.digits()
  head = probing.Head(np.ones((256, 2)), np.array([0.0, 1.0]))
  path = tmp_path / f'w.{suffix}'
  network = networks.of(model, params, {})
  probing.save(str(path), network, head, ['a', 'b'], accuracy=0.5)
  opened, found, _ = weights.open_model(path)
  assert (opened.name, opened.class_names) == (model.name, ('a', 'b'))
  layer = found['NFNet/~/linear']
  np.testing.assert_array_equal(layer['w'], head.w)
  np.testing.assert_array_equal(layer['b'], head.b)
  assert weights.read_metadata(path)['accuracy'] == 0.5
