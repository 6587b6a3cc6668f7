"""Which runtime is taken, what it computes, and the cache of graphs."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import quick_lib
import reference_params
import tiny_networks

import nfnets
from nfnets.inference import graphs, networks, onnx_graph, runtimes
import nfnets.weights

quickly_compiled = quick_lib.quickly_compiled
SLOW = pytest.mark.slow
IMAGES = reference_params.reference_images(2, 32, 32)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


@pytest.fixture(scope='module')
def weights_file(tmp_path_factory):
  path = tmp_path_factory.mktemp('weights') / 'digits.npz'
  nfnets.weights.save_weights(path, quick_lib.digits()[1])
  return str(path)


@pytest.fixture
def cpu(monkeypatch, tmp_path):
  """Returns a function that makes up a CPU with instructions."""
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')

  def make(flags, has_bfloat16=False):
    path = tmp_path / 'cpuinfo'
    path.write_text(f'processor\t: 0\nflags\t\t: fpu {flags} ht\n')
    monkeypatch.setattr(runtimes, '_CPUINFO', str(path))
    monkeypatch.setattr(runtimes, 'openvino_has_bfloat16', lambda: has_bfloat16)

  return make


def without(monkeypatch, *names):
  for name in names:
    monkeypatch.setitem(sys.modules, name, None)


def auto(precision='float32'):
  return runtimes.choose('auto', precision).name


def test_auto_is_the_fastest_for_the_processor(cpu, monkeypatch):
  cpu('avx2 avx512f avx512bw', has_bfloat16=True)
  assert auto() == auto('bfloat16') == 'openvino'
  cpu('avx avx2')
  assert (auto(), auto('bfloat16')) == ('onnxruntime', 'jax')
  monkeypatch.setattr(runtimes, '_CPUINFO', '/none')
  assert auto() == 'onnxruntime'
  without(monkeypatch, 'onnxruntime')
  assert auto() == 'openvino'
  without(monkeypatch, 'onnx')
  assert auto() == 'jax'


def test_auto_is_jax_where_it_has_an_accelerator(cpu, monkeypatch):
  cpu('avx2')
  monkeypatch.delenv('JAX_PLATFORMS')
  find = runtimes.importlib.util.find_spec
  monkeypatch.setattr(
    runtimes.importlib.util, 'find_spec', lambda x: x == 'libtpu' or find(x)
  )
  for backend, runtime in (('gpu', 'jax'), ('cpu', 'onnxruntime')):
    monkeypatch.setattr(jax, 'default_backend', lambda found=backend: found)
    assert auto() == runtime


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (('tensorrt',), 'No runtime .*auto, jax, onnxruntime, openvino'),
    (('jax', 'float16'), "No precision 'float16'; there are float32, bfloat16"),
    (('onnxruntime', 'bfloat16'), 'ONNX Runtime does not .* in bfloat16'),
    (('openvino', 'bfloat16'), 'OpenVINO does not .*bfloat16 on this CPU'),
    (('openvino', 'float32', 0), 'at least one thread'),
    (('jax', 'float32', 2), 'JAX takes all cores'),
  ],
)
def test_what_cannot_be_had_is_told(cpu, args, message):
  cpu('avx2')
  with pytest.raises(ValueError, match=message):
    runtimes.choose(*args)


def test_what_is_not_installed_is_named(monkeypatch):
  without(monkeypatch, 'openvino', 'onnx')
  message = r'not installed: openvino, onnx; pip install ".\[openvino\]"'
  with pytest.raises(ValueError, match=message):
    runtimes.choose('openvino')


def saved(tmp_path, name, num_classes, kwargs):
  """Returns a file of a network, and the network in JAX."""
  model = nfnets.create_model(name, num_classes, **kwargs)
  shapes = jax.eval_shape(lambda key: model.init(key, 32), jax.random.key(0))
  params, state = map(reference_params.reference_params, shapes)
  path = tmp_path / 'w.safetensors'
  metadata = nfnets.weights.describe(model)
  nfnets.weights.save_weights(path, params, state, metadata)
  return str(path), networks.of(model, params, state)


def check(path, network, size, sizes, tolerance=1e-5, **options):
  """Compares all outputs for batches of several sizes."""
  images = reference_params.reference_images(max(sizes), size, size)
  found = networks.open_network(path, image_size=size, **options)
  assert found.image_size == size
  out, _ = jax.jit(network.model.apply, static_argnums=4)(
    network.params, network.state, None, images, False
  )
  for count in sizes:
    batch = images[:count]
    outputs = {'pool': found.embed(batch), 'features': found.features(batch)}
    if network.num_classes:
      outputs['logits'] = found.logits(batch)
    else:
      with pytest.raises(ValueError, match='has no last layer'):
        found.logits(batch)
    for key, actual in outputs.items():
      expected = jax.tree.leaves(out[key])
      for x, y in zip(jax.tree.leaves(actual), expected, strict=True):
        y = np.asarray(y)[:count]
        assert x.shape == y.shape and x.dtype == np.float32
        difference = np.max(np.abs(x - y), initial=0)
        assert difference <= tolerance * np.max(np.abs(y), initial=0), key


@pytest.mark.parametrize(
  ('name', 'kwargs', 'num_classes'),
  [
    ('nfnet_f0', {'variant': 'tiny'}, 10),
    pytest.param('timm/nfnet_f0', {'variant': 'tiny'}, 10, marks=SLOW),
    pytest.param('nf_regnet_b0', {'variant': 'tiny'}, 10, marks=SLOW),
    pytest.param('nf_resnet50', {'variant': 'tiny'}, 10, marks=SLOW),
    pytest.param('resnet50', {'variant': 'tiny', 'width': 1}, 10, marks=SLOW),
    pytest.param('resnet50_v1', {'variant': 'tiny', 'width': 1}, 0, marks=SLOW),
    pytest.param('skipinit_resnet50', {'variant': 'tiny'}, 10, marks=SLOW),
    pytest.param('fixup_resnet50', {'variant': 'tiny'}, 10, marks=SLOW),
    pytest.param('timm/eca_nfnet_l0', {}, 10, marks=SLOW),
    pytest.param('timm/nf_resnet50', {}, 10, marks=SLOW),
  ],
)
def test_all_outputs_agree_with_jax(tmp_path, name, kwargs, num_classes):
  with tiny_networks.variants([1, 1, 1, 1]):
    path, network = saved(tmp_path, name, num_classes, kwargs)
    check(path, network, 35, (1, 3, 0), runtime='onnxruntime')
    check(path, network, 35, (3,), runtime='openvino')
    # Several requests at once share a batch.
    check(path, network, 35, (5, 1), runtime='openvino', throughput=True)


@pytest.mark.slow
def test_bfloat16_is_near(tmp_path):
  has_bfloat16 = runtimes.openvino_has_bfloat16()
  with tiny_networks.variants([1, 1, 1, 1]):
    path, network = saved(tmp_path, 'nfnet_f0', 10, {'variant': 'tiny'})
    for runtime in ['jax', 'openvino'] if has_bfloat16 else ['jax']:
      options = {'runtime': runtime, 'precision': 'bfloat16'}
      check(path, network, 32, (2,), tolerance=0.1, **options)
      with pytest.raises(AssertionError):
        check(path, network, 32, (2,), tolerance=1e-4, **options)


def test_loaded_model_runs_for_its_own_parameters(weights_file):
  shared, own = quick_lib.digits()
  model, params, state = nfnets.load(weights_file, runtime='onnxruntime')
  np.testing.assert_allclose(
    model.logits(params, IMAGES), shared.logits(own, IMAGES), atol=1e-5
  )
  assert len(model.features(params, IMAGES, state)) == 5
  model_3, params_3, _ = nfnets.load(weights_file, 3, runtime='onnxruntime')
  assert model_3.logits(params_3, IMAGES).shape == (2, 3)
  for others in (own, {**params, 'NFNet/~/linear': {}}):
    with pytest.raises(ValueError, match='for the parameters that nfnets.load'):
      model.logits(others, IMAGES)
  with pytest.raises(ValueError, match='read-only'):
    params['NFNet/~/linear']['b'][:] = 0
  with pytest.raises(ValueError, match='JAX cannot trace'):
    jax.jit(lambda x: model.embed(params, x))(IMAGES)


def test_openvino_is_imported_without_a_report(tmp_path):
  code = (
    'import os\n'
    'from nfnets.inference import runtimes\n'
    'runtimes.openvino_has_bfloat16()\n'
    "assert 'CI' not in os.environ\n"
    'import openvino_telemetry\n'
    'assert not openvino_telemetry.Telemetry().consent\n'
    'from openvino import convert_model\n'
  )
  env = {**os.environ, 'HOME': str(tmp_path)}
  env.pop('CI', None)
  subprocess.run([sys.executable, '-c', code], check=True, env=env)
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize('runtime', ['onnxruntime', 'openvino'])
def test_a_network_from_the_cache_needs_no_jax(weights_file, runtime):
  networks.open_network(weights_file, runtime=runtime)
  code = (
    'import sys, numpy as np\n'
    'from nfnets.inference import networks\n'
    f'n = networks.open_network({weights_file!r}, runtime={runtime!r})\n'
    'x = n.preprocess(np.zeros((40, 50, 3), np.uint8))\n'
    'assert n.logits(x[None]).shape == (1, 10)\n'
    "names = {'jax', 'haiku', 'tensorflow', 'onnx'} & set(sys.modules)\n"
    'assert not names, names'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


@pytest.fixture
def made(monkeypatch):
  """Returns a list that grows whenever a graph is made."""
  calls = []
  write = onnx_graph.write

  def count(*args):
    calls.append(args)
    return write(*args)

  monkeypatch.setattr(onnx_graph, 'write', count)
  return calls


def answer(weights_file, *args, **kwargs):
  kwargs.setdefault('runtime', 'onnxruntime')
  return networks.open_network(weights_file, *args, **kwargs).logits(IMAGES)


def test_graph_is_made_once_for_all_runtimes(made, tmp_path):
  model, params = quick_lib.digits()
  path = tmp_path / 'named.npz'
  names = ('"zéro"', *'123456789')
  metadata = nfnets.weights.describe(model, class_names=[*names])
  nfnets.weights.save_weights(path, params, metadata=metadata)
  first = answer(str(path))
  np.testing.assert_array_equal(answer(str(path)), first)
  for runtime in ('onnxruntime', 'openvino'):
    found = networks.open_network(str(path), runtime=runtime)
    np.testing.assert_allclose(found.logits(IMAGES), first, rtol=1e-4)
    assert (found.name, found.class_names) == (model.name, names)
    np.testing.assert_array_equal(found.mean, model.entry.mean)
    np.testing.assert_array_equal(found.std, model.entry.std)
  assert len(made) == 1


def test_what_changes_a_graph_has_one_made(
  weights_file, made, monkeypatch, tmp_path
):
  first = answer(weights_file)
  other = tmp_path / 'other.npz'
  params = quick_lib.digits()[1]
  last = jax.tree.map(lambda x: x + 1, params['NFNet/~/linear'])
  nfnets.weights.save_weights(other, {**params, 'NFNet/~/linear': last})
  assert np.all(answer(str(other)) != first)
  assert len(made) == 2
  networks.open_network(weights_file, image_size=40, runtime='onnxruntime')
  assert len(made) == 3
  monkeypatch.setattr(graphs, '_makers', lambda: ('', {'jax': '0'}))
  answer(weights_file)
  assert len(made) == 4


@pytest.mark.parametrize(
  ('runtime', 'suffix'), [('onnxruntime', 'onnx'), ('openvino', 'data')]
)
def test_a_graph_that_is_cut_short_is_made_again(
  weights_file, made, runtime, suffix
):
  first = answer(weights_file)
  [path] = graphs.folder().glob(f'*.{suffix}')
  os.truncate(path, 1000)
  np.testing.assert_allclose(
    answer(weights_file, runtime=runtime), first, rtol=1e-4
  )
  assert len(made) == 2
  path.unlink()
  np.testing.assert_array_equal(answer(weights_file), first)
  assert len(made) == 3 and len(os.listdir(graphs.folder())) == 2


def file_in_place(folder):
  folder.parent.mkdir(parents=True)
  folder.write_text('no folder')


def folder_of_everybody(folder):
  folder.mkdir(parents=True)
  folder.chmod(0o777)


@pytest.mark.parametrize('make', [file_in_place, folder_of_everybody])
def test_a_folder_that_cannot_be_trusted_is_done_without(
  weights_file, made, caplog, make
):
  make(graphs.folder())
  assert answer(weights_file).shape == (2, 10)
  assert 'The graph is not kept' in caplog.text
  assert len(made) == 1


def test_a_full_disk_leaves_nothing_in_the_cache(
  weights_file, made, monkeypatch, caplog
):
  write = onnx_graph.write

  def fill(network, path, *args):
    if str(graphs.folder()) in path:
      with open(f'{path}.data', 'wb') as file:
        file.write(b'half')
      raise OSError(28, 'No space left on device')
    return write(network, path, *args)

  monkeypatch.setattr(onnx_graph, 'write', fill)
  assert answer(weights_file).shape == (2, 10)
  assert 'No space left on device' in caplog.text
  assert os.listdir(graphs.folder()) == []


def test_what_was_not_used_for_longest_is_removed(weights_file, monkeypatch):
  monkeypatch.setattr(graphs, '_MAX_BYTES', 2_500_000)  # Two of 1.1 MB.
  made = []
  for size in (32, 40, 32, 48):
    networks.open_network(weights_file, image_size=size, runtime='onnxruntime')
    made.append({*graphs.folder().glob('*.onnx')})
    for path in made[-1]:
      os.utime(path, (0, path.stat().st_mtime - 100))
  [first] = made[0]
  assert first in made[-1] and len(made[-1]) == 2
  assert len(os.listdir(graphs.folder())) == 4
