"""The folder that a run leaves: what was run, its network and its dataset."""

import json
import pathlib
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from nfnets import paths, weights
from nfnets.data import builders, dataset
from nfnets.errors import UserError, prefix
from nfnets.inference import networks


class Run(NamedTuple):
  """A run, its network and its dataset.

  Attributes:
    folder: The folder, which has run.json and weights.safetensors.
    info: The content of run.json.
    weights: The file of weights.
    network: The network.
    builder: The dataset, from `load_builder`.
    validates: Whether training left out images to evaluate on.
    chose_by_test: Whether the images of 'test' decided which weights to keep.
    best_step: The step that was found to be best; None if the last was kept.
  """

  folder: pathlib.Path
  info: dict[str, Any]
  weights: pathlib.Path
  network: networks.Network
  builder: tfds.core.DatasetBuilder
  validates: bool
  chose_by_test: bool
  best_step: int | None


def open_run(folder: str) -> Run:
  """Open the folder of a run that had a dataset.

  Raises:
    UserError: if this is no such folder, the run had no dataset, or the weights
      or the dataset cannot be read.
  """
  path = paths.path(folder)
  info = read_info(path)
  settings = info['settings']
  if settings.get('fake_data'):
    raise UserError(
      f'{folder} was a run on random images: there is nothing to report.'
    )
  file = path / 'weights.safetensors'
  if not paths.is_file(file):
    raise UserError(
      f'{file}: there is no such file; a run writes it when it is evaluated.'
    )
  name = settings.get('which_dataset')
  if not name:
    raise UserError(f'{path / "run.json"} names no dataset.')
  with prefix(str(file)):
    network = networks.of(*weights.open_model(file))
  builder = dataset.load_builder(name, settings.get('data_dir') or None)
  subset = settings.get('eval_subset', 'test')
  # Evaluation notes its metric beside the weights that it keeps.
  metadata = weights.read_metadata(file)
  chose = any(key.startswith('eval_') for key in metadata)
  return Run(
    *(path, info, file, network, builder),
    validates=subset == 'valid',
    chose_by_test=chose and builders.is_test_split(builder, subset),
    best_step=metadata.get('step') if chose else None,
  )


def read_info(folder: pathlib.Path) -> dict[str, Any]:
  """Read run.json.

  Raises:
    UserError: if there is none, or it is something else.
  """
  path = folder / 'run.json'
  if not paths.is_file(path):
    raise UserError(f'{folder} is no folder of a run: there is no {path}.')
  with prefix(f'{path} cannot be read as JSON'):
    info = json.loads(paths.read_bytes(path))
  if not isinstance(info, dict) or not isinstance(info.get('settings'), dict):
    raise UserError(f'{path} has no settings.')
  return info
