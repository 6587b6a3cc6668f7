"""NF-RegNets: golden outputs, sizes, and how a signal propagates."""

import golden_lib
import haiku as hk
import jax
import jax.numpy as jnp
import pytest
import signal_variance

from nfnets import base, conv, nf_regnet


def test_there_are_nine_variants():
  assert list(nf_regnet.NF_RegNet.variant_dict) == [f'B{i}' for i in range(9)]
  table = nf_regnet.nf_regnet_params
  assert table is base.nf_regnet_params is nf_regnet.NF_RegNet.variant_dict


@pytest.fixture(scope='module')
def b0():
  return golden_lib.reference_tree(golden_lib.transform('NF_RegNet/B0'))


@pytest.fixture
def plain():
  """Makes networks with many groups compile sooner."""
  with conv.lowering('plain'):
    yield


def test_b0_outputs_and_signal_metrics_agree_with_golden(b0, plain):
  golden = golden_lib.load('nf_regnet_b0')
  golden_lib.check_outputs('NF_RegNet/B0', golden, b0)


def test_b0_loss_and_gradient_norms_agree_with_golden(b0, plain):
  golden = golden_lib.load('nf_regnet_b0')
  golden_lib.check_loss_and_gradients('NF_RegNet/B0', golden, b0)


def test_default_arguments_make_b0_in_training():
  forward = hk.transform(lambda x: nf_regnet.NF_RegNet(1000)(x))
  shapes = golden_lib.model_shapes('NF_RegNet/B0')
  assert golden_lib.init_shapes(forward) == shapes
  net = hk.testing.transform_and_run(lambda: nf_regnet.NF_RegNet(1000))()
  assert (net.train_imsize, net.test_imsize, net.drop_rate) == (192, 224, 0.2)


@pytest.mark.parametrize(
  ('drop_rate', 'expected'), [(None, 0.4), (0.0, 0.0), (0.7, 0.7)]
)
def test_drop_rate_defaults_to_the_variants_own(drop_rate, expected):
  net = hk.testing.transform_and_run(
    lambda: nf_regnet.NF_RegNet(10, variant='B5', drop_rate=drop_rate)
  )()
  assert net.drop_rate == expected


def test_arguments_change_the_tree():
  def tree(**kwargs):
    shapes = golden_lib.model_shapes('NF_RegNet/B0')
    if kwargs:
      transformed = golden_lib.transform('NF_RegNet/B0', **kwargs)
      shapes = golden_lib.init_shapes(transformed)
    return golden_lib.with_leaves(shapes, lambda *leaf: leaf[2].shape)

  first, second = 'NF_RegNet/~/nf_block', 'NF_RegNet/~/nf_block_1'
  default = tree()
  # The first block does not expand its 36 channels; the others do, by 2.25.
  assert default[f'{first}/~/conv1']['w'] == (3, 3, 8, 32)
  assert default[f'{second}/~/conv1']['w'] == (3, 3, 8, 80)
  changed = tree(expansion=3, group_size=4, se_ratio=0.25, width=1)
  assert changed[f'{first}/~/conv1']['w'] == (3, 3, 4, 48)
  assert changed[f'{second}/~/conv1']['w'] == (3, 3, 4, 144)
  assert changed[f'{second}/~/squeeze_excite/~/linear']['w'] == (144, 36)
  assert changed['NF_RegNet/~/final_conv']['w'] == (1, 1, 440, 1280)


def test_width_below_one_group_is_refused():
  with pytest.raises(ValueError, match='less than one group of 8.*larger'):
    golden_lib.init_shapes(golden_lib.transform('NF_RegNet/B0', width=0.1))


def test_initial_logits_are_zero_and_branches_are_off(plain, monkeypatch):
  row = {**base.nf_regnet_params['B0'], 'depth': [1, 1, 1, 1]}
  monkeypatch.setitem(base.nf_regnet_params, 'tiny', row)
  transformed = golden_lib.transform('NF_RegNet/tiny', 10)
  params = jax.jit(
    lambda key: transformed.init(key, jnp.zeros((1, 32, 32, 3))),
    compiler_options=golden_lib.QUICK,
  )(jax.random.key(0))
  assert not params['NF_RegNet/~/linear']['w'].any()
  for module, leaves in params.items():
    for name, leaf in leaves.items():
      if name in ('bias', 'b', 'skip_gain'):
        assert not leaf.any(), (module, name)
      elif name == 'gain':
        assert (leaf == 1).all(), module


# Only relu and the like make act(x) * beta the same as act(x * beta); with an
# alpha as small as the default that hardly matters, for gelu less than for the
# default, silu.
@pytest.mark.parametrize(
  ('activation', 'alpha'), [('gelu', 0.2), ('relu', 1.5)]
)
def test_variance_of_every_block_is_the_expected_one(
  monkeypatch, activation, alpha
):
  row = {
    **base.nf_regnet_params['B0'],
    'width': [128, 128, 256, 256],
    'depth': signal_variance.DEPTHS,
  }
  monkeypatch.setitem(base.nf_regnet_params, 'test', row)
  signal_variance.check(
    monkeypatch,
    'NF_RegNet/test',
    alpha,
    activation=activation,
    group_size=64,
    width=1,
  )
