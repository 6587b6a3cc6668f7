"""The recipes by name, and what all of them share."""

import difflib
import pathlib
import runpy

from jaxline import base_config
import ml_collections

import nfnets
from nfnets import zoo

_HERE = pathlib.Path(__file__).parent


def _files() -> dict[str, str]:
  """Returns {recipe: the file of this folder that makes it}."""
  files = {}
  for model in nfnets.list_models():
    if model.startswith('timm/'):
      continue  # Their recipes were not published; `model` takes them.
    family = zoo.get_entry(model).module.__module__.rpartition('.')[2]
    name = model.removeprefix('nfnet_')
    files[name] = 'digits' if name == 'digits' else family
  return files


def names() -> list[str]:
  """Returns the names of the recipes: models, without `nfnet_`, and F6+SAM."""
  return [*_files(), 'f6:sam']


def find(name: str) -> str:
  """Turns the name of a recipe into what `--config` takes.

  Args:
    name: one of `names()`, any NFNet-F with `:sam` after it, or the path of a
      config file, with an optional `:argument`.

  Raises:
    ValueError: if there is neither; the message lists the names.
  """
  model = name.partition(':')[0]
  file = _files().get(model)
  if file and (name == model or (file, name) == ('nfnet', f'{model}:sam')):
    return f'{_HERE / file}.py:{name}'
  path = name.partition(':')[0]
  if path.endswith('.py'):
    if not pathlib.Path(path).is_file():
      raise ValueError(f'There is no config file {path}.')
    return name
  close = difflib.get_close_matches(name, names(), n=3, cutoff=0.5)
  hint = f' Did you mean {" or ".join(close)}?' if close else ''
  raise ValueError(
    f'There is no config {name!r}.{hint} The names are {", ".join(names())}; '
    'a path to a config file works too.'
  )


def load(name: str) -> ml_collections.ConfigDict:
  """Returns the config of that name, without changes.

  Args:
    name: as `find` takes it.

  Raises:
    ValueError: if there is none.
  """
  path, _, argument = find(name).partition(':')
  get_config = runpy.run_path(path)['get_config']
  return get_config(argument) if argument else get_config()


def get_base(name: str, model: str) -> ml_collections.ConfigDict:
  """Returns the settings that recipes start from.

  Those at the top are JAXline's (see its `base_config.py`), but for
  `checkpoint_dir`, `eval_wait_minutes` and `save_retry_minutes`. Those of the
  experiment are under `experiment_kwargs.config`.

  Args:
    name: of the recipe, for the folder of its results.
    model: one of `nfnets.list_models()`.
  """
  entry = zoo.get_entry(model)
  config = base_config.get_base_config()
  config.checkpoint_dir = f'runs/{name.replace(":", "_")}'
  # 0 means as many as `num_epochs` makes.
  config.training_steps = 0
  # How long `eval` waits for a new checkpoint before it gives up.
  config.eval_wait_minutes = 60.0
  # How long training goes on trying to write its last checkpoint.
  config.save_retry_minutes = 10.0
  config.best_model_eval_metric = 'eval_top_1_acc'
  config.save_checkpoint_interval = 600  # Seconds, as the two below.
  config.log_tensors_interval = 30
  config.log_train_data_interval = 30
  config.max_checkpoints_to_keep = 3

  experiment = ml_collections.ConfigDict()
  experiment.model = model
  # Arguments of the network's class; `width` and so on can be added.
  experiment.model_kwargs = ml_collections.ConfigDict({'stochdepth_rate': 0.1})
  experiment.num_classes = 1000
  # A file of weights that training starts from, unless there is a checkpoint to
  # go on from, and that `eval` evaluates instead of checkpoints; '' is none. A
  # last layer for another number of classes is replaced in training.
  experiment.weights = ''
  experiment.image_size = entry.train_size  # Pixels.
  experiment.eval_image_size = entry.test_size

  # A dataset of TFDS, and the folder that it was prepared in; '' is TFDS's.
  experiment.which_dataset = 'imagenet2012'
  experiment.data_dir = ''
  experiment.fake_data = False  # Random images instead, for trying things.
  # 'test' trains on all of TFDS's training split; 'valid' holds out a part of
  # it to evaluate on.
  experiment.eval_subset = 'test'
  experiment.train_preproc = 'crop_flip'
  experiment.eval_preproc = entry.eval_preproc
  # What is done after that, such as 'cutmix_mixup_0.4_randaugment_405'; '' is
  # nothing.
  experiment.augment_name = ''
  # Whether RandAugment or AutoAugment come before mixing; published is after.
  experiment.augment_before_mix = False
  # Quirks of the published augmentation; see nfnets/data/autoaugment.py.
  experiment.augment_kwargs = ml_collections.ConfigDict(
    {'wrap_solarize': True, 'constant_grey': True}
  )
  # Whether images that cannot be decoded are left out and counted, instead of
  # ending the run.
  experiment.skip_corrupt = False
  # Whether batches leave the host as [H, W, 3, B], which TPUs like.
  experiment.transpose = False

  experiment.train_batch_size = 1024  # Over all devices of all hosts.
  experiment.eval_batch_size = 1000
  experiment.num_epochs = 90.0
  experiment.lr = 0.1
  experiment.lr_scale_by_bs = True  # Whether lr is for a batch of 256.
  experiment.lr_schedule = ml_collections.ConfigDict(
    {'name': 'warmup_cosine', 'warmup_epochs': 5.0, 'end': 0.0}
  )
  experiment.optimizer = ml_collections.ConfigDict(
    {
      'name': 'sgd',
      'kwargs': {
        'momentum': 0.9,
        'nesterov': True,
        'weight_decay': 5e-5,
      },
    }
  )
  experiment.sam_rho = 0.0  # 0 is without SAM.
  experiment.sam_fraction = 0.2  # Of each device's batch, for the ascent.
  # Parts that each device's batch is computed in, one after the other: less
  # memory, the same gradient.
  experiment.accumulate_steps = 1
  # Whether each block is computed again in the backward pass: less memory, more
  # time.
  experiment.remat = False
  # Whether updates whose loss or gradient is not finite are left out and
  # counted, instead of ending the run.
  experiment.skip_nonfinite = False
  experiment.which_loss = 'softmax_cross_entropy'
  experiment.label_smoothing = 0.1
  experiment.use_ema = False
  experiment.ema_decay = 0.99999
  experiment.which_ema = 'tf1_ema'  # Its decay warms up; that of 'ema' not.
  experiment.bfloat16 = False
  config.experiment_kwargs.config = experiment
  return config
