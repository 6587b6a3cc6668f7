"""The notebook runs from top to bottom."""

import pathlib

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
  assert 'There is no F0_haiku.npz' in text
  assert 'LEARNT NOTHING' in text
  assert len(plots) == 3 and 'other photo' in text
