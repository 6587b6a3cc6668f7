"""The settings of all recipes: names, defaults and help.

Those of a run are JAXline's (see its `base_config.py`) and ours; those of the
experiment are under `experiment_kwargs.config`. None means unset.
"""

from typing import Any

import ml_collections


def _optional(kind: type, default: Any = None) -> ml_collections.FieldReference:
  """Declare a setting that has a type, or is None."""
  return ml_collections.FieldReference(default, field_type=kind)


# {name: (default, help)}. A setting with settings inside has one help text.
RUN: dict[str, tuple[Any, str]] = {
  'checkpoint_dir': ('', 'Folder of the run: checkpoints, curves, weights.'),
  'training_steps': (
    _optional(int),
    'Number of updates. None: as many as num_epochs makes. Where both are set, '
    'the learning rate follows num_epochs.',
  ),
  'interval_type': ('secs', 'Unit of the intervals below: secs or steps.'),
  'checkpoint_interval_type': (
    _optional(str),
    'Unit of save_checkpoint_interval. None: interval_type.',
  ),
  'logging_interval_type': (
    _optional(str),
    'Unit of the intervals of the log and the curves. None: interval_type.',
  ),
  'save_checkpoint_interval': (600, 'Interval between two checkpoints.'),
  'log_tensors_interval': (30, 'Interval between two lines of the log.'),
  'log_train_data_interval': (
    30.0,
    "Interval between two points of TensorBoard's curves.",
  ),
  'periodic_action_growth_ratios': (
    None,
    'Also log at these multiples of powers of ten, such as [1, 2, 5, 10], if '
    'interval_type is steps.',
  ),
  'log_async': (True, 'Write lines of the log while the next steps run.'),
  'log_all_hosts': (False, 'Write curves on all hosts.'),
  'log_all_train_data': (False, 'Write the curves with a point for each step.'),
  'save_initial_train_checkpoint': (
    False,
    'Save a checkpoint before the first step.',
  ),
  'train_checkpoint_all_hosts': (
    False,
    'Have all hosts write checkpoints, instead of the first alone.',
  ),
  'best_checkpoint_all_hosts': (
    False,
    'Have all hosts write the best checkpoint, instead of the first alone.',
  ),
  'max_checkpoints_to_keep': (3, 'Number of checkpoints kept in a series.'),
  'eval_wait_minutes': (
    60.0,
    'Minutes that evaluation waits for a new checkpoint before it stops.',
  ),
  'eval_initial_weights': (
    False,
    'With --jaxline_mode=eval and weights: evaluate them and stop. This is the '
    'default there.',
  ),
  'one_off_evaluate': (
    False,
    'Evaluate the latest checkpoint once, and do not wait for others.',
  ),
  'save_retry_minutes': (
    10.0,
    'Minutes that training retries writing its last checkpoint.',
  ),
  'best_model_eval_metric': (
    'eval_top_1_acc',
    'Metric that selects the best checkpoint.',
  ),
  'best_model_eval_metric_higher_is_better': (
    True,
    'Higher values of best_model_eval_metric are better; False: lower ones.',
  ),
  'evaluations': (
    0,
    'Number of evaluations during training; the best weights are kept, and '
    'tested at the end. 0: none; a second program with --jaxline_mode=eval can '
    'evaluate the checkpoints.',
  ),
  'patience': (
    _optional(int),
    'Stop after this many evaluations without a better one. None: train to the '
    'last step.',
  ),
  'report': (False, 'Write a page on the results, report.html, at the end.'),
  'change_settings': (
    False,
    'Continue a run with settings that change its result; run.json records the '
    'previous ones, and the step of the change.',
  ),
  'test_at_end': (
    5000,
    'Largest number of examples for which training ends with an evaluation; 0: '
    "never. ImageNet's 10,000 and more are for a second program.",
  ),
  'compilation_cache': (
    True,
    "Keep compiled programs for the next start, in the user's cache folder or "
    'in JAX_COMPILATION_CACHE_DIR.',
  ),
  'compile_quickly': (
    False,
    'Compile with few optimizations: for runs of a few steps.',
  ),
  'random_seed': (
    42,
    'Seed of the initial parameters, the order of the data and all randomness.',
  ),
  'random_mode_train': (
    'unique_host_unique_device',
    'Which devices draw the same random numbers in training.',
  ),
  'random_mode_eval': (
    'same_host_same_device',
    'Which devices draw the same random numbers in evaluation (it draws none).',
  ),
  'legacy_random_seed_behavior': (
    False,
    'Use one key for the initial parameters and the steps, as older versions '
    'of JAXline did.',
  ),
}

