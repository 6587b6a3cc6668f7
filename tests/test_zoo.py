"""Models by name."""

import dataclasses
import functools
import importlib.util
import io
import subprocess
import sys

import golden_lib
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
import quick_lib
from quick_lib import quickly_compiled  # noqa: F401
import reference_params

import nfnets
from nfnets import resnet, zoo
from nfnets.inference import networks

RESNETS = [f'nf_resnet{depth}' for depth in (50, 101, 152, 200, 288, 600)]
# The network, what is before the variant in a model's name, and its evaluation.
FAMILIES = {
  'NFNet': ('nfnet_', 'resize_crop_32'),
  'NF_RegNet': ('nf_regnet_', 'crop_resize'),
  'NF_ResNet': ('nf_', 'crop_resize'),
  'ResNet': ('', 'crop_resize'),
  'SkipInit_ResNet': ('skipinit_', 'crop_resize'),
  'FixUp_ResNet': ('fixup_', 'crop_resize'),
}
# Sizes of training and test images, of those that do not have 224 pixels.
SIZES = {
  'F0': (192, 256),
  'F1': (224, 320),
  'F2': (256, 352),
  'F3': (320, 416),
  'F4': (384, 512),
  'F5': (416, 544),
  'F6': (448, 576),
  'F7': (480, 608),
  'B0': (192, 224),
  'B1': (224, 256),
  'B2': (240, 272),
  'B3': (288, 320),
  'B4': (320, 384),
  'B5': (384, 456),
  'B6': (448, 528),
  'B7': (512, 600),
  'B8': (600, 672),
}


@pytest.mark.parametrize('published', sorted(golden_lib.param_trees()))
def test_names_stand_for_the_published_networks(published):
  family, variant = published.split('/')
  prefix, preproc = FAMILIES[family]
  for suffix in ('', '_v1') if family == 'ResNet' else ('',):
    entry = zoo.get_entry(f'{prefix}{variant.lower()}{suffix}')
    kwargs = dict(entry.kwargs)
    assert f'{entry.module.__name__}/{kwargs.pop("variant")}' == published
    # ResNet's width has no default; 4 is the published one.
    assert kwargs == {
      **({'width': 4} if family == 'ResNet' else {}),
      **({'preactivation': False} if suffix else {}),
    }
    sizes = entry.train_size, entry.test_size
    assert sizes == SIZES.get(variant.strip('+'), (224, 224))
    assert entry.eval_preproc == preproc


def test_list_is_filtered_by_part_or_pattern():
  timms = [f'timm/nf_resnet{depth}' for depth in (26, 50, 101)]
  assert nfnets.list_models('nf_resnet') == RESNETS + timms
  assert nfnets.list_models('nf_resnet*') == RESNETS
  assert nfnets.list_models('nfnet_f?') == [f'nfnet_f{i}' for i in range(8)]
  assert nfnets.list_models('*f0+') == ['nfnet_f0+']
  f0s = ['nfnet_f0', 'nfnet_f0+', 'timm/nfnet_f0']
  assert nfnets.list_models('f0') == f0s
  assert nfnets.list_models('[') == nfnets.list_models('no such') == []


def test_unknown_name_is_answered_with_close_ones():
  with pytest.raises(ValueError, match="'nfnet_f9'. Did you mean .*nfnet_f"):
    nfnets.create_model('nfnet_f9')
  with pytest.raises(ValueError, match="'zzz'. There are .*nf_resnet600"):
    nfnets.create_model('zzz')


def test_wrong_overrides_fail_when_the_model_is_made():
  with pytest.raises(TypeError, match='depth'):
    nfnets.create_model('nfnet_digits', depth=3)
  with pytest.raises(ValueError, match="'geloo'"):
    nfnets.create_model('nfnet_digits', activation='geloo')
  with pytest.raises(TypeError, match='decay'):
    nfnets.create_model('resnet50', norm_kwargs={'decay': 0.9})


@pytest.mark.parametrize('num_classes', [-1, 1.5, '10'])
def test_impossible_numbers_of_classes_are_refused(num_classes):
  with pytest.raises(ValueError, match='num_classes must be'):
    nfnets.create_model('nfnet_digits', num_classes)


def test_headless_model_has_no_logits():
  model = nfnets.create_model('nfnet_digits', 0)
  with pytest.raises(ValueError, match='has no last layer'):
    model.logits({}, jnp.zeros((1, 32, 32, 3)))


def test_model_is_immutable_and_hashable():
  model = nfnets.create_model('nfnet_digits')
  with pytest.raises(dataclasses.FrozenInstanceError):
    model.num_classes = 3
  with pytest.raises(dataclasses.FrozenInstanceError):
    model.entry.test_size = 3
  assert hash(model) == hash(dataclasses.replace(model))


