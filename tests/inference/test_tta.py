"""Test-time augmentation, beside a plain loop over the views."""

import dataclasses

import numpy as np
import pytest
import quick_lib
import reference_params

from nfnets.inference import classes, networks

quickly_compiled = quick_lib.quickly_compiled
BATCH, SIZE, LARGER = 5, 32, 37  # 37 is 32 * 8 / 7, rounded.
# The first row and column of each crop.
CROPS = [(0, 0), (0, 5), (5, 0), (5, 5), (2, 2)]


def views(image, tta):
  """Yields each view of one image [H, W, 3]."""
  starts = CROPS if tta == 'crops' else [(0, 0)]
  for top, left in starts:
    for columns in (range(SIZE), range(SIZE - 1, -1, -1)):
      yield image[top : top + SIZE][:, [left + x for x in columns]]


def augmented(tta):
  network = networks.of(*quick_lib.digits(), {})
  return dataclasses.replace(network, tta=tta)


@pytest.mark.parametrize(('tta', 'side'), [('flip', SIZE), ('crops', LARGER)])
def test_results_are_means_over_the_views(monkeypatch, tta, side):
  network, shapes = augmented(tta), set()
  run = network.session.run

  def watch(output, images):
    shapes.add(images.shape)
    return run(output, images)

  monkeypatch.setattr(network.session, 'run', watch)
  images = reference_params.reference_images(BATCH, side, side)
  probabilities = classes.softmax(network.logits(images)[-1])
  embedding = network.embed(images)[-1]
  # So that JAX compiles one program, the one that it has without.
  assert shapes == {(BATCH, SIZE, SIZE, 3)}
  model, params = quick_lib.digits()
  found = [*views(images[-1], tta)]
  assert len(found) == {'flip': 2, 'crops': 10}[tta]
  expected = {'p': 0, 'pool': 0}
  for view in found:
    batch = np.repeat(view[None], BATCH, axis=0)
    exp = np.exp(np.float64(model.logits(params, batch)[0]))
    expected['p'] += exp / exp.sum() / len(found)
    pool = np.float64(model.embed(params, batch)[0])
    expected['pool'] += pool / len(found)
  np.testing.assert_allclose(probabilities, expected['p'], rtol=1e-4)
  np.testing.assert_allclose(embedding, expected['pool'], rtol=1e-4, atol=1e-6)


def test_crops_are_of_the_same_preprocessing_of_a_larger_size():
  pixels = np.random.default_rng(0).integers(0, 256, (48, 60, 3), np.uint8)
  prepared = augmented('crops').preprocess(pixels)
  model, _ = quick_lib.digits()
  entry = dataclasses.replace(model.entry, test_size=LARGER)
  larger = dataclasses.replace(model, entry=entry)
  np.testing.assert_array_equal(prepared, larger.preprocess(pixels))
  np.testing.assert_array_equal(
    augmented('flip').preprocess(pixels), model.preprocess(pixels)
  )


def test_large_logits_stay_finite(monkeypatch):
  network = augmented('flip')
  logits = np.float32([[0, 5000, -9000]])
  monkeypatch.setattr(network.session, 'run', lambda *_: logits)
  found = network.logits(np.zeros((1, SIZE, SIZE, 3), np.float32))
  np.testing.assert_array_equal(found, [[-5000, 0, -14000]])
