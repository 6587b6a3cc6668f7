"""Models by name."""

import dataclasses
import subprocess
import sys

import golden_lib
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_params

import nfnets
from nfnets import conv, resnet, zoo

F_SIZES = {
  'nfnet_f0': (192, 256),
  'nfnet_f1': (224, 320),
  'nfnet_f2': (256, 352),
  'nfnet_f3': (320, 416),
  'nfnet_f4': (384, 512),
  'nfnet_f5': (416, 544),
  'nfnet_f6': (448, 576),
  'nfnet_f7': (480, 608),
}
B_SIZES = {
  'nf_regnet_b0': (192, 224),
  'nf_regnet_b1': (224, 256),
  'nf_regnet_b2': (240, 272),
  'nf_regnet_b3': (288, 320),
  'nf_regnet_b4': (320, 384),
  'nf_regnet_b5': (384, 456),
  'nf_regnet_b6': (448, 528),
  'nf_regnet_b7': (512, 600),
  'nf_regnet_b8': (600, 672),
}
DEPTHS = (50, 101, 152, 200, 288, 600)
RESNETS = [f'nf_resnet{depth}' for depth in DEPTHS]
BASELINES = {
  name.format(depth)
  for name in (
    'resnet{}',
    'resnet{}_v1',
    'skipinit_resnet{}',
    'fixup_resnet{}',
  )
  for depth in DEPTHS
}


def test_all_networks_of_the_two_papers_are_listed():
  names = nfnets.list_models()
  assert len(set(names)) == len(names)
  assert set(names) >= {
    'nfnet_digits',
    *F_SIZES,
    *(f'{n}+' for n in F_SIZES),
    *B_SIZES,
    *RESNETS,
    *BASELINES,
  }


def test_list_is_filtered_by_part_or_pattern():
  timms = [f'timm/nf_resnet{depth}' for depth in (26, 50, 101)]
  assert nfnets.list_models('nf_resnet') == RESNETS + timms
  assert nfnets.list_models('nf_resnet*') == RESNETS
  assert nfnets.list_models('nfnet_f?') == list(F_SIZES)
  assert nfnets.list_models('*f0+') == ['nfnet_f0+']
  f0s = ['nfnet_f0', 'nfnet_f0+', 'timm/nfnet_f0']
  assert nfnets.list_models('f0') == f0s
  assert nfnets.list_models('[') == nfnets.list_models('no such') == []


@pytest.mark.parametrize('name', sorted(F_SIZES))
def test_image_sizes_are_the_published_ones(name):
  for suffix in ('', '+'):
    entry = zoo.get_entry(name + suffix)
    assert (entry.train_size, entry.test_size) == F_SIZES[name]


@pytest.mark.parametrize('name', [*B_SIZES, *RESNETS, *sorted(BASELINES)])
def test_other_models_are_evaluated_by_cropping(name):
  entry = zoo.get_entry(name)
  sizes = B_SIZES.get(name, (224, 224))
  assert (entry.train_size, entry.test_size) == sizes
  assert entry.eval_preproc == 'crop_resize'


def test_unknown_name_is_answered_with_close_ones():
  with pytest.raises(ValueError, match="'nfnet_f9'. Did you mean .*nfnet_f"):
    nfnets.create_model('nfnet_f9')
  with pytest.raises(ValueError, match="'zzz'. There are .*nf_resnet600"):
    nfnets.create_model('zzz')


def published_name(model):
  """Returns our name of 'class/variant', as the published trees have it."""
  family, variant = model.split('/')
  prefix = {
    'NFNet': 'nfnet_',
    'NF_RegNet': 'nf_regnet_',
    'NF_ResNet': 'nf_',
    'ResNet': '',
    'SkipInit_ResNet': 'skipinit_',
    'FixUp_ResNet': 'fixup_',
  }[family]
  return prefix + variant.lower()


@pytest.mark.parametrize('published', sorted(golden_lib.param_trees()))
def test_names_stand_for_the_published_networks(published):
  entry = zoo.get_entry(published_name(published))
  kwargs = dict(entry.kwargs)
  variant = kwargs.pop('variant')
  assert f'{entry.module.__name__}/{variant}' == published
  # ResNet's width has no default; 4 is the published one.
  assert kwargs == ({'width': 4} if entry.module is resnet.ResNet else {})


def test_a_new_model_has_the_published_tree():
  model = nfnets.create_model('skipinit_resnet50')
  params, state = jax.eval_shape(
    lambda key: model.init(key, image_size=32), jax.random.key(0)
  )
  tree = golden_lib.with_leaves(params, lambda *leaf: list(leaf[2].shape))
  published = golden_lib.param_trees()['SkipInit_ResNet/ResNet50']
  assert tree == published['params'] and not state


def test_resnet_v1_is_post_activation():
  model = nfnets.create_model('resnet50_v1')
  params, _ = jax.eval_shape(model.init, jax.random.key(0))
  assert 'ResNet/~/initial_bn' in params
  assert golden_lib.num_params(params) == 25_557_032


def test_overrides_reach_the_network():
  model = nfnets.create_model(
    'nfnet_digits',
    7,
    final_conv_mult=None,
    final_conv_ch=40,
    use_two_convs=False,
  )
  params, _ = jax.eval_shape(model.init, jax.random.key(0))
  assert params['NFNet/~/linear']['w'].shape == (40, 7)
  assert not any('conv1b' in module for module in params)


