"""The notebook runs from top to bottom."""

import importlib.util
import pathlib
import subprocess
import sys

import jax
import nbclient
import nbformat
import pytest

import nfnets
from nfnets import weights

_NOTEBOOK = pathlib.Path(__file__).parents[1] / 'examples/nfnet_demo.ipynb'


def run(folder: pathlib.Path) -> tuple[str, list[int]]:
  """Runs the notebook in a folder; returns its text and cells with plots."""
  notebook = nbformat.read(_NOTEBOOK, as_version=4)
  client = nbclient.NotebookClient(
    notebook, timeout=500, resources={'metadata': {'path': str(folder)}}
  )
  client.execute()
  text, plots = '', []
  for i, cell in enumerate(notebook.cells):
    for output in cell.get('outputs', []):
      if output.output_type == 'stream':
        text += output.text
      elif 'image/png' in output.data:
        plots.append(i)
  return text, plots


def test_it_is_committed_without_outputs():
  notebook = nbformat.read(_NOTEBOOK, as_version=4)
  nbformat.validate(notebook)
  for cell in notebook.cells:
    assert not cell.get('outputs') and not cell.get('execution_count')


@pytest.mark.parametrize('is_installed', [True, False])
def test_it_installs_the_package_only_where_there_is_none(
  is_installed, monkeypatch
):
  calls = []
  monkeypatch.setattr(
    importlib.util, 'find_spec', lambda name: is_installed or None
  )
  monkeypatch.setattr(
    subprocess, 'run', lambda *a, **kw: calls.append((*a, kw))
  )
  notebook = nbformat.read(_NOTEBOOK, as_version=4)
  first = next(x for x in notebook.cells if x.cell_type == 'code')
  exec(first.source, {})
  if is_installed:
    assert not calls
  else:
    [(command, options)] = calls
    assert command[:4] == [sys.executable, '-m', 'pip', 'install']
    assert command[-1].startswith('nfnets[images] @ git+https://')
    assert options == {'check': True}


@pytest.mark.slow
def test_with_weights_it_says_what_they_are(tmp_path, monkeypatch):
  model = nfnets.create_model('nfnet_digits', 10)
  params, _ = model.init(jax.random.key(0))
  weights.save_weights(tmp_path / 'digits.npz', params)
  monkeypatch.setenv('NFNETS_WEIGHTS', 'digits.npz')
  text, plots = run(tmp_path)
  assert 'digits.npz: nfnet_digits with 10 classes' in text
  assert 'LEARNT NOTHING' not in text
  assert len(plots) == 3 and 'other photo' in text


@pytest.mark.slow
def test_without_weights_it_says_so_and_goes_on(tmp_path, monkeypatch):
  monkeypatch.delenv('NFNETS_WEIGHTS', raising=False)
  text, plots = run(tmp_path)
  assert 'random weights' in text and 'LEARNT NOTHING' in text
  assert len(plots) == 3 and 'other photo' in text
