"""What is told of each layer, against numbers computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import layer_log, progress
from experiments.configs import digits
from nfnets.inference import curves

_SHAPES = {
  'Net/~/final_conv': {'w': (1, 1, 4, 6), 'bias': (6,)},
  'Net/~/linear': {'w': (6, 10), 'b': (10,)},
  'Net/~/nf_block': {'skip_gain': ()},
  'Net/~/nf_block_2/~/conv1': {'w': (3, 3, 2, 4), 'gain': (4,)},
  'Net/~/nf_block_10/~/conv1': {'w': (3, 3, 2, 5), 'gain': (5,)},
  'Net/~/stem_conv0': {'w': (3, 3, 3, 2)},
}


def _config(**settings):
  config = digits.get_config().experiment_kwargs.config
  config.update(log_layers=True, **settings)
  config.optimizer.kwargs.clipping = 0.7
  return config


def _tree(seed, scale=1.0):
  rng = np.random.default_rng(seed)
  return {
    module: {
      name: np.asarray(scale * rng.normal(size=shape), np.float32)
      for name, shape in leaves.items()
    }
    for module, leaves in _SHAPES.items()
  }


def _measure(config, params=None, grads=None):
  return layer_log.measure(
    _tree(0) if params is None else params,
    _tree(1) if grads is None else grads,
    (),
    config,
  )


def test_ratios_are_those_of_each_unit_from_the_input_on():
  params, grads = _tree(0), _tree(1)
  params['Net/~/nf_block_2/~/conv1']['w'] *= 0  # Counts as eps.
  got = _measure(_config(), params, grads)
  modules = ['stem_conv0', 'nf_block_2/conv1', 'nf_block_10/conv1']
  assert got.names == (*modules, 'final_conv', 'linear')
  for i, name in enumerate(got.names):
    w, g = (
      tree[f'Net/~/{name.replace("/", "/~/")}']['w'] for tree in (params, grads)
    )
    w, g = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (w, g))
    ratio = np.linalg.norm(g, axis=0)
    ratio /= np.maximum(np.linalg.norm(w, axis=0), 1e-3)
    np.testing.assert_allclose(got.max_ratio[i], ratio.max(), rtol=1e-5)
    np.testing.assert_allclose(got.median_ratio[i], np.median(ratio), rtol=1e-5)
    clipped = 0 if name == 'linear' else np.mean(ratio > 0.7)
    np.testing.assert_allclose(got.fraction_clipped[i], clipped, rtol=1e-5)
  assert got.fraction_clipped[1] == 1 and 0 < got.fraction_clipped[2] < 1


def test_what_is_clipped_follows_from_the_settings():
  everything = _measure(_config(clip_layers='*'), grads=_tree(1, 9.0))
  np.testing.assert_array_equal(everything.fraction_clipped, 1)
  stem = _measure(_config(clip_layers='stem'), grads=_tree(1, 9.0))
  np.testing.assert_array_equal(stem.fraction_clipped, [1, 0, 0, 0, 0])
  config = _config()
  config.optimizer = {'name': 'sgd', 'kwargs': {'momentum': 0.9}}
  assert _measure(config).fraction_clipped is None


def test_a_clipping_that_is_an_argument_is_the_one_that_counts():
  state = {'hyperparams': {'clipping': jnp.float32(1e9)}}
  got = layer_log.measure(_tree(0), _tree(1), state, _config())
  assert not got.fraction_clipped.any()


def test_layers_become_curves_and_leave_the_log_and_the_results_alone(
  tmp_path, caplog
):
  config = digits.get_config()
  config.checkpoint_dir = str(tmp_path)
  reporter = progress.Reporter(10, 4)
  writer = progress.Writer(config, 'train', reporter)
  # As pmap returns them, and JAXline copies them to the host.
  metrics = jax.device_get(
    {'train_loss': jnp.ones(()), layer_log.NAME: _measure(_config())}
  )
  metrics['steps_per_sec'] = 2.0
  writer.write_scalars(3, metrics)
  writer.finish()
  assert set(writer.last) & {layer_log.NAME, 'train_loss'} == {'train_loss'}
  assert not [k for k in writer.last if k.startswith(layer_log.PREFIX)]
  with caplog.at_level('INFO', logger='absl'):
    reporter.log(3, metrics)
  assert 'layer' not in caplog.text and 'stem' not in caplog.text
  found = curves.read_scalars(tmp_path / 'train')
  name = 'layers_max_ratio/001 nf_block_2/conv1'
  assert found[name] == ([3], [pytest.approx(metrics['layers'].max_ratio[1])])
  assert sum(k.startswith(layer_log.PREFIX) for k in found) == 3 * 5
