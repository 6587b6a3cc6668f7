"""Which optimizer and rate to fine-tune with: digits, few images per class.

python benchmarks/finetuning.py [--output=finetuning.json] [--seeds=3]

A small network is trained on the digits 0 to 4, and then fine-tuned on folders
of 5, 25 and 100 images per class of

  other        the digits 5 to 9
  inverted     0 to 4 with black and white exchanged
  rotated      0 to 4, turned by 90 degrees
  recoloured   0 to 4 in two random colours each

with SGD, SGD with AGC, AdamW and AdamW with AGC, at several learning rates, and
trained from scratch on the same images for three times the steps. Everything
else is as --config=finetune has it: batches, schedule, steps. The accuracy is
that of the last weights on the test images of those classes, about 180. Prints
tables in Markdown of the mean over the seeds, each of which is other images and
another last layer, and of the standard deviation; the last line of standard
output is JSON.

Two processes share the work, of one thread each. In each there is one program
for all rates and clippings of an optimizer, because these are its arguments.
"""

import argparse
import collections
from concurrent import futures
import itertools
import json
import multiprocessing
import os
import pathlib
import statistics
import sys
import tempfile
import time

_ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_ROOT))

_SIZE = 16  # Pixels.
_STEPS, _SCRATCH_STEPS = 300, 900
_SHOTS = (5, 25, 100)
_TARGETS = ('other', 'inverted', 'rotated', 'recoloured')
_NEVER = float('inf')
# Optimizer, clipping and learning rates by their names in the tables.
_SGD_RATES, _ADAM_RATES = (0.02, 0.1, 0.4), (1e-3, 3e-3, 1e-2)
_METHODS = {
  'SGD': ('sgd', _NEVER, _SGD_RATES),
  'SGD, AGC 0.01': ('sgd', 0.01, _SGD_RATES),
  'SGD, AGC 0.16': ('sgd', 0.16, _SGD_RATES),
  'AdamW': ('adamw', _NEVER, _ADAM_RATES),
  'AdamW, AGC 0.16': ('adamw', 0.16, _ADAM_RATES),
}
_FROM_SCRATCH = {
  'SGD, AGC 0.16': ('sgd', 0.16, (0.1,)),
  'AdamW': ('adamw', _NEVER, (3e-3,)),
}


def _write_folders(folder: pathlib.Path, target: str, shots: int, seed: int):
  """Writes PNGs as folder/{train,test}/CLASS/NUMBER.png."""
  import numpy as np
  from PIL import Image
  from sklearn import datasets

  digits = datasets.load_digits()
  order = np.random.RandomState(0).permutation(len(digits.images))
  rng = np.random.default_rng(seed)
  left = collections.Counter()
  for split, indices in (
    ('test', order[-360:]),
    ('train', rng.permutation(order[:-360])),
  ):
    for i in indices:
      label = int(digits.target[i])
      if (label >= 5) != (target == 'other'):
        continue
      if split == 'train' and left[label] == shots:
        continue
      left[label] += split == 'train'
      image = np.uint8(np.round(digits.images[i] * (255 / 16)))
      image = np.repeat(image[..., None], 3, axis=-1)
      if target == 'inverted':
        image = 255 - image
      elif target == 'rotated':
        image = np.rot90(image)
      elif target == 'recoloured':
        colours = np.random.default_rng(int(i)).uniform(0, 255, (2, 1, 1, 3))
        part = image / 255
        image = np.uint8(part * colours[0] + (1 - part) * colours[1])
      path = folder / split / str(label) / f'{i}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(np.ascontiguousarray(image)).save(path)


class _Task:
  """Training and testing on the images of a folder."""

  def __init__(self, folder: pathlib.Path, steps: int, seed: int):
    import jax

    from experiments import configs, recipe

    config = configs.load('finetune').experiment_kwargs.config
    config.update(
      model='nfnet_digits',
      model_kwargs={'stochdepth_rate': 0.0, 'drop_rate': 0.0},
      image_size=_SIZE,
      eval_image_size=_SIZE,
      train_preproc='shift_2',
      eval_batch_size=200,
      eval_subset='test',
      which_dataset=str(folder),
      num_steps=steps,
      lr=1.0,  # The schedule's, which others are multiples of.
    )
    self.key = jax.random.PRNGKey(seed)
    self.built = recipe.build(config, self.key)
    with self.built.train_batches() as batches:
      self._batches = list(itertools.islice(batches, steps))
    (self._test,) = self.built.eval_batches()

  def run(self, programs, method, rate: float, weights=None) -> dict:
    """Trains; returns how that went, and the parameters."""
    import jax

    kind, clipping, _ = method
    init, step, evaluate = programs(self.built, kind)
    state = init(self.key, weights)
    losses, clipped = [], []
    for batch in self._batches:
      key = jax.random.fold_in(self.key, len(losses))
      state, metrics = step(
        state, batch, key, rate, clipping, len(self._batches)
      )
      losses.append(metrics['train_loss'])
      clipped.append(metrics['fraction_clipped'])
    sums = evaluate(state.params, state.state, self._test)
    return {
      'accuracy': float(sums['top_1_acc'] / sums['num_examples']),
      'train_loss': statistics.mean(map(float, losses[-20:])),
      'fraction_clipped': statistics.mean(map(float, clipped)),
      'params': state.params,
    }