EXPERIMENT: dict[str, tuple[Any, str]] = {
  'model': (
    _optional(str),
    'Name of the model; nfnets.list_models() has all. None: the model of the '
    'weights.',
  ),
  'model_kwargs': (
    {'stochdepth_rate': 0.1},
    "Arguments of the network's class; a config file can add others, such as "
    'width.',
  ),
  'num_classes': (
    _optional(int, 1000),
    "Size of the last layer. None: the dataset's number of classes.",
  ),
  'weights': (
    _optional(str),
    'Initial weights of training, and the weights that --jaxline_mode=eval '
    "evaluates: a file, a run's folder, or a name such as nfnet_f0. A "
    'checkpoint to continue from comes first; a last layer for other classes '
    'is replaced in training.',
  ),
  'image_size': (
    _optional(int),
    "Training image size in pixels. None: the model's.",
  ),
  'eval_image_size': (
    _optional(int),
    'Evaluation image size in pixels. None: image_size times the ratio of the '
    "model's two sizes.",
  ),
  'which_dataset': (
    _optional(str, 'imagenet2012'),
    'Folder of pictures, or name of a TFDS dataset; --data is the same.',
  ),
  'data_dir': (
    _optional(str),
    "Folder in which TFDS prepared the dataset. None: TFDS's default.",
  ),
  'fake_data': (False, 'Use random images instead of a dataset.'),
  'eval_subset': (
    'test',
    'Split to evaluate. test: train on the whole training split; valid: hold '
    'out a part of it, where a folder has no split of that name.',
  ),
  'train_preproc': (
    _optional(str, 'crop_flip'),
    'Crops and shifts in training: crop_flip or shift_K. None: those that the '
    'weights were trained with, or crop_flip.',
  ),
  'eval_preproc': (
    _optional(str),
    'Preprocessing in evaluation: crop_resize, resize_crop_P or center_crop_P. '
    "None: the model's.",
  ),
  'augment_name': (
    _optional(str),
    'Augmentation after train_preproc, such as cutmix_mixup_randaugment_405. '
    'None: no augmentation.',
  ),
  'augment_before_mix': (
    False,
    'Apply RandAugment or AutoAugment before mixing; published is after.',
  ),
  'augmentation_multiplicity': (
    1,
    'Number of differently augmented copies of each image in a batch; the '
    'image is read once, and train_batch_size counts it once.',
  ),
  'augment_kwargs': (
    {'wrap_solarize': True, 'constant_grey': True},
    'Quirks of the published augmentation; see nfnets/data/autoaugment.py.',
  ),
  'skip_corrupt': (
    False,
    'Skip images that cannot be decoded (and count them) instead of stopping.',
  ),
  'transpose': (
    False,
    'Send batches to the devices as [H, W, 3, B], which TPUs prefer.',
  ),
  'train_batch_size': (
    1024,
    'Images per update, over all devices of all hosts.',
  ),
  'eval_batch_size': (
    1000,
    'Images per step of evaluation, over all devices of all hosts.',
  ),
  'num_epochs': (
    _optional(float, 90.0),
    'Length of training and of the learning rate schedule in epochs. None: '
    'from training_steps or, without these, from the size of the dataset.',
  ),
  'lr': (
    _optional(float, 0.1),
    'Peak learning rate. None: the best measured for fine-tuning, or for small '
    'datasets without weights.',
  ),
  'lr_head': (
    _optional(float),
    'Peak learning rate of the last layer. None: lr.',
  ),
  'layer_decay': (
    1.0,
    'Factor of the learning rate from each block to the block before it.',
  ),
  'train_only': (
    _optional(str),
    'Layers to train, by parts of their names, with commas: last is the last '
    'layer, nf_block_11 a block, gain all gains. None: all layers.',
  ),
  'lr_scale_by_bs': (
    True,
    'Take lr for a batch of 256, and scale it with train_batch_size.',
  ),
  'lr_schedule': (
    {
      'name': 'warmup_cosine',
      'warmup_epochs': 5.0,
      'warmup_part': _optional(float),
      'end': 0.0,
    },
    'warmup_cosine rises from 0 for warmup_epochs, or for the fraction '
    'warmup_part of training if that is set, and falls along half a cosine to '
    '`end` at num_epochs; constant does not change.',
  ),
  'optimizer': (
    {
      'name': 'sgd',
      'kwargs': {'momentum': 0.9, 'nesterov': True, 'weight_decay': 5e-5},
    },
    'sgd_agc, or any optimizer of optax, and its arguments; gains and biases '
    'get no weight decay.',
  ),
  'clip_layers': (
    _optional(str),
    'Layers that sgd_agc clips, by names as in train_only, and stem, or stage1 '
    'to stage4; `!` in front excludes, `*` is all. None: all but the last '
    'kernel.',
  ),
  'traced_hyperparams': (
    False,
    'Pass lr, weight decay and clipping to the compiled step as arguments, so '
    'that runs in one process can share it.',
  ),
  'log_layers': (
    False,
    "Log each layer's ratio of gradient and weight norm, and its clipped "
    'fraction, to the curves.',
  ),
  'sam_rho': (0.0, "Length of SAM's ascent; 0: without SAM."),
  'sam_fraction': (
    0.2,
    "Fraction of each device's batch that SAM's ascent uses.",
  ),
  'accumulate_steps': (
    1,
    "Number of parts in which each device's batch is computed, one after the "
    'other: less memory, the same gradient.',
  ),
  'clip_per_example': (
    _optional(str),
    "Clip each example's gradient before averaging: by unit, as in AGC, or by "
    'the norm of all of it. None: no such clipping.',
  ),
  'per_example': (
    {'clipping': 0.01, 'eps': 1e-3, 'chunk': _optional(int)},
    'For clip_per_example=unit, clipping is the largest ratio of the norms of '
    "a unit's gradient and weights, and eps the lower bound on the weight "
    'norm; for norm, clipping is the largest norm. chunk is the number of '
    'gradients that a device holds at once; None: those of a whole part.',
  ),
  'private': (
    {
      'noise_multiplier': _optional(float),
      'delta': _optional(float),
      'epsilon': _optional(float),
      'sampling': 'poisson',
      'key': _optional(int),
    },
    'Differentially private training, with clip_per_example=norm: standard '
    'deviation of the noise in a sum of clipped gradients, in units of the '
    'clipping; delta; and the epsilon at which training ends. None: training '
    'is not private. A batch is a Poisson sample of train_batch_size images on '
    'average. key fixes noise and samples, for tests, and epsilon does not '
    "hold; None: a secret of the operating system's. See docs/private.md.",
  ),
  'remat': (
    _optional(object, False),
    'Number of first blocks that are recomputed in the backward pass, or True '
    'for all: less memory, more time; experiments/tools/plan.py finds it.',
  ),
  'skip_nonfinite': (
    False,
    'Skip updates with a non-finite loss or gradient (and count them) instead '
    'of stopping.',
  ),
  'which_loss': (
    'softmax_cross_entropy',
    'softmax_cross_entropy or sigmoid_cross_entropy.',
  ),
  'label_smoothing': (
    0.1,
    'Fraction of each label that is spread over all classes.',
  ),
  'class_weights': (
    _optional(str),
    'balanced: weight the training loss of each example by the inverse '
    'frequency of its class. None: equal weights.',
  ),
  'balance_classes': (
    False,
    'Draw each class equally often in training; an epoch has as many examples '
    'as before.',
  ),
  'use_ema': (
    False,
    'Keep an exponential moving average of the weights, and evaluate it, too.',
  ),
  'ema_decay': (0.99999, 'Decay of the average per update.'),
  'which_ema': (
    'tf1_ema',
    'tf1_ema begins with a lower decay; ema has a constant one.',
  ),
  'bfloat16': (
    False,
    'Compute training in bfloat16; weights and loss stay float32.',
  ),
  'eval_bfloat16': (
    False,
    'Compute evaluation in bfloat16, too. Published numbers are of float32.',
  ),
}