def test_wrong_overrides_fail_when_the_model_is_made():
  with pytest.raises(TypeError, match='depth'):
    nfnets.create_model('nfnet_digits', depth=3)
  with pytest.raises(ValueError, match="'geloo'"):
    nfnets.create_model('nfnet_digits', activation='geloo')
  with pytest.raises(TypeError, match='decay'):
    nfnets.create_model('resnet50', norm_kwargs={'decay': 0.9})


@pytest.mark.parametrize(
  'name',
  [
    'nfnet_f0',
    'nf_regnet_b0',
    'nf_resnet50',
    'resnet50',
    'resnet50_v1',
    'skipinit_resnet50',
    'fixup_resnet50',
    'timm/nfnet_l0',
  ],
)
def test_every_network_can_recompute_its_blocks(name):
  nfnets.create_model(name, remat=True)


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


def test_model_does_not_change_with_the_dictionaries_that_made_it():
  kwargs = {'groups': 4}
  model = nfnets.create_model(
    'resnet50', 10, width=1, which_norm='GroupNorm', norm_kwargs=kwargs
  )
  kwargs['create_offset'] = False
  params, _ = jax.eval_shape(lambda: model.init(jax.random.key(0), 32))
  assert set(params['ResNet/~/final_bn']) == {'scale', 'offset'}


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
  for function in (model.logits, model.embed, model.features):
    with pytest.raises(ValueError, match='resnet50 has moving averages; pass'):
      function(params, images)


def test_wrong_images_are_not_answered_as_missing_state():
  model = nfnets.create_model('nfnet_digits', 10)
  shapes, _ = jax.eval_shape(model.init, jax.random.key(0))
  params = reference_params.reference_params(shapes)
  with pytest.raises(ValueError) as error:
    model.logits(params, np.zeros((2, 32, 32, 4), np.float32))
  assert 'moving averages' not in str(error.value)


@pytest.fixture
def plain():
  """Makes the networks compile sooner."""
  with conv.lowering('plain'):
    yield


@pytest.fixture(scope='module')
def digits():
  model = nfnets.create_model('nfnet_digits', 10, drop_rate=0.5)
  init = jax.jit(
    model.init,
    static_argnums=1,
    compiler_options=golden_lib.QUICK,
  )
  return model, init(jax.random.key(0))


def test_init_is_reproducible_and_does_not_depend_on_the_image_size(digits):
  model, (params, state) = digits
  assert not state
  assert round(golden_lib.num_params(params) / 1e6, 2) == 0.27
  for size in (None, 64, (48, 80)):
    shapes, _ = jax.eval_shape(
      lambda key, size=size: model.init(key, size), jax.random.key(0)
    )
    assert shapes == jax.eval_shape(lambda: params)
  kernels = [
    leaves['w'] for leaves in params.values() if leaves.get('w') is not None
  ]
  assert all(jnp.std(kernel) > 0 for kernel in kernels)


def test_apply_is_the_network_in_training_and_evaluation(digits, plain):
  model, (params, state) = digits
  params = reference_params.reference_params(params)
  images = reference_params.reference_images(2, 32, 32)
  transformed = golden_lib.transform('NFNet/digits', 10, drop_rate=0.5)
  train = jax.jit(lambda rng: model.apply(params, state, rng, images, True))
  expected = jax.jit(lambda: transformed.apply(params, None, images))()
  out, new_state = train(jax.random.key(0))
  assert not new_state
  assert golden_lib.rel_l2(out['logits'], expected['logits']) > 0.01
  logits = model.logits(params, images)
  assert logits.shape == (2, 10)
  assert golden_lib.rel_l2(logits, expected['logits']) < 1e-5
  embedding = model.embed(params, images)
  assert embedding.shape == (2, 256)
  assert golden_lib.rel_l2(embedding, expected['pool']) < 1e-5
  features = model.features(params, images)
  assert [f.shape for f in features] == [
    (2, 16, 16, 64),
    (2, 8, 8, 32),
    (2, 4, 4, 64),
    (2, 2, 2, 128),
    (2, 1, 1, 256),
  ]
  for ours, theirs in zip(features, expected['features'], strict=True):
    assert golden_lib.rel_l2(ours, theirs) < 1e-5


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
  for owner in (nfnets.create_model(name), zoo.get_entry(name)):
    out = owner.normalize(library.asarray(images))
    np.testing.assert_allclose(
      out, (images / 255 - mean) / std, rtol=1e-5, atol=1e-6
    )
    again = owner.denormalize(out)
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


def test_library_does_not_import_tensorflow():
  program = (
    'import sys, nfnets, nfnets.optim, nfnets.utils\n'
    "model = nfnets.create_model('nfnet_f0')\n"
    "heavy = {'tensorflow', 'tensorflow_datasets', 'jaxline', 'sklearn'}\n"
    'assert not heavy & set(sys.modules), heavy & set(sys.modules)\n'
  )
  root = golden_lib.GOLDEN.parents[1]
  subprocess.run(
    [sys.executable, '-c', program], cwd=root, check=True, timeout=120
  )


def test_table_and_models_agree():
  for name in nfnets.list_models():
    entry = zoo.get_entry(name)
    assert entry.kwargs['variant'] in entry.module.variant_dict
    assert entry.train_size <= entry.test_size
