"""Which layers AGC should clip (arXiv 2102.06171, section 4.1 and appendix).

python experiments/tools/study.py sweep examples/sweeps/clipped_layers.py
"""

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
  'train_batch_size': 256,
  'optimizer.kwargs.clipping': 0.01,
  'log_train_data_interval': 100,
  'save_checkpoint_interval': 500,
}
axes = {
  'clip_layers': {
    'all': {'clip_layers': '*'},
    'not the last': {'clip_layers': '!last'},
    'nor the stem': {'clip_layers': '!last,!stem'},
    'the stem': {'clip_layers': 'stem'},
    'stage 1': {'clip_layers': 'stage1'},
    'stage 2': {'clip_layers': 'stage2'},
    'stage 3': {'clip_layers': 'stage3'},
    'stage 4': {'clip_layers': 'stage4'},
  }
}
seeds = range(3)
