"""The nearest images, beside a plain loop."""

import numpy as np
import pytest

from nfnets.inference.demo import neighbours

RNG = np.random.default_rng(0)
EMBEDDINGS = RNG.normal(size=(50, 7)).astype(np.float32)
PATHS = np.array([f'{i}.png' for i in range(50)])


def save(path, embeddings=EMBEDDINGS, paths=PATHS, model='nfnet_digits'):
  np.savez(path, embeddings=embeddings, paths=paths, model=np.array(model))
  return str(path)


@pytest.mark.parametrize('k', [1, 8, 50, 99])
def test_nearest_are_those_of_a_plain_loop(k):
  query = RNG.normal(size=7).astype(np.float32)

  def cosine(x):
    return float(x @ query / np.sqrt((x @ x) * (query @ query)))

  want = sorted(
    ((cosine(x), path) for x, path in zip(EMBEDDINGS, PATHS, strict=True)),
    reverse=True,
  )
  found = neighbours.Index(EMBEDDINGS, PATHS).nearest(query, k)
  assert [path for path, _ in found] == [path for _, path in want[:k]]
  np.testing.assert_allclose(
    [similarity for _, similarity in found],
    [similarity for similarity, _ in want[:k]],
    rtol=1e-5,
    atol=1e-6,
  )


def test_embedding_of_zeros_is_like_nothing():
  index = neighbours.Index(np.float32([[0, 0], [1, 0]]), PATHS[:2])
  assert index.nearest(np.float32([1, 0]), 2) == [('1.png', 1), ('0.png', 0)]
  found = index.nearest(np.zeros(2, np.float32), 2)
  assert {similarity for _, similarity in found} == {0}


def test_several_files_of_a_folder_are_one_collection(tmp_path):
  whole = neighbours.load(save(tmp_path / 'all.npz'), 'nfnet_digits')
  folder = tmp_path / 'parts'
  folder.mkdir()
  save(folder / '0.npz', EMBEDDINGS[:20], PATHS[:20])
  save(folder / '1.npz', EMBEDDINGS[20:], PATHS[20:])
  parts = neighbours.load(str(folder), 'nfnet_digits')
  query = EMBEDDINGS[3]
  assert parts.nearest(query, 5) == whole.nearest(query, 5)
  assert whole.nearest(query, 1)[0][0] == '3.png'


@pytest.mark.parametrize(
  'change, message',
  [
    ({'model': 'nfnet_f0'}, 'embeddings of nfnet_f0, and the network is'),
    ({'paths': PATHS[:3]}, 'do not fit together'),
    ({'embeddings': EMBEDDINGS[0]}, 'do not fit together'),
    ({'embeddings': EMBEDDINGS[:0], 'paths': PATHS[:0]}, 'do not fit'),
    ({'paths': np.array([{}] * 50)}, 'no embeddings of'),
  ],
)
def test_other_files_are_refused(tmp_path, change, message):
  path = save(tmp_path / 'a.npz', **change)
  with pytest.raises(ValueError, match=message):
    neighbours.load(path, 'nfnet_digits')


def test_damaged_files_are_refused(tmp_path):
  path = tmp_path / 'a.npz'
  path.write_bytes(b'PK\x03\x04 no more')
  with pytest.raises(ValueError, match='no embeddings of'):
    neighbours.load(str(path), 'nfnet_digits')
