"""A small network of every family, for the tests of what they share."""

import contextlib

import pytest

from nfnets import base, timm_nets

# 'class/variant' and arguments, as golden_lib takes them.
NETWORKS = {
  'NFNet': ('NFNet/tiny', {}),
  'NF_RegNet': ('NF_RegNet/tiny', {}),
  'NF_ResNet': ('NF_ResNet/tiny', {'width': 1}),
  'ResNet': ('ResNet/tiny', {'width': 1}),
  'ResNet_v1': ('ResNet/tiny', {'width': 1, 'preactivation': False}),
  'SkipInit_ResNet': ('SkipInit_ResNet/tiny', {'width': 1}),
  'FixUp_ResNet': ('FixUp_ResNet/tiny', {'width': 1}),
  'NormFreeNet': ('NormFreeNet/tiny', {}),
}


@contextlib.contextmanager
def variants(depth):
  """Adds the variant `tiny`, with so many blocks in its stages."""
  timm_table = timm_nets.NormFreeNet.variant_dict
  stem = [(8, 3, 2), (8, 3, 1), (8, 3, 1), (16, 3, 2)]
  with pytest.MonkeyPatch.context() as patch:
    for table, row in (
      (base.resnet_params, {}),
      (base.nfnet_params, base.nfnet_params['digits']),
      (
        base.nf_regnet_params,
        {**base.nf_regnet_params['B0'], 'width': [24, 32, 40, 44]},
      ),
      (timm_table, {**timm_table['test_nfnet'], 'stem': stem}),
    ):
      patch.setitem(table, 'tiny', {**row, 'depth': depth})
    yield
