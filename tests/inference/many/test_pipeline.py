"""Images through a network: in order, beside each other, and never too many."""

import random
import threading
import time

import numpy as np
import pytest

from nfnets.inference import images
from nfnets.inference.many import pipeline, sources

WAIT = 20  # Seconds, for what should happen at once.


def preprocess(image):
  """Returns [1, 1, 1]."""
  return np.float32(image).reshape(1, 1, 1)


def double(batch):
  return 2 * batch[:, 0, 0]


def item(value, read=None):
  image = np.array(value)
  return sources.Item(str(value), read or (lambda _: (image, value % 3)))


def run(items, batch_size=4, function=double, **kwargs):
  """Returns the answers to all images."""
  batches = pipeline.answers(
    function, preprocess, iter(items), batch_size, **kwargs
  )
  return [answer for batch in batches for answer in batch]


def test_answers_are_in_order_however_long_reading_takes():
  random.seed(0)

  def read_slowly(value):
    time.sleep(random.random() / 100)
    return np.array(value), None

  found = run(
    [item(i, lambda _, i=i: read_slowly(i)) for i in range(50)], calls=3
  )
  assert [answer.name for answer in found] == [str(i) for i in range(50)]
  np.testing.assert_array_equal(
    [answer.output for answer in found], 2.0 * np.arange(50)[:, None]
  )


def test_labels_and_errors_are_passed_on():
  def fail(check):
    raise images.ImageError('not an image')

  def read_damaged(check):
    return b'damaged', 7

  found = run([item(1), item(2, fail), item(3, read_damaged), item(4)])
  assert [answer.label for answer in found] == [1, None, 7, 1]
  assert [answer.error for answer in found] == [
    *(None, 'not an image', 'not an image that Pillow reads', None)
  ]
  assert [answer.output is None for answer in found] == [
    *(False, True, True, False)
  ]
  assert found[3].output == 8


@pytest.mark.parametrize(
  ('count', 'all_whole', 'sizes'),
  [(3, False, [3]), (4, False, [4]), (9, False, [4] * 3), (3, True, [4])],
)
def test_all_batches_are_of_one_size(count, all_whole, sizes):
  seen = []

  def watch(batch):
    seen.append(len(batch))
    return double(batch)

  found = run(map(item, range(count)), function=watch, all_whole=all_whole)
  assert seen == sizes
  assert [float(x.output[0]) for x in found] == [2.0 * i for i in range(count)]


def test_next_images_are_read_while_the_network_runs():
  read = threading.Event()

  def tell(check):
    read.set()
    return np.array(1), None

  def wait(batch):
    assert read.wait(WAIT)
    return double(batch)

  assert len(run([item(0), item(1, tell)], 1, wait)) == 2


def test_the_network_is_called_several_times_at_once():
  together = threading.Barrier(2)

  def meet(batch):
    together.wait(WAIT)
    return double(batch)

  assert len(run(map(item, range(4)), 1, meet, calls=2)) == 4


def test_what_is_held_does_not_grow_with_the_number_of_images():
  ahead, enumerated = [], 0

  def items():
    nonlocal enumerated
    for i in range(4000):
      enumerated += 1
      yield item(i)

  batches = pipeline.answers(double, preprocess, items(), 8, calls=2)
  for taken, batch in enumerate(batches):
    ahead.append(enumerated - 8 * taken)
    assert len(batch) == 8
  # Taken, being put in the queue, in it, and being enumerated.
  assert enumerated == 4000 and max(ahead) <= 8 * (1 + 1 + 3 + 1)


@pytest.mark.parametrize('where', ['items', 'preprocess', 'function'])
def test_mistakes_are_raised(where):
  def fail(*_):
    raise ZeroDivisionError(where)

  def items():
    yield from map(item, range(20))
    if where == 'items':
      fail()

  batches = pipeline.answers(
    fail if where == 'function' else double,
    fail if where == 'preprocess' else preprocess,
    items(),
    2,
  )
  with pytest.raises(ZeroDivisionError, match=where):
    list(batches)


def test_it_can_be_left_while_names_are_waited_for():
  never = threading.Event()

  def items():
    yield item(0)
    never.wait()

  batches = pipeline.answers(double, preprocess, items(), 1)
  next(batches)
  start = time.monotonic()
  batches.close()
  assert time.monotonic() - start < WAIT
  never.set()


@pytest.mark.parametrize(('count', 'many'), [(4, False), (5, True)])
def test_a_second_batch_is_told(count, many):
  told = []
  run(map(item, range(count)), when_many=lambda: told.append(True))
  assert bool(told) is many


def test_output_that_is_not_finite_is_an_error():
  def infinite_at_0(batch):
    return np.where(batch[:, 0, 0] == 0, np.inf, double(batch))

  found = run([item(0), item(1)], function=infinite_at_0)
  assert found[0].error == "the network's output is not finite"
  assert found[1].output == 2
