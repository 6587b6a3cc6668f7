"""Weights are recognized, and said to be wrong where they are."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_params
import safetensors.numpy

import nfnets
from nfnets import weights
from nfnets.weights import folding, matching

MORE = [pytest.mark.slow, pytest.mark.exhaustive]


def shapes(name: str, num_classes: int = 1000):
  """Returns the parameters' and the state's shapes and dtypes."""
  return matching.model_shapes(nfnets.create_model(name, num_classes))


@pytest.mark.parametrize(
  ('name', 'num_classes'),
  [
    ('nfnet_f0', 1000),
    ('nfnet_f0+', 21),
    pytest.param('nfnet_f1', 0, marks=MORE),
    pytest.param('nfnet_f2', 1, marks=MORE),
    ('nfnet_digits', 10),
    ('nf_resnet50', 1000),
    ('nf_regnet_b0', 3),
    pytest.param('nf_regnet_b1', 1000, marks=MORE),
    ('resnet50', 1000),
    ('resnet50_v1', 0),
    ('skipinit_resnet50', 2),
    ('fixup_resnet50', 0),
    pytest.param('fixup_resnet101', 7, marks=MORE),
    pytest.param('timm/nfnet_f0', 1000, marks=MORE),
    ('timm/eca_nfnet_l0', 0),
    ('timm/test_nfnet', 10),
  ],
)
def test_models_are_recognized_with_their_number_of_classes(name, num_classes):
  params, _ = shapes(name, num_classes)
  assert matching.identify(params) == (name, num_classes, False)


def test_folded_weights_are_recognized():
  model = nfnets.create_model('nfnet_digits', 10)
  params = reference_params.reference_params(shapes('nfnet_digits', 10)[0])
  folded = folding.fold_weights(params)
  assert matching.identify(folded) == ('nfnet_digits', 10, True)
  matching.check_fits(folded, model)


@pytest.mark.parametrize('bad', [{}, {'a': {'w': np.ones(3)}}, {'NFNet': {}}])
def test_foreign_trees_are_no_models(bad):
  with pytest.raises(ValueError, match='of no model here'):
    matching.identify(bad)


def test_closest_model_is_named_with_what_differs():
  params, _ = shapes('nfnet_digits', 10)
  params = {module: dict(leaves) for module, leaves in params.items()}
  del params['NFNet/~/stem_conv0']['gain']
  params['NFNet/~/extra'] = {'w': jnp.ones(3)}
  params['NFNet/~/final_conv']['bias'] = jnp.ones(5)
  with pytest.raises(ValueError) as error:
    matching.identify(params)
  assert re.search(
    r'nfnet_digits is closest: missing: NFNet/~/stem_conv0/gain \[16\]; '
    r'unexpected: NFNet/~/extra/w \[3\]; of another shape: '
    r'NFNet/~/final_conv/bias \[5\] instead of \[256\]\.$',
    str(error.value),
  )


def test_half_a_head_is_not_a_headless_model():
  params, _ = shapes('nfnet_digits', 10)
  params = {**params, 'NFNet/~/linear': {'w': jnp.ones((256, 10))}}
  with pytest.raises(ValueError, match='missing: NFNet/~/linear/b'):
    matching.identify(params)


def test_weights_of_another_model_are_named():
  params, _ = shapes('nfnet_digits', 10)
  for name, num_classes in (('timm/test_nfnet', 10), ('nfnet_digits', 21)):
    model = nfnets.create_model(name, num_classes)
    with pytest.raises(
      ValueError,
      match=f'of nfnet_digits with 10 classes, not of {name} with '
      f'{num_classes} classes',
    ):
      matching.check_fits(params, model)
  matching.check_fits(params, nfnets.create_model('nfnet_digits', 10))


def test_a_changed_network_is_compared_name_by_name():
  params, _ = shapes('nfnet_digits', 10)
  model = nfnets.create_model('nfnet_digits', 10, use_two_convs=False)
  with pytest.raises(
    ValueError, match='as it is configured: unexpected: .*conv1b/.* more'
  ):
    matching.check_fits(params, model)


def test_moving_averages_are_asked_for():
  model = nfnets.create_model('resnet50')
  params, state = shapes('resnet50')
  matching.check_fits(params, model, state)
  with pytest.raises(ValueError, match='moving averages .* missing'):
    matching.check_fits(params, model)
  state = dict(state)
  del state['ResNet/~/final_bn/~/mean_ema']
  with pytest.raises(ValueError, match='missing: ResNet/~/final_bn/~/mean_ema'):
    matching.check_fits(params, model, state)


def test_own_files_are_opened_with_their_model(tmp_path):
  params = reference_params.reference_params(shapes('nfnet_digits', 7)[0])
  half = jax.tree.map(lambda x: x.astype(np.float16), params)
  weights.save_weights(tmp_path / 'a.npz', half)
  opened, read, state = weights.open_model(tmp_path / 'a.npz')
  assert (opened.name, opened.num_classes, state) == ('nfnet_digits', 7, {})
  jax.tree.map(np.testing.assert_array_equal, read, half)
  assert {x.dtype for x in jax.tree.leaves(read)} == {np.dtype('f4')}


def test_a_named_model_must_fit(tmp_path):
  params = reference_params.reference_params(shapes('nfnet_digits', 10)[0])
  path = tmp_path / 'a.npz'
  weights.save_weights(path, params)
  model, _, _ = weights.open_model(path, 'nfnet_digits')
  assert (model.name, model.num_classes) == ('nfnet_digits', 10)
  with pytest.raises(ValueError, match=r'a\.npz: .*of nfnet_digits with 10'):
    weights.open_model(path, 'timm/test_nfnet')
  with pytest.raises(ValueError, match=r"a\.npz: No model 'nfnet_f9'"):
    weights.open_model(path, 'nfnet_f9')


def test_tensors_of_other_networks_are_refused(tmp_path):
  tensors = {'conv1.weight': np.ones((3, 3, 1, 1), np.float32)}
  safetensors.numpy.save_file(tensors, tmp_path / 'a')
  with pytest.raises(ValueError, match='a: .*conv1.weight'):
    weights.open_model(tmp_path / 'a')
