"""The table of suspect labels."""

import csv
import types

import numpy as np
import pictures_lib
import pytest

from nfnets.inference import evaluation, suspects

pictures = pictures_lib.pictures


def found(names):
  """Returns predictions of which examples 7, 2 and 5 are contradicted."""
  return evaluation.Evaluation(
    labels=np.array([0, 1, 0, 1, 0]),
    predicted=np.array([0, 0, 1, 2, -1]),
    num_classes=2,
    names=names,
    indices=np.array([1, 2, 5, 7, 8]),
    confidence=np.array([0.9, 0.8, 0.6, 0.75, np.nan]),
    of_label=np.array([0.9, 0.1, 0.35, 0.02, np.nan]),
  )


def read(path):
  with open(path, encoding='utf-8', newline='') as file:
    return [*csv.DictReader(file)]


@pytest.mark.parametrize('split', ['train_and_valid', 'test'])
def test_the_most_contradicted_come_first(pictures, tmp_path, split):
  path = tmp_path / 'suspects.csv'
  rows = suspects.find(found(['a', 'b', 'c']), pictures, split)
  suspects.write(str(path), rows)
  table = read(path)
  files = pictures.paths(split)
  expected = [f'{pictures.root}/{files[i]}' for i in (7, 2, 5)]
  assert [row['path'] for row in table] == expected
  assert [row['label'] for row in table] == ['b', 'b', 'a']
  assert [row['predicted'] for row in table] == ['c', 'a', 'b']
  assert [float(row['p_label']) for row in table] == [0.02, 0.1, 0.35]
  assert [float(row['p_predicted']) for row in table] == [0.75, 0.8, 0.6]
  assert {row['split'] for row in table} == {split.partition('_')[0]}


def test_odd_names_are_cells_and_no_formulas(tmp_path):
  path = tmp_path / 'suspects.csv'
  names = ['=cmd|"/c calc"!A0', '@a,b\nc', '-\udce9']
  tfds = types.SimpleNamespace(name='+x')
  suspects.write(str(path), suspects.find(found(names), tfds, 'test'))
  table = read(path)
  assert [row['path'] for row in table] == [f"'+x/test[{i}]" for i in (7, 2, 5)]
  assert {row['label'] for row in table} == {f"'{x}" for x in names[:2]}
  assert table[0]['predicted'] == "'-\\udce9"
