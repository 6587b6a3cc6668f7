"""NF-RegNets: golden outputs, sizes, and how a signal propagates."""

import golden_lib
import jax
import jax.numpy as jnp
import pytest
import signal_variance

from nfnets import base, nf_regnet


def test_there_are_nine_variants():
  assert list(nf_regnet.NF_RegNet.variant_dict) == [f'B{i}' for i in range(9)]
  table = nf_regnet.nf_regnet_params
  assert table is base.nf_regnet_params is nf_regnet.NF_RegNet.variant_dict


def test_b0_outputs_and_signal_metrics_agree_with_golden():
  golden_lib.check_outputs('NF_RegNet/B0', golden_lib.load('nf_regnet_b0'))


@pytest.mark.slow
def test_b0_loss_and_gradient_norms_agree_with_golden():
  golden_lib.check_training('NF_RegNet/B0', golden_lib.load('nf_regnet_b0'))


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


def test_branches_are_off_at_first(monkeypatch):
  row = {**base.nf_regnet_params['B0'], 'depth': [1, 1, 1, 1]}
  monkeypatch.setitem(base.nf_regnet_params, 'tiny', row)
  transformed = golden_lib.transform('NF_RegNet/tiny', 10)

  @golden_lib.jit
  def init(key):  # But for the kernels, which take long.
    params = transformed.init(key, jnp.zeros((1, 32, 32, 3)))
    return golden_lib.with_leaves(
      params,
      lambda _, name, leaf: leaf if name != 'w' else jnp.zeros(()),
    )

  params = init(jax.random.key(0))
  for module, leaves in params.items():
    for name, leaf in leaves.items():
      if name in ('bias', 'b', 'skip_gain'):
        assert not leaf.any(), (module, name)
      elif name == 'gain':
        assert (leaf == 1).all(), module


def test_variance_of_every_block_is_the_expected_one(monkeypatch):
  row = {
    **base.nf_regnet_params['B0'],
    'width': [128, 128, 256, 256],
    'depth': signal_variance.DEPTHS,
  }
  monkeypatch.setitem(base.nf_regnet_params, 'test', row)
  signal_variance.check(
    monkeypatch,
    'NF_RegNet/test',
    1.5,
    activation='relu',
    group_size=64,
    width=1,
  )
