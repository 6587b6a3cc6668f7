"""Results whose numbers are not finite are valid JSON, and a failure."""

import json
import math

import numpy as np
import pytest

from nfnets import finite_json


def strictly(text):
  """Reads JSON as other languages do."""

  def refuse(name):
    raise ValueError(f'{name} is no JSON.')

  return json.loads(text, parse_constant=refuse)


def test_results_are_those_of_json():
  results = {'a': 1.5, 'b': [True, None, 'x', {'c': (2, 'é')}], 'd': {}}
  assert strictly(finite_json.dumps(results)) == json.loads(json.dumps(results))


@pytest.mark.parametrize('number', [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_null_and_named(number, capsys):
  results = {
    'loss': number,
    'rows': [{'acc': 0.5}, {'acc': np.float32(number)}],
    'pair': (np.float64(number), 'NaN'),
  }
  assert finite_json.print_results(results) == 1
  out, err = capsys.readouterr()
  assert out.count('\n') == err.count('\n') == 1
  assert strictly(out) == {
    'loss': None,
    'rows': [{'acc': 0.5}, {'acc': None}],
    'pair': [None, 'NaN'],
  }
  assert err.startswith('error: not finite: loss, rows, pair. ')


def test_finite_results_are_a_success(capsys):
  assert finite_json.print_results({'n': np.int64(3), 'x': None}) == 0
  assert capsys.readouterr() == ('{"n": 3, "x": null}\n', '')
