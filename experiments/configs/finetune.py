"""Fine-tuning on images of your own, from weights.

python experiments/experiment.py --config=finetune --data=DIR --weights=nfnet_f0
python experiments/experiment.py --config=finetune --data=DIR --model=nfnet_f0
python experiments/experiment.py --config=finetune:f4+ --weights=FILE
python experiments/experiment.py --config=finetune:2023 --weights=FILE

The first is for hundreds or thousands of images: the model, the size of its
images and its preprocessing follow from the weights, the number of steps from
the dataset, and the learning rate is what measured best (docs/finetuning.md);
without weights it trains from scratch. The others are what was published on
ImageNet: `f4+` and other variants as in arXiv 2102.06171, 89.2 % for F4 and F4+
pre-trained on JFT-300M; `2023` as in arXiv 2310.16764, 90.3 % for F7+
pre-trained on JFT-4B, 90.4 % with four augmentations of each image
(`--augmentation_multiplicity=4`). Those weights are not public.
"""

from experiments import configs
from nfnets import variants
from nfnets.errors import UserError


def get_config(name: str = 'finetune'):
  """Return the recipe, or a published one, as 'finetune:f4+'."""
  option = name.partition(':')[2]
  if not option:
    return _get_small(name)
  if option == '2023':
    config = _get_published('f7+', name)
    experiment = config.experiment_kwargs.config
    experiment.num_epochs = 50.0
    experiment.image_size = experiment.eval_image_size = 480
    return config
  if option.upper() not in variants.nfnet_params:
    raise UserError(
      f'There is no published fine-tuning of {option!r}: it is finetune:2023, '
      'or finetune: and a variant, such as f4+.',
      2,
    )
  return _get_published(option, name)


def _get_small(name: str):
  config = configs.get_base(name, None)
  config.evaluations = 10
  config.report = True
  config.interval_type = 'steps'
  config.save_checkpoint_interval = 100
  config.log_tensors_interval = 50
  config.log_train_data_interval = 10
  experiment = config.experiment_kwargs.config
  experiment.model_kwargs = {}  # The network's own.
  experiment.which_dataset = None
  experiment.num_classes = None
  experiment.eval_subset = 'valid'
  experiment.train_preproc = None
  experiment.train_batch_size = 32
  experiment.eval_batch_size = 64
  experiment.num_epochs = None
  experiment.lr = None
  experiment.lr_scale_by_bs = False
  experiment.lr_schedule.warmup_part = 0.1
  experiment.optimizer = {
    'name': 'sgd_agc',
    'kwargs': {
      'momentum': 0.9,
      'nesterov': True,
      'weight_decay': 1e-5,
      'clipping': None,  # It follows from measurements; see lr.
      'eps': 1e-3,
    },
  }
  return config


def _get_published(variant: str, name: str):
  """Return the recipe of 2021.

  Not published, and chosen here: AGC as in pre-training, the sizes of images of
  the model, random crops and flips as the only augmentation and, for 2023, all
  but the epochs, SAM, the regularizers and the size.
  """
  config = configs.get_base(name, f'nfnet_{variant}')
  experiment = config.experiment_kwargs.config
  experiment.model_kwargs = {'stochdepth_rate': 0.1, 'drop_rate': 0.25}
  experiment.num_epochs = 15_000 * 2048 / 1_281_167  # 15,000 updates.
  experiment.train_batch_size = 2048
  experiment.lr = 0.1
  experiment.lr_scale_by_bs = False
  experiment.lr_schedule.warmup_part = 1 / 3
  experiment.optimizer = {
    'name': 'sgd_agc',
    'kwargs': {
      'momentum': 0.9,
      'nesterov': True,
      'weight_decay': 1e-5,
      'clipping': 0.01,
      'eps': 1e-3,
    },
  }
  experiment.sam_rho = 0.05
  experiment.sam_fraction = 0.2
  experiment.use_ema = True
  experiment.bfloat16 = True
  config.best_model_eval_metric = 'eval_ema_top_1_acc'
  return config
