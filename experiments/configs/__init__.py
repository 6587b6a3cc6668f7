"""The recipes by name, and what all of them share."""

import difflib
import pathlib
import runpy

from jaxline import base_config
import ml_collections

import nfnets
from nfnets import zoo

_HERE = pathlib.Path(__file__).parent
# What JAXline's flag takes: this, and after a colon a name for `load`.
FILE = str(_HERE / 'by_name.py')


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
  """Returns the names: models, without `nfnet_`, and others with a colon."""
  return [*_files(), 'f6:sam', *_SHOWN]


def load(name: str) -> ml_collections.ConfigDict:
  """Returns the config of that name, without changes.

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
    path = pathlib.Path(recipe)
    if not path.is_file():
      raise ValueError(f'There is no config file {path}.')
  else:
    close = difflib.get_close_matches(full, names(), n=3, cutoff=0.5)
    hint = f' Did you mean {" or ".join(close)}?' if close else ''
    raise ValueError(
      f'There is no config {name!r}.{hint} The names are {", ".join(names())}; '
      'a path to a config file works too.'
    )
  get_config = runpy.run_path(str(path))['get_config']
  config = get_config(argument) if argument else get_config()
  if is_small:
    _make_small(config)
  return config


# By file, what may stand after the colon.
_ARGUMENTS = {'nfnet': 'sam', 'nf_resnet': 'private', 'digits': 'private'}


def _make_small(config: ml_collections.ConfigDict) -> None:
  """Keeps all of a recipe but its size: a few steps of a small network.

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
  module = zoo.get_entry(experiment.model or 'nfnet_f0').module
  experiment.model, changes = _SMALL[module.__name__]
  with experiment.model_kwargs.unlocked():
    experiment.model_kwargs.update(changes)
  experiment.image_size = experiment.eval_image_size = 32
  experiment.train_batch_size = experiment.eval_batch_size = 16
  experiment.per_example.chunk = 0
  experiment.fake_data = True


# By class: the model, and arguments that make it smaller still. Few groups,
# because each of them is compiled as a convolution of its own on a CPU.
_SMALL = {
  'NFNet': ('nfnet_digits', {'use_two_convs': False}),
  'NF_RegNet': ('nf_regnet_b0', {'group_size': 24, 'width': 0.5}),
  'NF_ResNet': ('nf_resnet50', {'width': 1}),
  'ResNet': ('resnet50', {'width': 1}),
  'SkipInit_ResNet': ('skipinit_resnet50', {'width': 1}),
  'FixUp_ResNet': ('fixup_resnet50', {'width': 1}),
  'NormFreeNet': ('timm/test_nfnet', {}),
}


