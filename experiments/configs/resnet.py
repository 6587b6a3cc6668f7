"""ResNets with BatchNorm on ImageNet, v2 or v1: the baseline.

python experiments/experiment.py --config=resnet50
python experiments/experiment.py --config=resnet50_v1

The published recipe of the baseline, of 90 epochs with crops and flips alone.
BatchNorm takes its statistics on each device alone; with
--model_kwargs.norm_kwargs.cross_replica_axis=i
it takes them over all devices of all hosts.
"""

from experiments import configs


def get_config(name: str = 'resnet50'):
  """Return the recipe of one depth, such as 'resnet50' or 'resnet50_v1'."""
  config = configs.get_base(name, name)
  experiment = config.experiment_kwargs.config
  experiment.model_kwargs = {
    'drop_rate': 0.0,
    'activation': 'relu',
    'use_se': False,
    # '' is each device alone, 'i' (JAXline's name for them) all devices.
    'norm_kwargs': {'decay_rate': 0.9, 'cross_replica_axis': ''},
  }
  experiment.optimizer.kwargs.weight_decay = 1e-4
  return config
