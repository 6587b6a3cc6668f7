"""Names of classes, and the most probable ones."""

import json
import re

import numpy as np
import pytest

from nfnets import imagenet
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


IDS, WORDS = zip(*imagenet.classes().items(), strict=True)


@pytest.mark.parametrize(
  ('dataset', 'network', 'num_classes', 'logits', 'note'),
  [
    ('abc', 'abc', 3, [0, 1, 2], ''),
    ('abc', 'cab', 3, [1, 2, 0], 'of the network in another order: .* by name'),
    ('ca', 'abcd', 4, [2, 0, 1, 3], '2 of the 4 classes of the network: .* by'),
    # e with an acute accent, as one character and as two.
    (['e\u0301', 'z'], ['z', '\xe9'], 2, [1, 0], 'in another order'),
    (['e\u0301', 'z'], ['\xe9', 'z'], 2, [0, 1], ''),
    # Without names.
    ('abc', None, 3, [0, 1, 2], 'The classes of the network have no names'),
    ('012', 'abc', 3, [0, 1, 2], 'The classes of data have no names'),
    ('01', '01', 2, [0, 1], ''),
    ([f'my {i}' for i in range(1000)], None, 1000, [*range(1000)], 'by number'),
    # ImageNet's, in which two classes are called crane and two maillot.
    (IDS, None, 1000, [*range(1000)], ''),
    (IDS, WORDS, 1000, [*range(1000)], ''),
    (WORDS, IDS, 1000, [*range(1000)], ''),
    (IDS[2:4], IDS[1:4], 3, [1, 2, 0], '2 of the 3'),
    (WORDS[2:4], IDS[1:4], 3, [1, 2, 0], '2 of the 3'),
    (IDS[2:4], WORDS[1:4], 3, [1, 2, 0], '2 of the 3'),
  ],
)
def test_classes_are_matched(dataset, network, num_classes, logits, note):
  found = classes.match([*dataset], network, num_classes, 'data')
  assert found.logits == logits
  assert re.search(note, found.note) and bool(found.note) == bool(note)


@pytest.mark.parametrize('names', [None, WORDS, [f'{w}, x' for w in WORDS]])
def test_wordnet_ids_are_names_of_imagenet(names):
  dataset = ['n02102040', IDS[517], IDS[134]]  # Two that are called crane.
  found = classes.match(dataset, names, 1000, 'data')
  assert found.logits[:3] == [217, 517, 134]
  assert sorted(found.logits) == [*range(1000)]
  assert '3 of the 1,000 classes' in found.note


@pytest.mark.parametrize(
  ('dataset', 'network', 'num_classes', 'message'),
  [
    ('abx', 'aby', 3, r"have: 'x' \(number 2\)\. .* instead: 'y'\."),
    ('vwxyz', 'abcde', 5, r"'w' \(number 1\), 'x' \(number 2\) and 2 more"),
    ('abc', 'ab', 2, r"have: 'c' \(number 2\)\. Give both"),
    ('abc', None, 4, 'has 3 classes, and the network 4 without names'),
    ('56', '01', 2, "'5'"),
    ('ab', None, 1000, "have: 'a' .* instead: 'tench', 'goldfish', 'great wh"),
    ('abc', None, 0, 'no last layer'),
  ],
)
def test_other_classes_are_refused(dataset, network, num_classes, message):
  with pytest.raises(ValueError, match=message):
    classes.match([*dataset], network, num_classes, 'data')
