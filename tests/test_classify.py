"""The command that classifies images."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import golden_lib
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import predict_lib
import pytest
import quick_lib
import tqdm

from nfnets import classify
from nfnets.inference import networks
import nfnets.weights

JPEG = predict_lib.JPEG
photos, weights_file = predict_lib.photos, predict_lib.weights_file
shared_models = predict_lib.shared_models
quickly_compiled = quick_lib.quickly_compiled


@pytest.fixture
def run(capsys, weights_file):
  """Returns a function that runs the command: (*args) -> (status, out, err)."""
  always = '--runtime=jax'
  return predict_lib.runner(classify.main, capsys, weights_file, always)


def expected_probabilities(model, params, image):
  """Returns the softmax of the logits, in float64."""
  images = model.preprocess(image)[None]
  logits = np.float64(model.logits(params, images)[0])
  return np.exp(logits) / np.exp(logits).sum()


def test_json_has_the_most_probable_classes(run, photos):
  status, out, err = run('--json', '--top=3', photos / 'b.png')
  assert status == 0
  assert err.splitlines() == [
    'The 10 classes have no names here; --labels=FILE gives them.'
  ]
  (result,) = map(json.loads, out.splitlines())
  assert result['image'] == str(photos / 'b.png')
  assert result['model'] == 'nfnet_digits'
  model, params = predict_lib.digits()
  pixels = np.asarray(Image.open(photos / 'b.png'))
  probabilities = expected_probabilities(model, params, pixels)
  best = np.argsort(probabilities)[::-1][:3]
  assert [c['label'] for c in result['top']] == list(best)
  assert [c['name'] for c in result['top']] == [f'class {i}' for i in best]
  np.testing.assert_allclose(
    [c['probability'] for c in result['top']], probabilities[best], rtol=1e-4
  )


def test_jpegs_are_what_the_model_makes_of_them(run, photos):
  _, out, _ = run('--json', '--top=10', photos / 'a.jpg')
  model, params = predict_lib.digits()
  probabilities = expected_probabilities(model, params, JPEG)
  for top in json.loads(out)['top']:
    expected = probabilities[top['label']]
    assert top['probability'] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_tables_tell_the_same_as_json(run, photos, tmp_path):
  labels = tmp_path / 'labels.txt'
  labels.write_text('\n'.join(f'digit {i}' for i in range(10)))
  _, out, _ = run('--json', f'--labels={labels}', photos)
  lines = []
  for result in map(json.loads, out.splitlines()):
    lines.append(result['image'])
    assert len(result['top']) == 5
    for top in result['top']:
      percent = f'{100 * top["probability"]:.2f}%'
      lines.append(f'   {percent:>6}  {top["label"]}  {top["name"]}')
      assert top['name'] == f'digit {top["label"]}'
    lines.append('')
  status, out, err = run(f'--labels={labels}', photos)
  assert (status, err) == (0, '')
  assert out.splitlines() == lines


@pytest.mark.slow
def test_results_do_not_depend_on_the_batch(run, photos):
  alone = [
    json.loads(run('--json', path)[1]) for path in sorted(photos.iterdir())
  ]
  for size in (2, 50):
    _, out, _ = run('--json', f'--batch_size={size}', photos)
    together = [json.loads(line) for line in out.splitlines()]
    assert len(together) == len(alone) == 5
    for one, other in zip(alone, together, strict=True):
      assert one['image'] == other['image']
      for a, b in zip(one['top'], other['top'], strict=True):
        assert a['label'] == b['label']
        assert a['probability'] == pytest.approx(b['probability'], rel=1e-4)


def test_one_program_is_compiled_for_all_batches(run, photos, monkeypatch):
  shapes = []

  def watch(self, images):
    shapes.append(images.shape)
    return np.zeros((len(images), 10), np.float32)

  monkeypatch.setattr(networks.Network, 'logits', watch)
  run('--batch_size=2', photos)
  assert shapes == [(2, 32, 32, 3)] * 3
  shapes.clear()
  run(photos / 'a.jpg')
  run('--image_size=40', photos / 'a.jpg')
  assert shapes == [(1, 32, 32, 3), (1, 40, 40, 3)]


def test_broken_images_are_reported_and_the_rest_goes_on(run, photos):
  (photos / 'aa.jpg').write_bytes(JPEG[:3000])
  none, alone = photos / 'none.jpg', photos / 'c.png'
  status, out, err = run('--json', '--batch_size=2', photos, none, alone)
  assert status == 1
  results = [json.loads(line) for line in out.splitlines()]
  names = ['a.jpg', 'aa.jpg', 'b.png', 'c.png', 'd.png', 'e.png']
  paths = [str(photos / name) for name in [*names, 'none.jpg', 'c.png']]
  assert [result['image'] for result in results] == paths
  errors = [result.get('error') for result in results]
  assert errors[6] == 'No such file or directory'
  assert errors[1].startswith('cannot be decoded') and 'truncated' in errors[1]
  assert results[3]['top'] == results[7]['top']
  lines = [f'{paths[i]}: {errors[i]}' for i in (1, 6)]
  lines.append(f'2 of 8 images failed: {paths[1]}, {paths[6]}')
  assert err.splitlines()[1:] == lines
  status, out, err = run('--top=1', '--batch_size=2', photos, none)
  assert status == 1
  assert out.count('%') == 5 and 'none' not in out
  assert err.splitlines()[1:3] == lines[:2]
  status, out, err = run(none)
  assert (status, out) == (1, '')


def test_jpegs_that_only_tensorflow_refuses_are_reported(
  run, photos, monkeypatch
):
  def refuse(self, image):
    raise RuntimeError('Uncompress failed')

  monkeypatch.setattr(networks.Network, 'preprocess', refuse)
  status, _, err = run(photos / 'a.jpg')
  assert status == 1
  assert err.splitlines()[-1] == (
    f'{photos / "a.jpg"}: cannot be decoded: damaged JPEG data'
  )
  with pytest.raises(RuntimeError):  # This is a mistake of ours.
    run(photos / 'b.png')


def test_thousand_classes_have_imagenets_names(
  run, photos, tmp_path, monkeypatch
):
  path = tmp_path / 'w.npz'
  _, params = predict_lib.digits()
  last = {'w': np.zeros((256, 1000)), 'b': np.zeros(1000)}
  nfnets.weights.save_weights(path, {**params, 'NFNet/~/linear': last})
  monkeypatch.setattr(
    networks.Network,
    'logits',
    lambda self, images: -jnp.abs(jnp.arange(1000.0) - 1)[None],
  )
  status, out, err = run('--top=3', photos / 'b.png', weights=path)
  assert (status, err) == (0, '')
  assert out.splitlines() == [
    str(photos / 'b.png'),
    '   51.29%    1  goldfish',
    '   18.87%    0  tench',
    '   18.87%    2  great white shark',
    '',
  ]


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('a.txt', b'one\ntwo\n', 'has 2 names, and the network has 10 classes'),
    ('a.txt', None, 'No such file'),
    ('a.txt', b'\xff\xfe\0', 'no text in UTF-8'),
    ('a.json', b'["a",', 'no JSON'),
    ('a.json', b'{"0": "a"}', r'no list of names or of \[id, name\]'),
    ('a.json', b'[1, 2]', r'no list of names or of \[id, name\]'),
  ],
)
def test_wrong_labels_are_a_wrong_command(
  run, photos, tmp_path, name, content, message
):
  path = tmp_path / name
  if content is not None:
    path.write_bytes(content)
  status, out, err = run(f'--labels={path}', photos)
  assert (status, out) == (2, '')
  assert len(err.splitlines()) == 1 and str(path) in err
  assert re.search(message, err)


def test_weights_of_lower_precision_run_in_float32(run, photos, tmp_path):
  path = tmp_path / 'half.npz'
  _, params = predict_lib.digits()
  half = jax.tree.map(lambda x: np.asarray(x, np.float16), params)
  nfnets.weights.save_weights(path, half)
  status, out, _ = run('--json', photos / 'b.png', weights=path)
  assert status == 0
  whole = jax.tree.map(np.float32, half)
  pixels = np.asarray(Image.open(photos / 'b.png'))
  model, _ = predict_lib.digits()
  probabilities = expected_probabilities(model, whole, pixels)
  for top in json.loads(out)['top']:
    expected = probabilities[top['label']]
    assert top['probability'] == pytest.approx(expected, rel=1e-5)


def test_networks_without_classes_are_refused(run, photos, tmp_path):
  path = tmp_path / 'headless.npz'
  _, params = predict_lib.digits()
  params = {k: v for k, v in params.items() if k != 'NFNet/~/linear'}
  nfnets.weights.save_weights(path, params)
  status, out, err = run(photos, weights=path)
  assert (status, out) == (1, '')
  assert 'headless.npz has no last layer' in err and 'nfnets.embed' in err


def test_output_that_is_not_finite_is_an_error(run, photos, tmp_path):
  path = tmp_path / 'nan.npz'
  _, params = predict_lib.digits()
  params = {**params, 'NFNet/~/linear': dict(params['NFNet/~/linear'])}
  params['NFNet/~/linear']['b'] = np.full(10, np.nan, np.float32)
  nfnets.weights.save_weights(path, params)
  status, out, err = run('--json', photos / 'b.png', weights=path)
  assert status == 1 and 'not finite' in json.loads(out)['error']
  assert err.splitlines()[-1].endswith("the network's output is not finite")


@pytest.mark.parametrize(
  ('content', 'message'),
  [(None, 'no such file'), (b'', ''), (b'no weights', ''), (JPEG, '')],
)
def test_unreadable_weights_fail(run, photos, tmp_path, content, message):
  path = tmp_path / 'w.npz'
  if content is not None:
    path.write_bytes(content)
  status, out, err = run(photos, weights=path)
  assert (status, out) == (1, '')
  assert len(err.splitlines()) == 1
  assert err.startswith('error: ') and 'w.npz' in err and message in err.lower()


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    ((), 'required: IMAGE'),
    (('--top=0', 'a.jpg'), '0 is no whole number above 0'),
    (('--batch_size=-1', 'a.jpg'), '-1 is no whole number above 0'),
    (('--image_size=big', 'a.jpg'), 'big is no whole number above 0'),
    (('--model=nfnet_f9', 'a.jpg'), 'Did you mean nfnet_f'),
    (('--jsn', 'a.jpg'), 'unrecognized arguments: --jsn'),
  ],
)
def test_wrong_commands_are_answered(run, args, message):
  status, out, err = run(*args)
  assert (status, out) == (2, '')
  assert message in err and 'Traceback' not in err


def test_model_is_taken_at_its_word(run, photos):
  status, _, err = run('--model=timm/test_nfnet', photos)
  assert status == 1
  assert 'timm/test_nfnet' in err and 'nfnet_digits' in err
  status, out, _ = run('--model=nfnet_digits', photos)
  assert status == 0 and out.count('%') == 25


def test_what_is_not_installed_is_named(run, photos, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tqdm', None)
  status, out, err = run(photos)
  assert (status, out) == (1, '')
  assert err == (
    'error: Reading images needs packages that are not installed: tqdm; pip '
    'install ".[train]" in the folder of this project.\n'
  )


class Terminal(io.StringIO):
  """A terminal."""

  def isatty(self):
    return True


@pytest.mark.parametrize(('size', 'has_bar'), [(2, True), (5, False)])
def test_many_images_have_a_bar(run, photos, monkeypatch, size, has_bar):
  # However small the terminal is that the tests run in.
  monkeypatch.setattr('tqdm.std._screen_shape_wrapper', lambda: None)
  monkeypatch.setattr(sys, 'stderr', Terminal())
  status, out, _ = run(f'--batch_size={size}', photos)
  assert status == 0 and out.count('%') == 25
  assert ('5/5' in sys.stderr.getvalue()) is has_bar
  assert not tqdm.tqdm._instances


def test_an_interrupt_ends_the_command(run, photos, monkeypatch):
  class Ended(BaseException):
    """Stands for the end of the process."""

  def end(status):
    raise Ended(status)

  def interrupt(self, images):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)  # This thread is not the one that gets it.
    raise AssertionError('not reached')

  monkeypatch.setattr(os, '_exit', end)
  monkeypatch.setattr(networks.Network, 'logits', interrupt)
  with pytest.raises(Ended, match='130'):
    run(photos)
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_nothing_but_errors_is_told(weights_file, photos, tmp_path):
  labels = tmp_path / 'labels.txt'
  labels.write_text('\n'.join('0123456789'))
  none = tmp_path / 'none.jpg'
  # TensorFlow and XLA write to the process's own standard error.
  process = subprocess.run(
    [
      *(sys.executable, '-m', 'nfnets.classify', f'--weights={weights_file}'),
      '--runtime=jax',
      *('--top=1', f'--labels={labels}', photos / 'b.png', none),
    ],
    cwd=golden_lib.GOLDEN.parents[1],
    env={**os.environ, 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert process.returncode == 1
  assert process.stderr == f'{none}: No such file or directory\n'
  assert len(process.stdout.splitlines()) == 3