def _make_programs():
  """Returns a function: (recipe, optimizer) -> (init, step, evaluate)."""
  import functools

  import jax
  import optax

  from experiments import step as step_lib
  from nfnets import optim

  def optimizer(kind, schedule, clipping):
    if kind == 'sgd':
      return optim.sgd_agc(schedule, weight_decay=1e-5, clipping=clipping)
    agc = optim.adaptive_grad_clip(clipping)
    return optax.chain(
      optax.masked(agc, optim.clip_mask),
      optim.make_optimizer('adamw', schedule, weight_decay=1e-2),
    )

  compiled = {}

  def programs(built, kind):
    key = kind, built.config.num_classes
    if key in compiled:
      return compiled[key]

    def train_step(state, batch, rng, rate, clipping, num_steps):
      shape = optim.warmup_cosine(1.0, _STEPS / 10, _STEPS)

      def schedule(step):
        return rate * shape(step * (_STEPS / num_steps))

      step = step_lib.make_train_step(
        built.model, optimizer(kind, schedule, clipping), schedule, built.config
      )
      return step(state, batch, rng)

    init = functools.partial(
      step_lib.init_train_state,
      built.model,
      optimizer(kind, lambda _: 0.0, 1.0),
      False,
    )
    compiled[key] = (
      jax.jit(init),
      jax.jit(train_step, donate_argnums=0),
      jax.jit(step_lib.make_eval_step(built.model, built.config)),
    )
    return compiled[key]

  return programs


def _pretrain(programs, folder: pathlib.Path):
  """Returns what is known of the digits 0 to 4, and the accuracy on them."""
  from nfnets.optim import layers

  _write_folders(folder, 'source', 1000, 0)
  result = _Task(folder, _SCRATCH_STEPS, 0).run(
    programs, ('sgd', 0.16, None), 0.2
  )
  params = {
    module: leaves
    for module, leaves in result['params'].items()
    if not layers.is_last_layer(module)
  }
  return (params, {}), result['accuracy']


def _measure(target: str, seed: int) -> tuple[float, list[dict]]:
  """Makes all runs with one choice of images of one target."""
  rows = []
  programs = _make_programs()
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    weights, source_accuracy = _pretrain(programs, folder / 'source')
    for shots in _SHOTS:
      _write_folders(folder / str(shots), target, shots, seed)
      for start, methods in (
        ('weights', _METHODS),
        ('scratch', _FROM_SCRATCH),
      ):
        steps = _STEPS if start == 'weights' else _SCRATCH_STEPS
        task = _Task(folder / str(shots), steps, seed)
        for name, method in methods.items():
          for rate in method[2]:
            given = weights if start == 'weights' else None
            result = task.run(programs, method, rate, given)
            del result['params']
            row = {'target': target, 'seed': seed, 'shots': shots}
            rows.append(
              {**row, 'start': start, 'method': name, 'rate': rate, **result}
            )
  return source_accuracy, rows


def _table(rows: list[dict], title: str, of) -> str:
  """Returns a table, methods and rates by shots, of rows that `of` takes."""
  cells = collections.defaultdict(list)
  for row in filter(of, rows):
    key = row['start'], row['method'], row['rate']
    cells[*key, row['shots']].append(row)
  lines = [
    f'| {title} | rate | ' + ' | '.join(map(str, _SHOTS)) + ' | clipped |'
  ]
  lines.append('|---|---|' + '---|' * (len(_SHOTS) + 1))
  for key in dict.fromkeys(k[:3] for k in cells):
    start, method, rate = key
    name = method if start == 'weights' else f'{method}, from scratch'
    shown, clipped = [], []
    for shots in _SHOTS:
      found = cells[*key, shots]
      # Over the seeds, of the mean over what is in the table.
      by_seed = collections.defaultdict(list)
      for row in found:
        by_seed[row['seed']].append(100 * row['accuracy'])
      means = [statistics.mean(values) for values in by_seed.values()]
      spread = statistics.stdev(means) if len(means) > 1 else 0
      shown.append(f'{statistics.mean(means):.1f} ± {spread:.1f}')
      clipped += [row['fraction_clipped'] for row in found]
    lines.append(
      f'| {name} | {rate:g} | {" | ".join(shown)} | '
      f'{statistics.mean(clipped):.0%} |'
    )
  return '\n'.join(lines)


def main() -> None:
  """Runs the benchmark."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--output', help='where to write the JSON, too')
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--processes', type=int, default=os.cpu_count())
  args = parser.parse_args()
  os.environ['XLA_FLAGS'] = (
    '--xla_cpu_multi_thread_eigen=false ' + os.environ.get('XLA_FLAGS', '')
  )
  start = time.monotonic()
  jobs = list(itertools.product(_TARGETS, range(args.seeds)))
  with futures.ProcessPoolExecutor(
    args.processes, multiprocessing.get_context('spawn')
  ) as pool:
    results = []
    for job, result in zip(
      jobs, pool.map(_measure, *zip(*jobs, strict=True)), strict=True
    ):
      results.append(result)
      seconds = time.monotonic() - start
      print(f'{job} after {seconds / 60:.1f} min', file=sys.stderr, flush=True)
  rows = [row for _, found in results for row in found]
  source = statistics.mean(accuracy for accuracy, _ in results)
  print(f'\nOn the digits 0 to 4 the network has {source:.1%}.\n')
  for target in _TARGETS:
    print(_table(rows, target, lambda row, t=target: row['target'] == t), '\n')
  print(_table(rows, 'all four', lambda row: True), '\n')
  minutes = (time.monotonic() - start) / 60
  summary = {'minutes': minutes, 'source_accuracy': source, 'runs': rows}
  if args.output:
    pathlib.Path(args.output).write_text(json.dumps(summary))
  print(json.dumps({'minutes': minutes, 'runs': len(rows)}))


if __name__ == '__main__':
  main()
