"""The recipes by name, and what all of them share."""

import difflib
import pathlib

from jaxline import base_config
import ml_collections

import nfnets
from nfnets import zoo

_HERE = pathlib.Path(__file__).parent


def names() -> list[str]:
  """Returns the names of all recipes: models, without `nfnet_`."""
  return [name.removeprefix('nfnet_') for name in nfnets.list_models()]


def find(name: str) -> str:
  """Turns the name of a recipe into what `--config` takes.

  Args:
    name: one of `names()`, or the path of a config file, with an optional
      `:argument`.

  Raises:
    ValueError: if there is neither; the message lists the names.
  """
  if name in names():
    family = 'nf_resnet' if name.startswith('nf_resnet') else 'nfnet'
    family = 'digits' if name == 'digits' else family
    return f'{_HERE / family}.py:{name}'
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


def get_base(name: str, model: str) -> ml_collections.ConfigDict:
  """Returns the settings that recipes start from.

  Those at the top are JAXline's (see its `base_config.py`), but for
  `checkpoint_dir` and `eval_wait_minutes`. Those of the experiment are under
  `experiment_kwargs.config`.

  Args:
    name: of the recipe, for the folder of its results.
    model: one of `nfnets.list_models()`.
  """
  entry = zoo.get_entry(model)
  config = base_config.get_base_config()
  config.checkpoint_dir = f'runs/{name}'
  # 0 means as many as `num_epochs` makes.
  config.training_steps = 0
  # How long `eval` waits for a new checkpoint before it gives up.
  config.eval_wait_minutes = 60.0
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
  experiment.augment_name = ''  # What is done after that; '' is nothing.
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
  experiment.which_loss = 'softmax_cross_entropy'
  experiment.label_smoothing = 0.1
  experiment.use_ema = False
  experiment.ema_decay = 0.99999
  experiment.which_ema = 'tf1_ema'  # Its decay warms up; that of 'ema' not.
  experiment.bfloat16 = False
  config.experiment_kwargs.config = experiment
  return config
