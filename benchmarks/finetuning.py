"""Compares optimizers and learning rates for fine-tuning on few images.

python benchmarks/finetuning.py [--output=finetuning.json] [--seeds=3]

Trains a small network on the digits 0 to 4. Then fine-tunes it on 5, 25 and 100
images per class of

  other        the digits 5 to 9
  inverted     0 to 4 with black and white exchanged
  rotated      0 to 4, rotated by 90 degrees
  recoloured   0 to 4 in two random colours

with SGD, SGD with AGC, AdamW and AdamW with AGC at several learning rates. Also
trains from scratch on the same images with three times as many steps. The other
settings are those of --config=finetune. The accuracy is that of the last
weights on about 180 test images. Prints a Markdown table with mean and standard
deviation over the seeds, which change the images and the last layer. The last
line of standard output is JSON.

Each process has one thread. The learning rate and the clipping are arguments of
the compiled step, so each optimizer compiles once per process.
"""

import collections
from concurrent import futures
import functools
import itertools
import json
import multiprocessing
import os
import pathlib
import statistics
import tempfile
import time

import timing

_SIZE = 16  # Pixels.
_STEPS, _SCRATCH_STEPS = 300, 900
_SHOTS = (5, 25, 100)
_TARGETS = 'other,inverted,rotated,recoloured'
_NEVER = float('inf')
# {name in the table: (optimizer, clipping, learning rates)}.
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
  """Write PNGs as folder/{train,test}/CLASS/NUMBER.png."""
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


def _make_programs():
  """Return a function: (recipe, optimizer) -> (init, step, evaluate)."""
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
    def train_step(state, batch, rng, rate, clipping, num_steps):
      shape = optim.warmup_cosine(1.0, _STEPS / 10, _STEPS)

      def schedule(step):
        return rate * shape(step * (_STEPS / num_steps))

      step = step_lib.make_train_step(
        built.model, optimizer(kind, schedule, clipping), schedule, built.config
      )
      return step(state, batch, rng)

    key = kind, built.config.num_classes
    if key not in compiled:
      none = optimizer(kind, lambda _: 0.0, 1.0)
      init = functools.partial(
        step_lib.init_train_state, built.model, none, False
      )
      evaluate = step_lib.make_eval_step(built.model, built.config)
      train_step = jax.jit(train_step, donate_argnums=0)
      compiled[key] = jax.jit(init), train_step, jax.jit(evaluate)
    return compiled[key]

  return programs


def _train(programs, folder: pathlib.Path, steps: int, seed: int, runs):
  """Train on the images of a folder; yield results and parameters of each run.

  Args:
    programs: result of `_make_programs`.
    folder: result of `_write_folders`.
    steps: number of steps of each run.
    seed: seed of the recipe.
    runs: (optimizer, clipping, rate, initial weights or None) of each run.
  """
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
    lr=1.0,  # The programs multiply the schedule by the rate.
  )
  key = jax.random.PRNGKey(seed)
  built = recipe.build(config, key, training_steps=steps)
  with built.train_batches() as batches:
    batches = list(itertools.islice(batches, steps))
  (test,) = built.eval_batches()
  for kind, clipping, rate, weights in runs:
    init, step, evaluate = programs(built, kind)
    state, losses, clipped = init(key, weights), [], []
    for i, batch in enumerate(batches):
      rng = jax.random.fold_in(key, i)
      state, metrics = step(state, batch, rng, rate, clipping, steps)
      losses.append(metrics['train_loss'])
      clipped.append(metrics['fraction_clipped'])
    sums = evaluate(state.params, state.state, test)
    facts = {
      'accuracy': float(sums['top_1_acc'] / sums['num_examples']),
      'train_loss': statistics.mean(map(float, losses[-20:])),
      'fraction_clipped': statistics.mean(map(float, clipped)),
    }
    yield facts, state.params


def _measure(target: str, seed: int) -> tuple[float, list[dict]]:
  """Make all runs with one target and one seed."""
  from nfnets import module_names

  rows, programs = [], _make_programs()
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary)
    _write_folders(folder / 'source', 'source', 1000, 0)
    source = folder / 'source', _SCRATCH_STEPS, 0, [('sgd', 0.16, 0.2, None)]
    ((facts, params),) = _train(programs, *source)
    known = {
      module: leaves
      for module, leaves in params.items()
      if not module_names.is_last_layer(module)
    }
    for shots in _SHOTS:
      _write_folders(folder / str(shots), target, shots, seed)
      for start, steps, weights, methods in (
        ('weights', _STEPS, (known, {}), _METHODS),
        ('scratch', _SCRATCH_STEPS, None, _FROM_SCRATCH),
      ):
        runs = {
          (name, rate): (kind, clipping, rate, weights)
          for name, (kind, clipping, rates) in methods.items()
          for rate in rates
        }
        found = _train(
          programs, folder / str(shots), steps, seed, runs.values()
        )
        for (name, rate), (result, _) in zip(runs, found, strict=True):
          where = {'target': target, 'seed': seed, 'shots': shots}
          row = {'start': start, 'method': name, 'rate': rate}
          rows.append({**where, **row, **result})
  return facts['accuracy'], rows


def _table(rows: list[dict]) -> str:
  """Return a Markdown table of accuracies, averaged over the targets."""
  keys = ('start', 'method', 'rate')
  lines = ['| | rate | ' + ' | '.join(map(str, _SHOTS)) + ' | clipped |']
  lines.append('|---|---|' + '---|' * (len(_SHOTS) + 1))
  for key in dict.fromkeys(tuple(row[k] for k in keys) for row in rows):
    same = [row for row in rows if tuple(row[k] for k in keys) == key]
    name = key[1] + (', from scratch' if key[0] == 'scratch' else '')
    cells = [name, f'{key[2]:g}']
    for shots in _SHOTS:
      by_seed = collections.defaultdict(list)
      for row in same:
        if row['shots'] == shots:
          by_seed[row['seed']].append(100 * row['accuracy'])
      means = [statistics.mean(values) for values in by_seed.values()]
      spread = statistics.stdev(means) if len(means) > 1 else 0
      cells.append(f'{statistics.mean(means):.1f} ± {spread:.1f}')
    cells.append(f'{statistics.mean(r["fraction_clipped"] for r in same):.0%}')
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)


def main() -> None:
  """Run the benchmark."""
  args = timing.arguments(
    __doc__, output=None, seeds=3, processes=os.cpu_count(), targets=_TARGETS
  )
  flags = os.environ.get('XLA_FLAGS', '')
  os.environ['XLA_FLAGS'] = f'--xla_cpu_multi_thread_eigen=false {flags}'
  start, results = time.monotonic(), []
  jobs = list(itertools.product(args.targets.split(','), range(args.seeds)))
  with futures.ProcessPoolExecutor(
    args.processes, multiprocessing.get_context('spawn')
  ) as pool:
    for result in pool.map(_measure, *zip(*jobs, strict=True)):
      results.append(result)
      minutes = (time.monotonic() - start) / 60
      timing.say(f'{jobs[len(results) - 1]} after {minutes:.1f} min')
  rows = [row for _, found in results for row in found]
  print(_table(rows))
  source = statistics.mean(accuracy for accuracy, _ in results)
  summary = {'minutes': minutes, 'source_accuracy': source}
  if args.output:
    text = json.dumps({**summary, 'runs': rows})
    pathlib.Path(args.output).write_text(text)
  timing.emit(**summary, runs=len(rows))


if __name__ == '__main__':
  main()
