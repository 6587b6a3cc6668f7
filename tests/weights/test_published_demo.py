"""What the published demo does, with a file as the released ones are."""

import pickle

import golden_lib
import haiku as hk
import jax
import numpy as np
import pytest
import quick_lib
import reference_params

import nfnets.nfnet
import nfnets.utils

quickly_compiled = quick_lib.quickly_compiled


@pytest.mark.slow
def test_steps_of_the_demo_give_the_golden_outputs(tmp_path):
  tree = golden_lib.reference_tree(golden_lib.transform('NFNet/F0'))
  path = tmp_path / 'F0_haiku.npz'
  released = hk.data_structures.to_immutable_dict(tree)
  path.write_bytes(pickle.dumps(released, protocol=3))
  assert b'haiku._src.data_structures\nFlatMapping\n' in path.read_bytes()

  params = nfnets.utils.load_haiku_file(str(path))

  def forward(inputs):
    model = nfnets.nfnet.NFNet(num_classes=1000, variant='F0')
    return model(inputs, is_training=False)

  net = hk.transform(forward)
  images = reference_params.reference_images(2, 64, 64)
  out = jax.jit(net.apply)(params, None, images)

  golden = golden_lib.load('nfnet_f0')
  assert golden_lib.rel_l2(out['logits'], golden['logits']) < 1e-4
  probs = np.asarray(jax.nn.softmax(out['logits']))
  exact = np.exp(np.float64(golden['logits']))
  exact /= exact.sum(-1, keepdims=True)
  np.testing.assert_allclose(probs, exact, rtol=1e-3)
  np.testing.assert_array_equal(
    np.argsort(-probs)[:, :5], np.argsort(-golden['logits'])[:, :5]
  )
  flat = nfnets.utils.flatten_haiku_tree(params)
  assert len(params) == 94 and len(flat) == 233
  assert flat['NFNet.nf_block_3.conv1b.w'].shape == (3, 3, 128, 768)
