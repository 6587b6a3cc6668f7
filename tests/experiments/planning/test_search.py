"""Tests of the search for what fits, with a made-up compiler."""

import pytest

from experiments.planning import search


class Compiler:
  """Plans whose memory follows from the settings; keeps what was tried.

  32 images need `need` GiB, of which 2 are not for images, and less where
  blocks are computed again or the batch is computed in parts.
  """

  def __init__(self, need, capacity=16, blocks=12, saved=1.0, batch=32):
    self._need, self._capacity = need, capacity
    self._blocks, self._saved, self._batch = blocks, saved, batch
    self.tried = []

  def __call__(self, **settings):
    plan = {'batch': self._batch, 'accumulate_steps': 1, 'remat': 0} | settings
    images = plan['batch'] / plan['accumulate_steps']
    per_image = (self._need - 2 - self._saved * plan['remat']) / 32
    seconds = plan['batch'] * (1 + 0.1 * plan['remat'])
    seconds *= 1 + 0.2 * (plan['accumulate_steps'] - 1)
    self.tried.append(settings)
    return plan | {
      'blocks': self._blocks,
      'devices': 4,
      'fits': 2 + images * per_image <= self._capacity,
      'images_per_second': 4 * plan['batch'] / seconds,
    }


@pytest.mark.parametrize(
  'need, blocks, saved, expected, most',
  [
    (16.5, 12, 1.0, {'batch': 16, 'accumulate_steps': 2, 'remat': 1}, 3),
    # 13 blocks of 72 are enough; every third is tried.
    (29, 72, 1.0, {'batch': 16, 'accumulate_steps': 2, 'remat': 15}, 8),
    (120, 12, 0.1, {'batch': 2, 'accumulate_steps': 16}, 12),
    (600, 12, 0.1, {}, 12),
  ],
)
def test_the_least_changes_are_found_in_few_attempts(
  need, blocks, saved, expected, most
):
  compiler = Compiler(need, blocks=blocks, saved=saved)
  found = search.changes(compiler(), compiler)
  assert {name: plan[name] for name, plan in found} == expected
  assert all(plan['fits'] for _, plan in found)
  assert len(compiler.tried) - 1 <= most
  # The fastest first, for each image.
  names = [name for name, _ in found]
  speeds = [plan['images_per_second'] for _, plan in found]
  assert names[:1] == ['batch'][: len(names)]
  assert speeds == sorted(speeds, reverse=True)


def test_all_blocks_may_be_recomputed_already():
  compiler = Compiler(40, saved=1.0)
  found = search.changes(compiler() | {'remat': True}, compiler)
  assert not any('remat' in settings for settings in compiler.tried)
  assert [name for name, _ in found] == ['batch', 'accumulate_steps']


@pytest.mark.parametrize(
  'batch, need, expected, most',
  [
    (32, 2.4, 1024, 6),  # 1,120 would fit.
    (32, 2.2, 2048, 3),
    (32, 2.6, 640, 6),
    (1000, 2.6, 640, 6),
    (32, 10, 32, 6),
    (24, 15, 32, 7),
    (512, 15, 32, 7),
    (32, 600, None, 6),
  ],
)
def test_the_largest_batch_is_one_of_those_tried(batch, need, expected, most):
  compiler = Compiler(need, batch=batch)
  plan = search.largest_batch(compiler(), compiler)
  assert (plan and plan['batch']) == expected
  tried = [settings['batch'] for settings in compiler.tried[1:]]
  assert len(tried) == len(set(tried)) <= most
  assert all(b % 128 == 0 or b.bit_count() == 1 for b in tried)


def test_memory_need_not_grow_with_the_batch():
  """The compiler recomputes by itself: 896 images may not fit, and 1024 do."""

  def attempt(batch):
    fits = batch <= 640 or batch == 1024
    return {'batch': batch, 'accumulate_steps': 1, 'fits': fits}

  assert search.largest_batch(attempt(batch=32), attempt)['batch'] == 1024


def test_batches_have_equal_parts():
  compiler = Compiler(2.4)
  first = compiler() | {'accumulate_steps': 3}
  assert search.largest_batch(first, compiler)['batch'] == 768
