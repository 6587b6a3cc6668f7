"""The recipes by name, and what all of them share."""

import copy
import difflib
import pathlib
import runpy
from typing import Any

from jaxline import base_config
import ml_collections

from experiments.configs import settings
from nfnets import paths, variants
from nfnets.errors import UserError

_HERE = pathlib.Path(__file__).parent
# Recipes for networks by name: their files, and names to show.
_STAGES = ('finetune', 'pretrain')
_SHOWN = (
  'finetune',
  'finetune:f4+',
  'finetune:2023',
  'pretrain:f4+',
  'pretrain:2023',
  'nf_resnet50:private',
  'digits:private',
)


def get_base(name: str, model: str | None) -> ml_collections.ConfigDict:
  """Return the settings that recipes start from.

  Args:
    name: the name of the recipe, which also names the folder of its results.
    model: one of `nfnets.list_models()`, or None for that of the weights.
  """
  config = base_config.get_base_config()
  config.update(_defaults(settings.RUN))
  config.checkpoint_dir = f'runs/{name.replace(":", "_")}'
  experiment = _defaults(settings.EXPERIMENT)
  experiment.model = model or None
  if model in variants.models:
    experiment.image_size = variants.models[model].train_size
    experiment.eval_preproc = variants.models[model].eval_preproc
  config.experiment_kwargs.config = experiment
  return config


def _defaults(table: dict[str, tuple[Any, str]]) -> ml_collections.ConfigDict:
  values = {name: default for name, (default, _) in table.items()}
  return ml_collections.ConfigDict(copy.deepcopy(values))


def _files() -> dict[str, str]:
  """Return {recipe: the file of this folder that makes it}."""
  # No recipe of timm's networks or of nfnet_tiny was published; `model` takes
  # them.
  return {
    name.removeprefix('nfnet_'): (
      'digits' if name == 'nfnet_digits' else entry.family
    )
    for name, entry in variants.models.items()
    if entry.family != 'timm_nets' and name != 'nfnet_tiny'
  }


def names() -> list[str]:
  """Return the names: models, without `nfnet_`, and others with a colon."""
  return [*_files(), 'f6:sam', *_SHOWN]


def load(name: str) -> ml_collections.ConfigDict:
  """Return the config of that name, without changes.

  Args:
    name: one of `names()`, any NFNet-F with `:sam` after it or NF-ResNet with
      `:private`, or the path of a config file, with an optional `:argument`.
      With `:small` at the end, the recipe is made small enough to look around
      on two cores.

  Raises:
    ValueError: if there is none; the message lists the names.
  """
  full, is_small = name.removesuffix(':small'), name.endswith(':small')
  recipe, _, argument = full.partition(':')
  file = {**_files(), **{stage: stage for stage in _STAGES}}.get(recipe)
  if file and (
    full == recipe
    or _ARGUMENTS.get(file) == argument
    or (file in _STAGES and argument)
  ):
    path, argument = _HERE / f'{file}.py', full
  elif recipe.endswith('.py'):
    path = paths.path(recipe)
    if not path.is_file():
      raise UserError(f'There is no config file {path}.', 2)
  else:
    close = difflib.get_close_matches(full, names(), n=3, cutoff=0.5)
    hint = f' Did you mean {" or ".join(close)}?' if close else ''
    raise UserError(
      f'There is no config {name!r}.{hint} The names are {", ".join(names())}; '
      'a path to a config file works too.',
      2,
    )
  get_config = runpy.run_path(str(path))['get_config']
  config = get_config(argument) if argument else get_config()
  if is_small:
    _make_small(config)
  return config


# By file, what may stand after the colon.
_ARGUMENTS = {'nfnet': 'sam', 'nf_resnet': 'private', 'digits': 'private'}


def _make_small(config: ml_collections.ConfigDict) -> None:
  """Keep all of a recipe but its size: a few steps of a small network.

  The network is the smallest of its family; the images are random, until
  `fake_data` is turned off.
  """
  if config.get('checkpoint_dir'):
    config.checkpoint_dir += '_small'
  config.training_steps = 6
  config.interval_type = 'steps'
  config.save_checkpoint_interval = 3
  config.log_tensors_interval = 1
  config.log_train_data_interval = 1
  config.evaluations = min(config.evaluations, 2)
  config.compile_quickly = True
  experiment = config.experiment_kwargs.config
  family = variants.models[experiment.model or 'nfnet_f0'].family
  experiment.model, changes = _SMALL[family]
  with experiment.model_kwargs.unlocked():
    experiment.model_kwargs.update(changes)
  experiment.image_size, experiment.eval_image_size = 32, None
  experiment.train_batch_size = experiment.eval_batch_size = 16
  experiment.per_example.chunk = None
  experiment.fake_data = True


# By family: the model, and arguments that make it smaller still. Few groups,
# because each of them is compiled as a convolution of its own on a CPU.
_SMALL = {
  'nfnet': ('nfnet_digits', {'use_two_convs': False}),
  'nf_regnet': ('nf_regnet_b0', {'group_size': 24, 'width': 0.5}),
  'nf_resnet': ('nf_resnet50', {'width': 1}),
  'resnet': ('resnet50', {'width': 1}),
  'skipinit_resnet': ('skipinit_resnet50', {'width': 1}),
  'fixup_resnet': ('fixup_resnet50', {'width': 1}),
  'timm_nets': ('timm/test_nfnet', {}),
}
