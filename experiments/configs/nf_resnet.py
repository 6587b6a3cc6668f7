"""NF-ResNet-50 to 600 on ImageNet (arXiv 2101.08692).

python experiments/experiment.py --config=nf_resnet50

No configuration was published with the paper. This one follows its text, and
is a place to start from rather than a reproduced result.
"""

from experiments import configs


def get_config(name: str = 'nf_resnet50'):
  """Returns the recipe of one depth, such as 'nf_resnet50'."""
  config = configs.get_base(name, name)
  config.experiment_kwargs.config.model_kwargs = {
    'stochdepth_rate': 0.1,
    'drop_rate': 0.25,
    'activation': 'relu',
    'use_se': False,
  }
  return config
