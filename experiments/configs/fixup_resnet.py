"""Fixup-ResNet-50 to 600 on ImageNet (arXiv 1901.09321): a baseline.

python experiments/experiment.py --config=fixup_resnet50

No configuration was published for it with the NF-ResNets. This one is that of
the ResNets with BatchNorm, to compare with, and not a reproduced result.
"""

from experiments import configs


def get_config(name: str = 'fixup_resnet50'):
  """Return the recipe of one depth, such as 'fixup_resnet50'."""
  config = configs.get_base(name, name)
  experiment = config.experiment_kwargs.config
  experiment.model_kwargs = {
    'stochdepth_rate': 0.0,
    'drop_rate': 0.0,
    'activation': 'relu',
  }
  experiment.optimizer.kwargs.weight_decay = 1e-4
  return config