def test_model_with_state_needs_it(monkeypatch):
  table = resnet.ResNet.variant_dict
  monkeypatch.setitem(table, 'ResNet50', {'depth': [0, 0, 0, 1]})
  model = nfnets.create_model('resnet50', 10, width=1)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), 32))
  params, state = map(reference_params.reference_params, shapes)
  images = reference_params.reference_images(2, 32, 32)
  logits = model.logits(params, images, state)
  pool = model.embed(params, images, state)
  features = model.features(params, images, state)
  out, new_state = golden_lib.jit(
    lambda: model.apply(params, state, None, images, is_training=False)
  )()
  assert golden_lib.rel_l2(logits, out['logits']) < 1e-5
  assert golden_lib.rel_l2(pool, out['pool']) < 1e-5
  assert len(features) == 5
  for ours, theirs in zip(features, out['features'], strict=True):
    assert golden_lib.rel_l2(ours, theirs) < 1e-5
  jax.tree.map(np.testing.assert_array_equal, new_state, state)
  out, new_state = golden_lib.jit(
    lambda: model.apply(params, state, None, images, is_training=True)
  )()
  assert golden_lib.rel_l2(logits, out['logits']) > 1e-2
  assert (
    golden_lib.rel_l2(
      *(
        x['ResNet/~/final_bn/~/mean_ema']['average'] for x in (state, new_state)
      )
    )
    > 1e-2
  )
  for function in (model.logits, model.embed, model.features):
    with pytest.raises(ValueError, match='resnet50 has moving averages; pass'):
      function(params, images)


@pytest.mark.parametrize(
  ('name', 'mean', 'std'),
  [
    ('nfnet_f0', [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ('timm/test_nfnet', [0.5] * 3, [0.5] * 3),
  ],
)
@pytest.mark.parametrize('library', [np, jnp])
def test_a_model_normalizes_images_and_undoes_it(name, mean, std, library):
  rng = np.random.default_rng(0)
  images = np.float32(rng.uniform(0, 255, (2, 3, 4, 3)))
  model = nfnets.create_model(name)
  out = model.normalize(library.asarray(images))
  np.testing.assert_allclose(
    out, (images / 255 - mean) / std, rtol=1e-5, atol=1e-6
  )
  again = model.denormalize(out)
  np.testing.assert_allclose(again, images, rtol=1e-5, atol=1e-4)
  for x in (out, again):
    assert x.dtype == np.float32
    assert isinstance(x, np.ndarray if library is np else jax.Array)


def test_preprocess_is_the_published_evaluation():
  model = nfnets.create_model('nfnet_f0')
  jpeg = (golden_lib.GOLDEN / 'image_210x150.jpg').read_bytes()
  image = model.preprocess(jpeg)
  assert image.shape == (256, 256, 3) and image.dtype == np.float32
  # The golden files have another size.
  golden = golden_lib.load('eval_preprocess')
  for name, mode in (
    ('nfnet_f0', 'resize_crop_32'),
    ('nf_resnet50', 'crop_resize'),
  ):
    model = nfnets.create_model(name)
    entry = dataclasses.replace(model.entry, test_size=64)
    image = dataclasses.replace(model, entry=entry).preprocess(jpeg)
    expected = golden[f'{mode}@64_normalized']
    # 1e-3 of the range of 0-255, in units of the standard deviation.
    np.testing.assert_allclose(image, expected, atol=0.255 / 57)


def test_preprocess_takes_decoded_digits():
  model = nfnets.create_model('nfnet_digits', 10)
  assert (model.train_size, model.test_size) == (32, 32)
  image = model.preprocess(np.full((8, 8, 1), 255, np.uint8))
  assert image.shape == (32, 32, 3)
  white = (1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225]
  np.testing.assert_allclose(image, np.broadcast_to(white, image.shape), 1e-4)


def test_images_of_other_shapes_are_refused_by_all_that_run(tmp_path):
  model, params = quick_lib.digits()
  path = tmp_path / 'digits.npz'
  nfnets.weights.save_weights(path, params)
  networks_ = [networks.of(model, params, {})]
  if importlib.util.find_spec('onnxruntime'):
    networks_.append(networks.open_network(str(path), runtime='onnxruntime'))
  for run in (
    *(functools.partial(x, params) for x in (model.logits, model.embed)),
    *(network.logits for network in networks_),
    *(network.embed for network in networks_),
  ):
    for images, message in (
      (np.zeros((32, 32, 3), np.float32), r'float32 \[32, 32, 3\].*\[None\]'),
      (np.zeros((1, 3, 32, 32), np.float32), r'\[B, H, W, 3\]'),
      (np.zeros((1, 32, 32, 3), np.uint8), r'not uint8 \[1, 32, 32, 3\]'),
    ):
      with pytest.raises(ValueError, match=message):
        run(images)


def test_preprocess_needs_no_tensorflow_for_any_picture(tmp_path):
  pytest.importorskip('simplejpeg')
  jpeg = (golden_lib.GOLDEN / 'image_210x150.jpg').read_bytes()
  (tmp_path / 'a.jpg').write_bytes(jpeg)
  image = Image.open(io.BytesIO(jpeg))
  for name in ('a.png', 'a.webp'):
    image.save(tmp_path / name)
  program = (
    'import sys, nfnets\n'
    "model = nfnets.create_model('nfnet_digits', 10)\n"
    'for path in sys.argv[1:]:\n'
    '  model.preprocess(path), model.preprocess(open(path, "rb").read())\n'
    "assert 'tensorflow' not in sys.modules\n"
  )
  paths = map(str, tmp_path.iterdir())
  subprocess.run([sys.executable, '-c', program, *paths], check=True)


def test_library_does_not_import_tensorflow():
  program = (
    'import sys, nfnets, nfnets.optim, nfnets.utils\n'
    "model = nfnets.create_model('nfnet_f0')\n"
    "heavy = {'tensorflow', 'tensorflow_datasets', 'jaxline', 'sklearn'}\n"
    'assert not heavy & set(sys.modules), heavy & set(sys.modules)\n'
  )
  root = golden_lib.GOLDEN.parents[1]
  subprocess.run(
    [sys.executable, '-c', program], cwd=root, check=True, timeout=300
  )
