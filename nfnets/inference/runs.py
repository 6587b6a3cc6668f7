"""The folder that a run leaves: what was run, its network and its dataset."""

import json
import pathlib
from typing import Any, NamedTuple

import haiku as hk
import tensorflow_datasets as tfds

from nfnets import paths, weights, zoo
from nfnets.data import dataset
from nfnets.inference import evaluation


class RunError(ValueError):
  """A folder is not what a run on a dataset leaves; the message says why."""


class Run(NamedTuple):
  """A run, and what it was about.

  Attributes:
    folder: It has run.json and weights.safetensors.
    info: What is in run.json.
    weights: The file of the weights to use.
    model: The network.
    params: Its parameters.
    state: Its state.
    builder: The dataset, from `load_builder`.
    validates: Whether held-out images decided which weights to keep.
  """

  folder: pathlib.Path
  info: dict[str, Any]
  weights: pathlib.Path
  model: zoo.Model
  params: hk.Params
  state: hk.State
  builder: tfds.core.DatasetBuilder
  validates: bool

  @property
  def chose_by_test(self) -> bool:
    """Whether those that decided are what 'test' is, too."""
    is_validation = evaluation.split_name(self.builder, 'test') != 'test'
    return self.validates and is_validation


def open_run(folder: str) -> Run:
  """Opens the folder of a run that had a dataset.

  Raises:
    RunError: if this is no such folder, or the run had no dataset.
    OSError: if a file cannot be read.
    ValueError: if the weights or the dataset cannot be read.
  """
  path = paths.path(folder)
  info = read_info(path)
  settings = info['settings']
  if settings.get('fake_data'):
    raise RunError(
      f'{folder} was a run on random images, of which there is nothing to '
      'report.'
    )
  file = path / 'weights.safetensors'
  if not paths.is_file(file):
    raise RunError(
      f'{file}: there is no such file; a run writes it when it is evaluated.'
    )
  name = settings.get('which_dataset')
  if not name:
    raise RunError(f'{path / "run.json"} names no dataset.')
  model, params, state = weights.open_model(file)
  builder = dataset.load_builder(name, settings.get('data_dir') or None)
  validates = settings.get('eval_subset') == 'valid'
  return Run(path, info, file, model, params, state, builder, validates)


def read_info(folder: pathlib.Path) -> dict[str, Any]:
  """Reads run.json.

  Raises:
    RunError: if there is none, or it is something else.
  """
  path = folder / 'run.json'
  try:
    info = json.loads(paths.read_bytes(path))
  except (FileNotFoundError, NotADirectoryError) as error:
    raise RunError(
      f'{folder} is no folder of a run: there is no {path}.'
    ) from error
  except ValueError as error:
    raise RunError(f'{path}: this is no JSON: {error}') from error
  if not isinstance(info, dict) or not isinstance(info.get('settings'), dict):
    raise RunError(f'{path} has no settings.')
  return info
