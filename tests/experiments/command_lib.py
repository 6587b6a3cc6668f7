"""What tests of the command share."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

# Digits, small enough that steps take no time, with a learning rate that rises
# for two of them and falls in the next ones. Most tests take these settings
# without a change, so that the step is compiled once.
SMALL = (
  '--config=digits',
  '--image_size=16',
  '--eval_image_size=16',
  '--train_batch_size=16',
  '--eval_batch_size=7',
  '--use_ema',
  '--num_epochs=0.2',
  '--lr_schedule.warmup_epochs=0.02',
  '--save_checkpoint_interval=2',
  '--log_tensors_interval=2',
  '--report=False',
  '--compile_quickly',
)


def read_json(text: str) -> dict[str, Any]:
  """Reads JSON; raises ValueError for NaN and Infinity, which it has not."""

  def refuse(name):
    raise ValueError(f'{name} is no JSON.')

  return json.loads(text, parse_constant=refuse)


def read_arrays(folder: pathlib.Path, step: int) -> dict[str, np.ndarray]:
  """Reads a checkpoint without the project's code: {path: array}."""
  with ocp.StandardCheckpointer() as checkpointer:
    tree = checkpointer.restore(folder / 'latest' / str(step) / 'state')
  return {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
  }


def wait_for_step(process) -> str:
  """Returns what a process has logged when it has logged a step."""
  log = ''
  for line in process.stderr:
    log += line
    if ' step ' in line and '  loss ' in line:
      return log
  raise AssertionError(f'training has ended before its first step: {log}')
