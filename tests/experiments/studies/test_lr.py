"""The learning rate range test."""

import json

import numpy as np
import pytest

from experiments import command_line
from experiments.studies import lr
from experiments.tools import study


def test_smoothed_losses_are_weighted_means():
  losses = np.array([3.0, 1.0, 2.0, 5.0])
  expected = []
  for i in range(4):
    weights = 0.9 ** np.arange(i, -1, -1)
    expected.append(np.average(losses[: i + 1], weights=weights))
  np.testing.assert_allclose(lr.smooth(losses), expected)


def test_the_suggestion_has_the_lowest_smoothed_loss(
  tmp_path, monkeypatch, capsys
):
  rates = np.geomspace(1e-3, 1, 100)
  losses = np.abs(np.log10(rates / 0.1))
  monkeypatch.setattr(lr, 'measure', lambda *_: (rates, losses, 0.2))
  output = tmp_path / 'lr.png'
  argv = ['study.py', 'lr', '--config=digits', f'--output={output}', '--lr=3']
  assert study.main(argv) == 0
  results = json.loads(capsys.readouterr().out.splitlines()[-1])
  # The average is late.
  assert 0.1 <= results['suggested_lr'] <= 0.2
  assert results['recipe_lr'] == 0.2
  assert output.read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    ('--lowest=2', '--highest=1'),
    ('--output=x.txt', '.png'),
    ('--wrong=1', 'wrong'),
  ],
)
def test_wrong_arguments(argument, message, capsys):
  argv = ['study.py', 'lr', '--config=digits', '--highest=1', argument]
  assert study.main(argv) == 2
  assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_loss_moves_with_the_rate_and_a_rate_too_large_ends_it():
  def losses(lowest, highest):
    _, config = command_line.parse(['study', '--config=digits'])
    rates, found, own = lr.measure(config, lowest, highest, 40)
    assert own == 0.2 and rates[0] == lowest
    return found

  np.testing.assert_allclose(losses(1e-9, 1e-8), np.log(10), rtol=1e-2)
  found = losses(0.02, 100)
  assert found.min() < 2.29 and len(found) < 40
