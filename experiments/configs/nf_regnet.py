"""NF-RegNet-B0 to B8 on ImageNet (arXiv 2101.08692).

python experiments/experiment.py --config=nf_regnet_b0

The published recipe, with mixup and CutMix. Weight decay is 5e-5 for B0, and
1e-5 more for each larger variant to B5; for B6 to B8 nothing was published, and
this goes on in the same way.
"""

from experiments import configs
from nfnets import variants


def get_config(name: str = 'nf_regnet_b0'):
  """Return the recipe of one variant, such as 'nf_regnet_b0'."""
  config = configs.get_base(name, name)
  variant = name.removeprefix('nf_regnet_').upper()
  experiment = config.experiment_kwargs.config
  experiment.model_kwargs = {
    'stochdepth_rate': 0.1,
    'drop_rate': variants.nf_regnet_params[variant]['drop_rate'],
    'activation': 'silu',
  }
  experiment.augment_name = 'cutmix_mixup'
  experiment.num_epochs = 360.0
  experiment.lr = 0.4
  experiment.lr_scale_by_bs = False
  experiment.lr_schedule.end = 0.001
  level = int(variant.removeprefix('B'))
  experiment.optimizer.kwargs.weight_decay = (5 + level) * 1e-5
  experiment.use_ema = True
  config.best_model_eval_metric = 'eval_ema_top_1_acc'
  return config
