"""Names of classes, and the most probable ones."""

import json

import numpy as np
import pytest

from nfnets.inference import classes


@pytest.mark.parametrize(
  ('name', 'text'),
  [
    ('a.txt', 'null\neins\nzwei\ndrei\nvier\nfünf\nsechs\nsieben\nacht\nneun'),
    ('b', 'null\r\neins\r\nzwei\r\n3\r\n4\r\n5\r\n6\r\n7\r\n8\r\nneun\r\n\r\n'),
    ('c.json', json.dumps(['null', *'12345678', 'neun'])),
    ('d.JSON', json.dumps([['n0', 'null'], *'12345678', ['n9', 'neun']])),
  ],
)
def test_labels_are_read(tmp_path, name, text):
  path = tmp_path / name
  path.write_bytes(b'\xef\xbb\xbf' * (name == 'b') + text.encode())
  names = classes.read_labels(path)
  assert len(names) == 10 and names[0] == 'null' and names[9] == 'neun'


def test_top_k_is_limited_by_the_number_of_classes():
  logits = np.array([0.0, 2.0, 1.0, 2.0], np.float32)
  total = 1 + 2 * np.e**2 + np.e
  expected = [
    (1, np.e**2 / total),
    (3, np.e**2 / total),
    (2, np.e / total),
    (0, 1 / total),
  ]
  for k in (1, 3, 4, 9):
    top = classes.top_classes(logits, k)
    assert [label for label, _ in top] == [x for x, _ in expected[:k]]
    np.testing.assert_allclose(top, expected[:k])
  ((label, probability),) = classes.top_classes(np.array([-1e4, 1e4]), 1)
  assert (label, probability) == (1, 1)
