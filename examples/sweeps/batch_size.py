"""How large a batch AGC makes possible (arXiv 2102.06171, figure 2).

python experiments/tools/study.py sweep examples/sweeps/batch_size.py
"""

import math

config = 'digits'
settings = {
  # Small enough that a trial takes seconds.
  'image_size': 16,
  'eval_image_size': 16,
  'eval_batch_size': 360,
  'num_epochs': 20.0,
  # The rate of the recipe at its batch of 64, and in proportion elsewhere.
  'lr': 0.8,
  'lr_scale_by_bs': True,
  'log_train_data_interval': 100,
  'save_checkpoint_interval': 500,
}
axes = {
  'train_batch_size': [16, 64, 256, 1024],
  'optimizer.kwargs.clipping': [0.01, 0.02, 0.04, 0.08, 0.16, math.inf],
}
seeds = range(3)
