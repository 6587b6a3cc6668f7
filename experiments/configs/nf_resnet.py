"""NF-ResNet-50 to 600 on ImageNet (arXiv 2101.08692), and privately.

python experiments/experiment.py --config=nf_resnet50
python experiments/experiment.py --config=nf_resnet50:private

No configuration was published with the paper. The first follows its text, and
is a place to start from rather than a reproduced result. The second is that of
De et al. (arXiv 2204.13650) as published with their code: differentially
private training from scratch, 32.4 % top-1 at epsilon 8 and delta 8e-7. Chosen
here: how many gradients a device has at once (per_example.chunk), and that
depths other than 50 get the same; docs/private.md.
"""

from experiments import configs


def get_config(name: str = 'nf_resnet50'):
  """Return the recipe of one depth, such as 'nf_resnet50'."""
  model, _, option = name.partition(':')
  config = configs.get_base(name, model)
  experiment = config.experiment_kwargs.config
  experiment.model_kwargs = {
    'stochdepth_rate': 0.1,
    'drop_rate': 0.25,
    'activation': 'relu',
    'use_se': False,
  }
  if option == 'private':
    _make_private(config)
  return config


def _make_private(config) -> None:
  experiment = config.experiment_kwargs.config
  experiment.model_kwargs.stochdepth_rate = 0.0
  experiment.model_kwargs.drop_rate = 0.0
  experiment.model_kwargs.skipinit_gain = 'ones'
  # Trained on all but the 10,000 images of their validation.
  experiment.eval_subset = 'valid'
  experiment.augmentation_multiplicity = 4
  experiment.label_smoothing = 0.0
  experiment.train_batch_size = 16_384
  # 71,589 updates.
  experiment.num_epochs = 71_589 * 16_384 / 1_271_167
  experiment.lr = 4.0
  experiment.lr_scale_by_bs = False
  experiment.lr_schedule.name = 'constant'
  experiment.optimizer = {'name': 'sgd', 'kwargs': {}}
  experiment.clip_per_example = 'norm'
  experiment.per_example.clipping = 1.0
  experiment.per_example.chunk = 16
  experiment.private.noise_multiplier = 2.5
  experiment.private.delta = 8e-7
  experiment.private.epsilon = 8.0
  experiment.use_ema = True
  config.best_model_eval_metric = 'eval_ema_top_1_acc'
