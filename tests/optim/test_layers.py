"""Which layers are trained or clipped, and how far each of them moves."""

import golden_lib
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nfnets import optim


def _ones(tree):
  return {m: {n: jnp.ones(3) for n in leaves} for m, leaves in tree.items()}


def _chosen(names, tree):
  mask = optim.choose(names)(_ones(tree))
  return {f'{m}/{n}' for m in mask for n, chosen in mask[m].items() if chosen}


_TREE = {
  'Net/~/stem_conv0': ('w', 'gain'),
  'Net/~/nf_block': ('skip_gain',),
  'Net/~/nf_block_1/~/conv1': ('w', 'gain'),
  'Net/~/nf_block_11/~/squeeze_excite/~/linear': ('w',),
  'Net/~/linear': ('w', 'b'),
}


@pytest.mark.parametrize(
  'names, expected',
  [
    ('last', {'Net/~/linear/w', 'Net/~/linear/b'}),
    (
      'nf_block_1',
      {'Net/~/nf_block_1/~/conv1/w', 'Net/~/nf_block_1/~/conv1/gain'},
    ),
    (
      '*gain',
      {
        'Net/~/stem_conv0/gain',
        'Net/~/nf_block/skip_gain',
        'Net/~/nf_block_1/~/conv1/gain',
      },
    ),
    (
      'nf_block_1?, b',
      {'Net/~/nf_block_11/~/squeeze_excite/~/linear/w', 'Net/~/linear/b'},
    ),
  ],
)
def test_layers_are_chosen_by_parts_of_their_names(names, expected):
  assert _chosen(names, _TREE) == expected


_STAGES = {
  'Net/~/initial_conv': ('w',),
  'Net/~/nf_block/~/conv0': ('w',),
  'Net/~/nf_block/~/conv_shortcut': ('w',),
  'Net/~/nf_block_1': ('skip_gain',),
  'Net/~/nf_block_2/~/conv_shortcut': ('w',),
  'Net/~/nf_block_10/~/conv_shortcut': ('w',),
  'Net/~/final_conv': ('w',),
  'Net/~/linear': ('w',),
}


@pytest.mark.parametrize(
  'names, expected',
  [
    ('stem', {'initial_conv'}),
    ('stage1', {'nf_block/~/conv0', 'nf_block/~/conv_shortcut', 'nf_block_1'}),
    ('stage3, last', {'nf_block_10/~/conv_shortcut', 'linear'}),
    ('nf_block*, !conv_shortcut', {'nf_block/~/conv0', 'nf_block_1'}),
    (
      '!stage2, nf_block*, !stage1',
      {'nf_block_10/~/conv_shortcut'},
    ),
    ('!stem,!nf_block*', {'final_conv', 'linear'}),
  ],
)
def test_stages_begin_at_shortcuts_and_layers_can_be_left_out(names, expected):
  found = _chosen(names, _STAGES)
  assert {path.rpartition('/')[0] for path in found} == {
    f'Net/~/{module}' for module in expected
  }


def test_what_is_clipped_of_a_part_of_the_layers_is_known_by_name():
  part = {k: v for k, v in _ones(_STAGES).items() if 'nf_block_2' in k}
  mask = optim.clipped_layers('!stage1', _ones(_STAGES))(part)
  assert jax.tree.leaves(mask) == [True]


@pytest.mark.parametrize('names', ['nf_block_2', 'last,', 'conv'])
def test_a_name_that_fits_nothing_is_told_with_those_there_are(names):
  with pytest.raises(ValueError, match='last, linear, nf_block, nf_bl'):
    _chosen(names, _TREE)


def test_the_optimizer_sees_the_chosen_parameters_alone():
  params = _ones(_TREE)
  tx = optim.train_only(
    optim.sgd_agc(0.1, weight_decay=0.1, clipping=1e-3), optim.choose('last')
  )
  state = tx.init(params)
  # A trace of the momentum for two parameters of three numbers each.
  assert sum(x.size for x in jax.tree.leaves(state)) == 2 * 3 + 1
  grads = jax.tree.map(lambda x: 5 * x, params)
  updates, state = tx.update(grads, state, params)
  part = {'Net/~/linear': params['Net/~/linear']}
  alone = optim.sgd_agc(0.1, weight_decay=0.1, clipping=1e-3)
  expected, alone_state = alone.update(
    {'Net/~/linear': grads['Net/~/linear']}, alone.init(part), part
  )
  for module, leaves in updates.items():
    for name, update in leaves.items():
      wanted = expected.get(module, {}).get(name, np.zeros(3))
      np.testing.assert_array_equal(update, wanted)
  for found in (state, alone_state):
    assert optax.tree.get(found, 'fraction_clipped') == 1


@pytest.mark.parametrize(
  'model, stem, num_blocks, block, after',
  [
    ('NFNet/F0', 'stem_conv3', 12, 'nf_block{}/~/conv1b', 'final_conv'),
    ('ResNet/ResNet50', 'initial_conv', 16, 'res_block_v2{}/~/bn2', 'final_bn'),
    ('FixUp_ResNet/ResNet50', 'initial_conv', 16, 'res_block{}/~/conv0', None),
  ],
)
def test_a_layer_moves_by_its_depth(model, stem, num_blocks, block, after):
  tree = golden_lib.model_shapes(model)
  tx = optim.scale_layers(0.5, last=4.0)
  ones = jax.tree.map(lambda _: np.ones(1), tree, is_leaf=_is_shape)
  updates, _ = tx.update(ones, tx.init(ones))
  name = model.partition('/')[0]

  def moved(part):
    found = {float(x[0]) for x in updates[f'{name}/~/{part}'].values()}
    assert len(found) == 1
    return found.pop()

  assert moved(stem) == 0.5 ** (num_blocks + 1)
  for i in range(num_blocks):
    number = f'_{i}' if i else ''
    if f'{name}/~/{block.format(number)}' in updates:
      assert moved(block.format(number)) == 0.5 ** (num_blocks - i)
  assert after is None or moved(after) == 1
  assert moved('linear') == 4


def _is_shape(x):
  return not isinstance(x, dict)
