"""What a file of weights says about its network."""

import json

import golden_lib
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import quick_lib
import safetensors.numpy
import weights_lib

import nfnets
from nfnets import classify, conv, weights
from nfnets.data import preprocess
from nfnets.weights import matching

SUFFIXES = ('npz', 'safetensors')
NAMES = ['"a"', '<b>', 'été', '\u05d0\u05d1', '\U0001f431', *'56789']
quickly_compiled = quick_lib.quickly_compiled


def save_raw(path, params, text: bytes):
  """Writes weights with these bytes for metadata, unseen."""
  flat = {
    f'{m}/{n}': x for m, leaves in params.items() for n, x in leaves.items()
  }
  if path.suffix == '.npz':
    np.savez(path, **flat, __metadata__=np.frombuffer(text, np.uint8))
  else:
    metadata = {'nfnets': text.decode()}
    safetensors.numpy.save_file(flat, path, metadata)


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_what_a_file_says_makes_the_model(tmp_path, suffix):
  path = tmp_path / f'x.{suffix}'
  model, params = quick_lib.digits()
  metadata = weights.describe(
    model,
    class_names=NAMES,
    image_size=48,
    train_size=40,
    preprocessing='center_crop_0.9',
    train_preprocessing='shift_2',
    mean=[1, 2.5, 3],
    std=[4, 5, 6],
    step=7,
    trained_on=None,
  )
  weights.save_weights(path, params, {}, metadata)
  read = weights.read_metadata(path)
  assert read == metadata and read['step'] == 7 and 'trained_on' not in read
  opened, same, state = weights.open_model(path)
  weights_lib.assert_same(same, params)
  assert (opened.name, opened.num_classes, state) == (model.name, 10, {})
  assert opened.class_names == tuple(NAMES)
  assert (opened.train_size, opened.test_size) == (40, 48)
  assert opened.entry.eval_preproc == 'center_crop_0.9'
  np.testing.assert_array_equal(opened.entry.mean, np.float32([1, 2.5, 3]))
  np.testing.assert_array_equal(opened.entry.std, np.float32([4, 5, 6]))
  again = weights.describe(opened, train_preprocessing='shift_2', step=7)
  assert again == metadata


@pytest.mark.parametrize('suffix', SUFFIXES)
def test_files_without_metadata_are_as_they_were(tmp_path, suffix):
  path = tmp_path / f'x.{suffix}'
  model, params = quick_lib.digits()
  weights.save_weights(path, params)
  assert weights.read_metadata(path) == {}
  opened, _, _ = weights.open_model(path)
  assert opened.class_names is None and opened.entry is model.entry
  path = tmp_path / 'timm.safetensors'  # Which has metadata of its own.
  safetensors.numpy.save_file({'a': np.ones(3)}, path, {'format': 'pt'})
  assert weights.read_metadata(path) == {}


def test_network_with_other_arguments_opens_again(tmp_path):
  model = nfnets.create_model(
    'nfnet_digits',
    3,
    activation='relu',
    se_ratio=0.25,
    remat=True,
    fc_init=jnp.zeros,
  )
  shapes, _ = jax.eval_shape(lambda rng: model.init(rng, 32), jax.random.key(0))
  params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)
  metadata = weights.describe(model)
  assert metadata['model_kwargs'] == {'activation': 'relu', 'se_ratio': 0.25}
  weights.save_weights(tmp_path / 'x.npz', params, metadata=metadata)
  opened, _, _ = weights.open_model(tmp_path / 'x.npz')
  assert (opened.name, opened.num_classes) == ('nfnet_digits', 3)
  assert opened.overrides == {'activation': 'relu', 'se_ratio': 0.25}


def test_arguments_may_come_from_a_config():
  config = ml_collections.ConfigDict({'norm_kwargs': {'decay_rate': 0.5}})
  model = nfnets.create_model('resnet50', 3, **config)
  metadata = weights.describe(model)
  assert json.loads(json.dumps(metadata))['model_kwargs'] == config.to_dict()


@pytest.mark.parametrize('suffix', SUFFIXES)
@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (b'', 'damaged'),
    (b'{"model": "nfnet_f0"', 'damaged'),
    (b'\0\0', 'damaged'),
    (b'[' * 100_000, 'damaged'),
    (b'{"a": NaN}', 'damaged: NaN is no number'),
    (b'["nfnet_f0"]', 'no dictionary'),
    (b'{"model": 3}', 'model is not a name: 3'),
    (b'{"model_kwargs": "x"}', 'model_kwargs is not a dictionary'),
    (b'{"num_classes": true}', 'num_classes is not a number of classes: True'),
    (b'{"class_names": {"0": "a"}}', 'class_names is not a list of names'),
    (b'{"class_names": ["a", 1]}', 'class_names is not a list of names'),
    (b'{"image_size": 100000}', 'image_size is not a side in pixels'),
    (b'{"train_size": 0}', 'train_size is not a side in pixels'),
    (b'{"preprocessing": "resize"}', 'preprocessing is not one of'),
    (b'{"preprocessing": ["crop_resize"]}', 'preprocessing is not one of'),
    (b'{"mean": [1, 2]}', 'mean is not three numbers'),
    (b'{"mean": [1, 2, 1e999]}', 'mean is not three numbers'),
    (b'{"std": [1, 2, 0]}', 'std is not three numbers above 0'),
    (b'{"a": "' + b'b' * 2**22 + b'"}', 'of more than 4194304 bytes'),
  ],
)
def test_damaged_metadata_are_refused(tmp_path, suffix, text, message):
  path = tmp_path / f'x.{suffix}'
  save_raw(path, {'net': {'w': np.ones(3, np.float32)}}, text)
  assert message in weights_lib.refusal(path, weights.read_metadata)
  # The numbers are not to blame.
  assert list(weights.load_weights(path).params) == ['net']


