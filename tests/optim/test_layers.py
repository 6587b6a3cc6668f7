"""Which layers are trained, and how far each of them moves."""

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
