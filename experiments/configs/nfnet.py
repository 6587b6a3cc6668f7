"""NFNet-F0 to F7 and F0+ to F7+ on ImageNet (arXiv 2102.06171).

python experiments/experiment.py --config=f0

Published top-1 with mixup, CutMix and RandAugment: F0 83.6 %, F1 84.7 %, F2
85.1 %, F3 85.7 %, F4 85.9 %, F5 86.0 %. This recipe is the published one with
random crops and flips alone.
"""

from experiments import configs
import nfnets.base


def get_config(name: str = 'f0'):
  """Returns the recipe of one variant, such as 'f0' or 'f3+'."""
  config = configs.get_base(name, f'nfnet_{name}')
  experiment = config.experiment_kwargs.config
  experiment.model_kwargs = {
    'stochdepth_rate': 0.25,
    'drop_rate': nfnets.base.nfnet_params[name.upper()]['drop_rate'],
    'activation': 'gelu',
  }
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
  experiment.use_ema = True
  experiment.bfloat16 = True
  config.best_model_eval_metric = 'eval_ema_top_1_acc'
  return config
