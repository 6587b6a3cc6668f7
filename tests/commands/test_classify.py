"""The command that classifies images."""

import io
import json
import os
import re
import subprocess
import sys

import golden_lib
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
import quick_lib
import tqdm

from nfnets.inference import networks
import nfnets.weights

JPEG = (golden_lib.GOLDEN / 'image_210x150.jpg').read_bytes()


def expected_probabilities(model, params, image):
  """Returns the softmax of the logits, in float64."""
  images = model.preprocess(image)[None]
  logits = np.float64(model.logits(params, images)[0])
  return np.exp(logits) / np.exp(logits).sum()


def test_the_users_folder_is_expanded(run, photos, monkeypatch):
  monkeypatch.setenv('HOME', str(photos))
  (photos / 'list').write_text('~/b.png\n')
  (photos / 'names').write_text('\n'.join('abcdefghij'))
  status, out, _ = run(
    *('--json', '~/b.png', '--list=~/list', '--labels=~/names')
  )
  rows = [json.loads(line) for line in out.splitlines()]
  assert status == 0 and [x['image'] for x in rows] == 2 * [
    str(photos / 'b.png')
  ]
  assert rows[0]['top'][0]['name'] in 'abcdefghij'


def test_json_has_the_most_probable_classes(run, photos):
  status, out, err = run('--json', '--top=3', photos / 'b.png')
  assert status == 0
  assert err.splitlines() == [
    'The 10 classes have no names here; --labels=FILE gives them.'
  ]
  (result,) = map(json.loads, out.splitlines())
  assert result['image'] == str(photos / 'b.png')
  assert result['model'] == 'nfnet_digits'
  model, params = quick_lib.digits()
  pixels = np.asarray(Image.open(photos / 'b.png'))
  probabilities = expected_probabilities(model, params, pixels)
  best = np.argsort(probabilities)[::-1][:3]
  assert [c['label'] for c in result['top']] == list(best)
  assert [c['name'] for c in result['top']] == [f'class {i}' for i in best]
  np.testing.assert_allclose(
    [c['probability'] for c in result['top']], probabilities[best], rtol=1e-4
  )


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
  for one, other in zip(results[3]['top'], results[7]['top'], strict=True):
    assert one['label'] == other['label']
    # Their batches are of other sizes.
    assert one['probability'] == pytest.approx(other['probability'], rel=1e-4)
  lines = [f'{paths[i]}: {errors[i]}' for i in (1, 6)]
  lines.append(f'2 of 8 images failed: {paths[1]}, {paths[6]}')
  assert err.splitlines()[1:] == lines
  status, out, err = run('--top=1', '--batch_size=2', photos, none)
  assert status == 1
  assert out.count('%') == 5 and 'none' not in out
  assert err.splitlines()[1:3] == lines[:2]
  status, out, err = run(none)
  assert (status, out) == (1, '')


def test_thousand_classes_have_imagenets_names(
  run, photos, tmp_path, monkeypatch
):
  path = tmp_path / 'w.npz'
  _, params = quick_lib.digits()
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


def test_networks_without_classes_are_refused(run, photos, tmp_path):
  path = tmp_path / 'headless.npz'
  _, params = quick_lib.digits()
  params = {k: v for k, v in params.items() if k != 'NFNet/~/linear'}
  nfnets.weights.save_weights(path, params)
  status, out, err = run(photos, weights=path)
  assert (status, out) == (1, '')
  assert 'headless.npz has no last layer' in err and 'nfnets.embed' in err


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
    (('--top=0', 'a.jpg'), '0 is no whole number of at least 1'),
    (('--batch_size=-1', 'a.jpg'), '-1 is no whole number of at least 1'),
    (('--image_size=big', 'a.jpg'), 'big is no whole number of at least 1'),
    (('--threshold=1.5', 'a.jpg'), '--threshold=1.5 is no number from 0 to 1'),
    (('--threshold=nan', 'a.jpg'), 'is no number from 0 to 1'),
    (('--threshold=-0.1', 'a.jpg'), 'is no number from 0 to 1'),
    (('--tta=mirror', 'a.jpg'), "choose from 'flip', 'crops'"),
    (('--model=nfnet_f9', 'a.jpg'), 'Did you mean nfnet_f'),
    (('--jsn', 'a.jpg'), 'There is no option --jsn. Did you mean --json?'),
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
    'install ".[images]" in the folder of this project.\n'
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
