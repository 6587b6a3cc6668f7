"""Tests of the names of layers, on the networks that there are."""

import numpy as np
import pytest

import nfnets
from nfnets import module_names, weights


@pytest.mark.parametrize(
  'name', ['nf_regnet_b0', 'fixup_resnet50', 'timm/test_nfnet']
)
def test_layers_are_known_by_their_names(name):
  model = nfnets.create_model(name, 3)
  params, _ = weights.matching.model_shapes(model)
  depth = model.entry.module.variant_dict[model.entry.kwargs['variant']][
    'depth'
  ]
  stages = module_names.stages(params)
  assert [*stages] == [*range(sum(depth))]
  assert [[*stages.values()].count(stage + 1) for stage in range(4)] == depth
  last = [x for x in params if module_names.is_last_layer(x)]
  assert last == [module_names.last_layer(params)]
  assert params[last[0]]['b'].shape == (3,)
  assert module_names.num_classes(params) == 3
  del params[last[0]]  # Of a copy: no other caller misses it.
  assert last[0] in weights.matching.model_shapes(model)[0]
  assert module_names.num_classes(params) == 0
  assert sorted(params, key=module_names.depth)[0].split('/')[2] in (
    *('initial_conv', 'stem_conv0'),
  )


def test_sizes_of_unlike_leaves_are_taken_as_they_come():
  assert module_names.num_classes({}) == 0
  assert module_names.num_classes({'~': {'w': np.zeros(2)}}) == 0
  assert module_names.num_classes({'N/~/linear': {'a': np.zeros(())}}) == 0
