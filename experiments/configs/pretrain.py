"""Pre-training on a large dataset of your own, as was done on JFT.

python experiments/experiment.py --config=pretrain:f4+ --data=DIR
python experiments/experiment.py --config=pretrain:2023 --data=DIR

`f4+` and other variants are as in arXiv 2102.06171, where JFT-300M gave F4 and
F4+ 89.2 % on ImageNet after fine-tuning; `2023` as in arXiv 2310.16764, where
JFT-4B gave F7+ 90.3 %, and 90.4 % with four augmentations of each image
(`--augmentation_multiplicity=4`). Neither dataset is public, nor are weights.
"""

from experiments import configs
from nfnets import variants
from nfnets.errors import UserError


def get_config(name: str = 'pretrain'):
  """Return the recipe of a year or of a variant, as 'pretrain:2023'."""
  option = name.partition(':')[2]
  if option == '2023':
    return _get_published('f7+', name, num_epochs=1.0)
  if option.upper() not in variants.nfnet_params:
    raise UserError(
      f'There is no published pre-training of {option!r}: it is pretrain:2023, '
      'or pretrain: and a variant, such as f4+.',
      2,
    )
  return _get_published(option, name, num_epochs=10.0)


def _get_published(variant: str, name: str, num_epochs: float):
  """Return the recipe.

  Published: SGD with AGC, the batch, the rate, the weight decay (of 2021), 224
  pixels, random crops and flips, no average. In 2023 budgets were 0.25 to 8
  epochs, and 1.6 was the best rate of short ones; long ones, of large networks,
  need a lower one. Not published, and chosen here: the epochs, the warm-up, the
  loss, no smoothing of labels, the regularizers, and for 2023 AGC's value and
  the decay of 2021.
  """
  config = configs.get_base(name, f'nfnet_{variant}')
  experiment = config.experiment_kwargs.config
  experiment.model_kwargs = {'stochdepth_rate': 0.1, 'drop_rate': 0.0}
  experiment.which_dataset = None
  experiment.num_classes = None
  experiment.eval_subset = 'valid'
  experiment.image_size = experiment.eval_image_size = 224
  experiment.train_batch_size = 4096
  experiment.num_epochs = num_epochs
  experiment.lr = 1.6
  experiment.lr_scale_by_bs = False
  experiment.lr_schedule.warmup_part = 0.01
  experiment.label_smoothing = 0.0
  experiment.optimizer = {
    'name': 'sgd_agc',
    'kwargs': {
      'momentum': 0.9,
      'nesterov': True,
      'weight_decay': 1e-6,
      'clipping': 0.01,
      'eps': 1e-3,
    },
  }
  experiment.bfloat16 = True
  return config