def test_arguments_are_not_blamed_for_what_fails_without_them(
  tmp_path, monkeypatch
):
  _, params = quick_lib.digits()
  metadata = {'model': 'nfnet_digits', 'model_kwargs': {'width': 1.0}}
  weights.save_weights(tmp_path / 'x.npz', params, metadata=metadata)

  def fail(*args, **kwargs):
    raise RuntimeError('no memory is left')

  monkeypatch.setattr(conv, 'conv2d', fail)
  matching.named_shapes.cache_clear()
  with pytest.raises(RuntimeError, match='^no memory is left'):
    weights.open_model(tmp_path / 'x.npz')


@pytest.mark.parametrize(
  ('metadata', 'message'),
  [
    ({'class_names': ['a', 'b']}, '2 class_names, and the weights are for 10'),
    ({'num_classes': 1000}, '1000 num_classes, and the weights are for 10'),
    ({'model': 'nfnet_f99'}, "No model 'nfnet_f99'. Did you mean"),
    ({'model': 'timm/test_nfnet'}, 'weights are of nfnet_digits with 10'),
    ({'model_kwargs': {'color': 'red'}}, 'that nfnet_digits does not take'),
    ({'model_kwargs': {'variant': 'F99'}}, 'that nfnet_digits does not take'),
    ({'model_kwargs': {'activation': []}}, 'that nfnet_digits does not take'),
    ({'model_kwargs': {'name': 'x'}}, 'that nfnet_digits does not take'),
    ({'model_kwargs': {'width': 1e300}}, 'that nfnet_digits does not take'),
    ({'model_kwargs': {'se_ratio': 1}}, 'do not fit nfnet_digits with 10'),
    ({'preprocessing': 'resize_crop_99999'}, 'images of 100031 pixels'),
    ({'preprocessing': 'resize_crop_0.0001'}, 'images of 320000 pixels'),
  ],
)
def test_metadata_of_another_network_are_refused(tmp_path, metadata, message):
  path = tmp_path / 'x.npz'
  metadata = {'model': 'nfnet_digits', **metadata}
  save_raw(path, quick_lib.digits()[1], json.dumps(metadata).encode())
  with pytest.raises(ValueError) as caught:
    weights.open_model(path)
  text = str(caught.value)
  assert text.startswith(f'{path}: ') and message in text and len(text) < 700


@pytest.mark.parametrize(
  'metadata',
  [
    {'a': np.ones(3)},
    {'a': float('nan')},
    {'mean': [1]},
    {'class_names': 'ab'},
  ],
)
def test_wrong_metadata_are_not_written(tmp_path, metadata):
  path = tmp_path / 'x.npz'
  with pytest.raises(ValueError, match='metadata'):
    weights.save_weights(path, {'net': {'w': np.ones(3)}}, metadata=metadata)
  assert not path.exists()


def test_classify_does_as_the_file_says(tmp_path, monkeypatch, capsys):
  model, params = quick_lib.digits()
  names = ['two\nlines', *NAMES[1:]]
  metadata = weights.describe(
    model,
    class_names=names,
    preprocessing='center_crop_0.5',
    mean=[10, 20, 30],
  )
  path = tmp_path / 'described.safetensors'
  weights.save_weights(path, params, metadata=metadata)
  opened = weights.open_model(path)  # Once, so that it is compiled once.
  monkeypatch.setattr(weights, 'open_model', lambda *_: opened)
  picture = golden_lib.GOLDEN / 'image_210x150.jpg'
  args = ['--runtime=jax', '--top=10', str(picture), f'--weights={path}']
  assert classify.main([*args, '--json']) == 0
  out, err = capsys.readouterr()
  top = {x['label']: x for x in json.loads(out)['top']}
  assert err == '' and [top[i]['name'] for i in range(10)] == names

  image = preprocess.preprocess_eval(
    picture.read_bytes(), (32, 32), 'center_crop_0.5'
  )
  std = np.float32([0.229, 0.224, 0.225]) * 255
  image = (np.asarray(image) - np.float32([10, 20, 30])) / std
  logits = opened[0].logits(params, image[None])
  np.testing.assert_allclose(
    [top[i]['probability'] for i in range(10)], jax.nn.softmax(logits[0]), 1e-3
  )

  classify.main(args)
  lines = capsys.readouterr().out.splitlines()
  for name in (r'two\nlines', *NAMES[1:]):
    assert any(line.endswith(f'  {name}') for line in lines)
  (tmp_path / 'labels').write_text('\n'.join('ABCDEFGHIJ'))
  classify.main([*args, f'--labels={tmp_path / "labels"}', '--json'])
  top = json.loads(capsys.readouterr().out)['top']
  assert {x['name'] for x in top} == set('ABCDEFGHIJ')
