"""The probe: classifiers on embeddings, and what is kept of these."""

import dataclasses

import numpy as np
import pictures_lib
import pytest
import quick_lib
from scipy import stats
from sklearn import linear_model, pipeline, preprocessing

from nfnets import weights, zoo
from nfnets.inference import embeddings, networks, probing

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
  return embeddings.Embeddings(features.astype(np.float32), labels)


@pytest.mark.parametrize('num_classes', [2, 3])
def test_the_layer_gives_scikit_learns_probabilities(num_classes):
  train, test = clouds(num_classes, 1), clouds(num_classes, 20, seed=1)
  # With one image per class, the strength is known.
  expected = pipeline.make_pipeline(
    preprocessing.StandardScaler(),
    linear_model.LogisticRegression(C=probing.FIXED_STRENGTH, max_iter=1000),
  ).fit(*map(np.float64, train))
  head = probing.fit(train, num_classes)
  assert head.w.shape == (8, num_classes) and head.b.shape == (num_classes,)
  logits = test.features @ head.w + head.b
  decision = expected.decision_function(test.features.astype(np.float64))
  if num_classes == 2:
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], decision, atol=1e-4)
  else:
    np.testing.assert_allclose(logits, decision, atol=1e-4)
  accuracy = expected.score(test.features.astype(np.float64), test.labels)
  assert head.accuracy(test) == pytest.approx(accuracy)


def test_the_strength_follows_the_data():
  test = clouds(3, 200, seed=9)
  train = clouds(3, 30)
  noise = np.random.default_rng(0).permutation(train.labels)
  informed = probing.fit(train, 3)
  misled = probing.fit(train._replace(labels=noise), 3)
  assert informed.accuracy(test) > 0.6
  # Where features say nothing, the best penalty leaves next to nothing.
  scale = train.features.std(axis=0)
  spread = [
    np.abs(head.w * scale[:, None]).max() for head in (informed, misled)
  ]
  assert spread[1] < 0.1 * spread[0]


def test_a_class_without_images_is_named():
  train = clouds(3, 4)
  with pytest.raises(probing.ProbeError, match='class 3'):
    probing.fit(train, 4)


def test_draws_have_so_many_of_every_class():
  labels = np.array([2, 0, 1, 0, 0, 1, 2, 0, 2, 1] * 3)
  chosen = probing.draw(labels, 4, (0, 4, 0))
  assert list(np.bincount(labels[chosen])) == [4, 4, 4]
  assert len(set(chosen)) == 12
  again, other = (probing.draw(labels, 4, (0, 4, i)) for i in range(2))
  np.testing.assert_array_equal(chosen, again)
  assert list(chosen) != list(other)
  all_of_them = probing.draw(labels, 99, (0, 99, 0))
  np.testing.assert_array_equal(all_of_them, np.arange(30))


def test_the_interval_of_all_images_is_wilsons():
  expected = stats.binomtest(97, 100).proportion_ci(method='wilson')
  actual = probing.estimate([0.97], 100)
  np.testing.assert_allclose(actual, (0.97, expected.low, expected.high))


def test_the_interval_of_draws_is_students_t_where_there_are_many_images():
  values = [0.5, 0.6, 0.55, 0.52, 0.58]
  low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
  actual = probing.estimate(values, 10**9)
  np.testing.assert_allclose(actual, (0.55, low, high), rtol=1e-4)
  # Few images widen it.
  assert probing.estimate(values, 100).low < low


def test_shots_that_take_all_are_left_out():
  train, test = clouds(3, 6), clouds(3, 20, seed=1)
  rows = list(probing.measure(train, test, 3, (2, 5, 6, 9), 3, draws=2))
  assert [row.shots for row in rows] == [2, 5, None]
  assert [row.draws for row in rows] == [2, 2, 1]
  assert rows[-1].logistic.accuracy == rows[-1].head.accuracy(test)


def test_neighbours_vote_by_angle():
  train = embeddings.Embeddings(
    np.float32([[1, 0], [9, 1], [0, 1]]), np.int32([0, 0, 1])
  )
  test = embeddings.Embeddings(np.float32([[0, 99], [2, 1]]), np.int32([1, 0]))
  assert probing.neighbors_accuracy(train, test, 1) == 1
  assert probing.neighbors_accuracy(train, test, 99) == 1


@pytest.fixture
def embed(pictures, tmp_path, monkeypatch):
  """Returns a function that embeds images, and says whether it computed."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  model, params = quick_lib.digits()
  compute, computed = embeddings._compute, []

  def count(*args):
    computed.append(1)
    return compute(*args)

  monkeypatch.setattr(embeddings, '_compute', count)

  def run(model=model, params=params, split='test'):
    before = len(computed)
    network = networks.of(model, params, {})
    found = embeddings.embed(network, pictures, split, BATCH)
    return found, len(computed) > before

  return run


def test_embeddings_are_computed_once(embed, pictures):
  found, computed = embed()
  assert computed and found.features.shape == (31, 256)
  np.testing.assert_array_equal(found.labels, pictures.labels('test'))
  again, computed = embed()
  assert not computed
  np.testing.assert_array_equal(again.features, found.features)


def test_what_changes_embeddings_has_them_computed(embed, monkeypatch):
  model, params = quick_lib.digits()
  _, _ = embed()
  fake = embeddings.Embeddings(np.ones((3, 2)), np.zeros(3))
  monkeypatch.setattr(embeddings, '_compute', lambda *_: fake)
  linear = {'NFNet/~/linear': {'w': np.zeros((256, 2)), 'b': np.zeros(2)}}
  found, _ = embed(params={**params, **linear})
  assert found.features.shape == (31, 256)  # The last layer does not.
  first = next(iter(params))
  changed = {key: value + 1 for key, value in params[first].items()}
  entry = model.entry

  def with_entry(**values):
    return dataclasses.replace(
      model, entry=dataclasses.replace(entry, **values)
    )

  for arguments in (
    {'params': {**params, first: changed}},
    {'model': with_entry(test_size=40)},
    {'model': with_entry(eval_preproc='crop_resize')},
    {'model': with_entry(mean=entry.mean + 1)},
    {'split': 'valid'},
  ):
    found, _ = embed(**arguments)
    assert found.features.shape == (3, 2), arguments


def test_damaged_and_foreign_embeddings_are_made_again(embed, tmp_path):
  found, _ = embed()
  [path] = tmp_path.glob('nfnets/embeddings/*.npz')
  good = path.read_bytes()
  embed(split='valid')
  [other] = set(tmp_path.glob('nfnets/embeddings/*.npz')) - {path}
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
  probing.save(str(path), model, params, {}, head, ['a', 'b'], accuracy=0.5)
  opened, found, _ = weights.open_model(path)
  assert (opened.name, opened.class_names) == (model.name, ('a', 'b'))
  layer = found['NFNet/~/linear']
  np.testing.assert_array_equal(layer['w'], head.w)
  np.testing.assert_array_equal(layer['b'], head.b)
  assert weights.read_metadata(path)['accuracy'] == 0.5


@pytest.mark.parametrize('name', ['nf_regnet_b0', 'timm/test_nfnet'])
def test_every_network_calls_its_last_layer_the_same(name):
  model = zoo.create_model(name, 3)
  shapes, _ = weights.shapes.of_model(model)
  assert shapes[embeddings.head(model)]['b'].shape == (3,)