def get_base(name: str, model: str) -> ml_collections.ConfigDict:
  """Returns the settings that recipes start from.

  Those at the top are those of JAXline (see its `base_config.py`) and of the
  run; those of the experiment are under `experiment_kwargs.config`. `--help`
  shows the comments that stand here.

  Args:
    name: of the recipe, for the folder of its results.
    model: one of `nfnets.list_models()`, or '' for that of the weights.
  """
  entry = zoo.get_entry(model) if model else None
  config = base_config.get_base_config()
  # The folder of the run: checkpoints, curves.
  config.checkpoint_dir = f'runs/{name.replace(":", "_")}'
  # Updates to make; 0 means as many as `num_epochs` makes.
  config.training_steps = 0
  # Unit of the intervals below: secs or steps.
  config.interval_type = 'secs'
  # Unit of save_checkpoint_interval, where it is another one.
  config.checkpoint_interval_type = None
  # Between two checkpoints.
  config.save_checkpoint_interval = 600
  # Between two lines of the log.
  config.log_tensors_interval = 30
  # Between two points of TensorBoard's curves.
  config.log_train_data_interval = 30
  # Whether lines of the log are written while the next steps run.
  config.log_async = True
  # How many checkpoints of a series are kept.
  config.max_checkpoints_to_keep = 3
  # How long evaluation waits for a new checkpoint before it gives up.
  config.eval_wait_minutes = 60.0
  # How long training goes on trying to write its last checkpoint.
  config.save_retry_minutes = 10.0
  # What the best checkpoint has the highest value of.
  config.best_model_eval_metric = 'eval_top_1_acc'
  # False is for a metric of which the lowest value is the best.
  config.best_model_eval_metric_higher_is_better = True
  # Whether all hosts write the best checkpoint, instead of the first alone.
  config.best_checkpoint_all_hosts = False
  # How many times training stops on its way to evaluate; the best weights are
  # kept, and tested at the end. 0 is never: then `eval` does so beside.
  config.evaluations = 0
  # Whether training ends with a page on its results, report.html.
  config.report = False
  # Training ends with an evaluation where it takes no more than so many
  # examples; 0 never. ImageNet's, of 10,000 and more, is for a program beside.
  config.test_at_end = 5000
  # Whether compiled programs are kept for the next start, in the user's cache
  # folder or in JAX_COMPILATION_CACHE_DIR.
  config.compilation_cache = True
  # Whether programs are compiled quickly rather than well: for a few steps.
  config.compile_quickly = False
  # Decides on the first parameters, the order of the data and all randomness.
  config.random_seed = 42
  # Which devices draw the same random numbers in training.
  config.random_mode_train = 'unique_host_unique_device'
  # And in evaluation, which draws none.
  config.random_mode_eval = 'same_host_same_device'

  experiment = ml_collections.ConfigDict()
  # A name of nfnets.list_models(); '' is the model of the weights.
  experiment.model = model
  # Arguments of the network's class; a config file can add others, as `width`.
  experiment.model_kwargs = ml_collections.ConfigDict({'stochdepth_rate': 0.1})
  # Size of the network's last layer; 0 is the dataset's number of classes.
  experiment.num_classes = 1000
  # Weights that training starts from, unless there is a checkpoint to go on
  # from, and that `eval` evaluates instead of checkpoints: a file, a run's
  # folder, or a name, such as nfnet_f0; '' is none. A last layer for other
  # classes is replaced in training.
  experiment.weights = ''
  # Side of the training images, in pixels; 0 is what the model was trained at.
  experiment.image_size = entry.train_size if entry else 0
  # Side of the images in evaluation, in pixels; 0 is what the model is for.
  experiment.eval_image_size = entry.test_size if entry else 0

  # A folder of images, or the name of a dataset of TFDS; --data is the same.
  experiment.which_dataset = 'imagenet2012'
  # The folder that the dataset was prepared in; '' is TFDS's own.
  experiment.data_dir = ''
  # Whether to take random images instead, for trying things.
  experiment.fake_data = False
  # What is evaluated: 'test' trains on all of the training split; 'valid' holds
  # out a part of it, where a folder has no split of that name.
  experiment.eval_subset = 'test'
  # Crops and shifts in training: crop_flip or shift_K; '' is what the weights
  # were trained with, or crop_flip.
  experiment.train_preproc = 'crop_flip'
  # In evaluation: crop_resize, resize_crop_P or center_crop_P; '' is what the
  # model is for.
  experiment.eval_preproc = entry.eval_preproc if entry else ''
  # What is done after train_preproc, such as 'cutmix_mixup_randaugment_405'; ''
  # is nothing.
  experiment.augment_name = ''
  # Whether RandAugment or AutoAugment come before mixing; published is after.
  experiment.augment_before_mix = False
  # How many times each image is in its batch, cropped, mixed and augmented each
  # time anew; it is read once, and train_batch_size counts it once.
  experiment.augmentation_multiplicity = 1
  # Quirks of the published augmentation; see nfnets/data/autoaugment.py.
  experiment.augment_kwargs = ml_collections.ConfigDict(
    {'wrap_solarize': True, 'constant_grey': True}
  )
  # Whether images that cannot be decoded are left out and counted, instead of
  # ending the run.
  experiment.skip_corrupt = False
  # Whether batches leave the host as [H, W, 3, B], which TPUs like.
  experiment.transpose = False

  # Images of an update, over all devices of all hosts.
  experiment.train_batch_size = 1024
  # Images of a step of evaluation, over all devices of all hosts.
  experiment.eval_batch_size = 1000
  # How often training sees each image, unless training_steps says otherwise; 0
  # follows from the size of the dataset.
  experiment.num_epochs = 90.0
  # Updates that num_epochs is set to make; 0 leaves it as it is.
  experiment.num_steps = 0
  # The highest learning rate; 0 is what measured best for fine-tuning, or for
  # small data where there are no weights.
  experiment.lr = 0.1
  # The last layer's, where it is to learn at another; 0 is the same.
  experiment.lr_head = 0.0
  # Factor of the rate from each block to the one before it.
  experiment.layer_decay = 1.0
  # Layers that are trained, by parts of their names, with commas: last is the
  # last layer, nf_block_11 a block, gain all gains; '' is everything.
  experiment.train_only = ''
  # Whether lr is for a batch of 256, and grows with train_batch_size.
  experiment.lr_scale_by_bs = True
  # warmup_cosine rises from 0 for warmup_epochs, or for a part of all steps
  # where warmup_part is not 0, and falls along half a cosine to `end` at
  # num_epochs; constant does not move.
  experiment.lr_schedule = ml_collections.ConfigDict(
    {
      'name': 'warmup_cosine',
      'warmup_epochs': 5.0,
      'warmup_part': 0.0,
      'end': 0.0,
    }
  )
  # sgd_agc, or any optimizer of optax; gains and biases get no weight decay.
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
  # Layers that sgd_agc clips, by names as in train_only, and stem, or stage1 to
  # stage4; `!` in front leaves out, `*` is all; '' is all but the last kernel.
  experiment.clip_layers = ''
  # Whether lr, weight_decay and clipping are arguments of the compiled step,
  # and not constants in it, so that runs in one process can share it.
  experiment.numbers_as_arguments = False
  # Whether curves tell of each layer how long its gradient is beside its
  # weights, and how much of it is clipped.
  experiment.log_layers = False
  # Length of SAM's ascent; 0 is without SAM.
  experiment.sam_rho = 0.0
  # The part of each device's batch that SAM's ascent takes.
  experiment.sam_fraction = 0.2
  # Parts that each device's batch is computed in, one after the other: less
  # memory, the same gradient.
  experiment.accumulate_steps = 1
  # Whether each example's own gradient is clipped before the mean is taken: by
  # 'unit', as in AGC, or by the 'norm' of all of it; '' is not at all.
  experiment.clip_per_example = ''
  # clipping is the largest ratio of the norms of a unit's gradient and weights,
  # and eps the least norm of these; or clipping is the largest norm. chunk is
  # how many examples' gradients each device has at once; 0 is all of a part.
  experiment.per_example = ml_collections.ConfigDict(
    {'clipping': 0.01, 'eps': 1e-3, 'chunk': 0}
  )
  # Differentially private training, with clip_per_example=norm: the deviation
  # of the noise in a sum of clipped gradients, in units of the clipping; delta;
  # and the epsilon at which training ends; docs/private.md.
  experiment.private = ml_collections.ConfigDict(
    {'noise_multiplier': 0.0, 'delta': 0.0, 'epsilon': 0.0}
  )
  # How many of the first blocks are computed again in the backward pass, or
  # True for all: less memory, more time; experiments/tools/plan.py finds out.
  experiment.remat = ml_collections.FieldReference(False, field_type=object)
  # Whether updates whose loss or gradient is not finite are left out and
  # counted, instead of ending the run.
  experiment.skip_nonfinite = False
  # softmax_cross_entropy or sigmoid_cross_entropy.
  experiment.which_loss = 'softmax_cross_entropy'
  # Share of each label that is spread over all classes.
  experiment.label_smoothing = 0.1
  # Whether an average of the weights is kept, and evaluated beside them.
  experiment.use_ema = False
  # The share of the average that an update leaves.
  experiment.ema_decay = 0.99999
  # tf1_ema begins with a lower decay; ema has the same throughout.
  experiment.which_ema = 'tf1_ema'
  # Whether training computes in bfloat16; weights and loss stay float32.
  experiment.bfloat16 = False
  # Whether evaluation does, too: its numbers are not the published ones, which
  # are computed in float32.
  experiment.eval_bfloat16 = False
  config.experiment_kwargs.config = experiment
  return config
