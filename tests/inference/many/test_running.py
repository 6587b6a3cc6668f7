"""Images through a network: in order, beside each other, and never too many."""

import random
import threading
import time

import numpy as np
import pytest

from nfnets.errors import ImageError
from nfnets.inference.many import running, sources

WAIT = 20  # Seconds, for what should happen at once.


def preprocess(image):
  """Returns [1, 1, 1]."""
  if image == b'damaged':
    raise ImageError('cannot be decoded')
  return np.float32(image).reshape(1, 1, 1)


def double(batch):
  return 2 * batch[:, 0, 0]


def item(value, read=None):
  image = np.array(value)
  return sources.Item(str(value), read or (lambda _: (image, value % 3)))


def make_row(output, label):
  return {'output': float(output[0]), 'label': label}


def start(items, batch_size=4, function=double, prepare=preprocess, calls=1):
  return running.run_batches(
    *(function, prepare, make_row, iter(items), batch_size, calls)
  )


def run(*args, **kwargs):
  """Returns the rows of all images."""
  return [row for batch in start(*args, **kwargs) for row in batch]


def expected(count):
  return [
    {'image': str(i), 'output': 2.0 * i, 'label': i % 3} for i in range(count)
  ]


def test_rows_are_in_order_however_long_reading_takes():
  random.seed(0)

  def read_slowly(value):
    time.sleep(random.random() / 100)
    return np.array(value), value % 3

  items = [item(i, lambda _, i=i: read_slowly(i)) for i in range(50)]
  assert run(items, calls=3) == expected(50)


def test_errors_are_passed_on():
  def fail(check):
    raise ImageError('not an image')

  def infinite_at_0(batch):
    return np.where(batch[:, 0, 0] == 0, np.inf, double(batch))

  items = [item(1), item(2, fail), item(3, lambda _: (b'damaged', 7)), item(0)]
  found = run([*items, item(4)], 5, infinite_at_0)
  whole = expected(5)
  assert found == [
    whole[1],
    {'image': '2', 'error': 'not an image'},
    {'image': '3', 'error': 'cannot be decoded'},
    {'image': '0', 'error': "the network's output is not finite"},
    whole[4],
  ]


@pytest.mark.parametrize(('count', 'sizes'), [(3, [3]), (4, [4]), (9, [4] * 3)])
def test_all_batches_are_of_one_size(count, sizes):
  seen = []

  def watch(batch):
    seen.append(len(batch))
    return double(batch)

  assert run(map(item, range(count)), function=watch) == expected(count)
  assert seen == sizes


def test_next_images_are_read_while_the_network_runs():
  read = threading.Event()

  def signal(check):
    read.set()
    return np.array(1), None

  def wait(batch):
    assert read.wait(WAIT)
    return double(batch)

  assert len(run([item(0), item(1, signal)], 1, wait)) == 2


def test_the_network_is_called_several_times_at_once():
  together = threading.Barrier(2)

  def meet(batch):
    together.wait(WAIT)
    return double(batch)

  assert len(run(map(item, range(4)), 1, meet, calls=2)) == 4


def test_memory_does_not_grow_with_the_number_of_images():
  ahead, enumerated = [], 0

  def items():
    nonlocal enumerated
    for i in range(400):
      enumerated += 1
      yield item(i)

  batches = start(items(), 8, calls=2)
  for taken, batch in enumerate(batches):
    ahead.append(enumerated - 8 * taken)
    assert len(batch) == 8
  assert enumerated == 400 and max(ahead) <= 8 * 5


@pytest.mark.parametrize('where', ['items', 'preprocess', 'function'])
def test_mistakes_are_raised(where):
  def fail(*_):
    raise ZeroDivisionError(where)

  def items():
    yield from map(item, range(20))
    if where == 'items':
      fail()

  batches = start(
    items(),
    function=fail if where == 'function' else double,
    prepare=fail if where == 'preprocess' else preprocess,
  )
  with pytest.raises(ZeroDivisionError, match=where):
    list(batches)
