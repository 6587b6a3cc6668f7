"""NFNet-F0 to F7 and F0+ to F7+ on ImageNet (arXiv 2102.06171).

python experiments/experiment.py --config=f0
python experiments/experiment.py --config=f6:sam

The published recipe, with mixup, CutMix and RandAugment. Published top-1, in %:
F0 83.6, F1 84.7, F2 85.1, F3 85.7, F4 85.9, F5 86.0, F6 with SAM 86.5. Nothing
was published of F7 and of the wider ones, F0+ to F7+; they get the same.
"""

from experiments import configs
from nfnets import variants


def get_config(name: str = 'f0'):
  """Return the recipe of one variant, such as 'f0', 'f3+' or 'f6:sam'."""
  variant, _, option = name.partition(':')
  config = configs.get_base(name, f'nfnet_{variant}')
  row = variants.nfnet_params[variant.upper()]
  experiment = config.experiment_kwargs.config
  experiment.model_kwargs = {
    'stochdepth_rate': 0.25,
    'drop_rate': row['drop_rate'],
    'activation': 'gelu',
  }
  experiment.augment_name = f'cutmix_mixup_randaugment_{row["RA_level"]}'
  experiment.train_batch_size = 4096
  experiment.num_epochs = 360.0
  experiment.optimizer = {
    'name': 'sgd_agc',
    'kwargs': {
      'momentum': 0.9,
      'nesterov': True,
      'weight_decay': 2e-5,
      'clipping': 0.01,
      'eps': 1e-3,
    },
  }
  if option == 'sam':
    experiment.sam_rho = 0.05
    experiment.sam_fraction = 0.2
  experiment.use_ema = True
  experiment.bfloat16 = True
  config.best_model_eval_metric = 'eval_ema_top_1_acc'
  return config
