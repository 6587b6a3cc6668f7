"""Tests of the command that draws a training batch."""

import functools
import io

import matplotlib.image
import numpy as np
import pytest

from experiments import configs, jaxline_compat, recipe
from experiments.tools import show_batch
from nfnets.data import dataset


@pytest.fixture
def run(run_command):
  """Returns a function that runs the command: (*args) -> Result."""
  return functools.partial(run_command, main=show_batch.main)


def load_digits(data_dir, **changes):
  config = configs.load('digits')
  config.experiment_kwargs.config.update({'data_dir': data_dir, **changes})
  return config


def test_the_command_draws_a_png_and_ends_with_json(run, tmp_path):
  output = tmp_path / 'batch.png'
  result = run(
    '--config=digits',
    '--augment_name=cutmix_mixup',
    f'--output={output}',
    '--images=5',
    '--step=2',
  )
  assert result.status == 0, result.log
  assert len(result.output.splitlines()) == 1
  assert result.json == {
    'config': 'digits',
    'output': str(output),
    'step': 2,
    'images': 5,
    'image_size': 32,
  }
  png = matplotlib.image.imread(output)
  assert png.shape[0] > 2 * 160 and png.shape[1] > 3 * 160
  assert png[..., :3].min() < 0.1 and png[..., :3].max() == 1


@pytest.mark.parametrize(
  ('augment_name', 'dtype', 'num_images', 'share'),
  [
    ('', np.float32, 16, 16),
    ('cutmix_mixup_0.4', np.float32, 5, 8),
    ('mixup_randaugment_205', np.uint8, 33, 64),
  ],
)
@pytest.mark.slow
def test_images_are_those_that_training_takes(
  data_dir, monkeypatch, augment_name, dtype, num_images, share
):
  config = load_digits(data_dir, augment_name=augment_name)
  # What the experiment feeds to the devices in its third step.
  ours = config.experiment_kwargs.config
  built = recipe.build(ours, jaxline_compat.init_rng(config))
  with built.train_batches(2) as batches:
    expected = next(batches)
  assert expected['images'].dtype == dtype

  kept = []
  train_batches = dataset.train_batches

  def watch(builder, split, options, first_step):
    kept.append(options.local_batch_size)
    return train_batches(builder, split, options, first_step)

  monkeypatch.setattr(dataset, 'train_batches', watch)
  images, labels = show_batch.read(config, 2, num_images)
  assert kept == [share]  # Of 64: no more are decoded.
  assert images.shape == (num_images, 32, 32, 3) and images.dtype == np.uint8
  want = expected['images'][:num_images].clip(0, 255)
  np.testing.assert_allclose(images, want, atol=0.51)
  for i, text in enumerate(labels):
    shares = {str(expected['labels'][i]): 1.0}
    if augment_name:
      shares = {str(expected['mix_labels'][i]): 1 - expected['ratio'][i]}
      label = str(expected['labels'][i])
      shares[label] = shares.get(label, 0) + expected['ratio'][i]
      lines = [line.split(' % ') for line in text.split('\n')]
      assert {k: int(v) for v, k in lines} == {
        k: pytest.approx(100 * v, abs=0.51) for k, v in shares.items()
      }
    else:
      assert text == str(expected['labels'][i])


def test_the_drawing_has_every_image_in_its_place():
  colours = np.array(
    [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255]],
    np.uint8,
  )
  images = np.broadcast_to(colours[:, None, None], (5, 200, 200, 3))
  png = show_batch.draw(images, list('abcde'), 'title')
  drawn = matplotlib.image.imread(io.BytesIO(png))[..., :3]
  centres = []
  for colour in colours / 255:
    y, x = np.nonzero(np.abs(drawn - colour).max(-1) < 0.02)
    assert len(y) > 0.9 * 200 * 200
    centres.append((y.mean(), x.mean()))
  centres = np.array(centres)
  # Two rows, of three and two.
  np.testing.assert_allclose(centres[:3, 0], centres[0, 0], atol=2)
  np.testing.assert_allclose(centres[3:, 0], centres[3, 0], atol=2)
  assert centres[3, 0] - centres[0, 0] > 200
  np.testing.assert_allclose(centres[:2, 1], centres[3:, 1], atol=2)
  assert (np.diff(centres[:3, 1]) > 200).all()


@pytest.mark.parametrize(
  ('args', 'status', 'message'),
  [
    ((), 2, '--config=NAME is missing'),
    (('--config=digits',), 2, '--output is missing'),
    (('--config=f9', '--output=x.png'), 2, "There is no config 'f9'"),
    (('--config=digits', '--output=x.png', '--images=0'), 2, 'images'),
    (('--config=digits', '--output=x.png', '--step=-1'), 2, 'step'),
    (('--config=digits', '--output=x.png', '--images=65'), 2, '64'),
    (
      ('--config=digits', '--output=x/y.png'),
      1,
      'x/y.png: No such file or directory',
    ),
    (
      ('--config=digits', '--output=x.png', '--augment_name=mixpu'),
      2,
      "did you mean 'mixup'",
    ),
    (
      ('--config=digits', '--output=x.png', '--fake_data=True'),
      2,
      'fake_data is set',
    ),
    (
      ('--config=f0', '--output=x.png'),
      1,
      'imagenet2012 is not prepared',
    ),
  ],
)
def test_bad_input_is_answered(run, args, status, message, tmp_path):
  result = run(*args, cwd=tmp_path)
  assert (result.status, result.output) == (status, '')
  assert message in result.log
  assert 'Traceback' not in result.log
  assert not (tmp_path / 'x.png').exists()
