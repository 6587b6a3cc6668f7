"""Compares the runtimes and precisions with JAX in float32, family by family.

python benchmarks/agreement.py [--weights=digits.npz]

Networks of every family, with random weights in which no block does nothing,
get random crops of two photographs (scikit-learn's). Prints, for each runtime
and precision, the largest difference of a logit, as a part of the largest logit
of that image, and how many images have the same most probable class. The last
line of standard output is JSON.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile

import jax
import numpy as np
from PIL import Image
from sklearn import datasets

import nfnets
from nfnets import weights
from nfnets.inference import networks

_NAMES = (
  'nfnet_f0',
  'nf_regnet_b0',
  'nf_resnet50',
  'resnet50',
  'skipinit_resnet50',
  'fixup_resnet50',
  'timm/nfnet_l0',
  'timm/eca_nfnet_l0',
  'timm/nf_resnet50',
)
_WAYS = (
  ('onnxruntime', 'float32'),
  ('openvino', 'float32'),
  ('openvino', 'bfloat16'),
  ('jax', 'bfloat16'),
)


def _crops(count: int, size: int) -> np.ndarray:
  """Returns crops of photographs, uint8 [count, size, size, 3]."""
  rng = np.random.default_rng(0)
  photos = datasets.load_sample_images().images
  crops = []
  for i in range(count):
    photo = photos[i % len(photos)]
    side = rng.integers(100, min(photo.shape[:2]))
    top, left = (rng.integers(n - side + 1) for n in photo.shape[:2])
    crop = Image.fromarray(photo[top : top + side, left : left + side])
    crops.append(
      np.asarray(crop.resize((size, size), Image.Resampling.BICUBIC))
    )
  return np.stack(crops)


def _network(name: str, size: int) -> networks.Network:
  """Returns a network with random weights, whose blocks all do something."""
  model = nfnets.create_model(name)
  entry = dataclasses.replace(model.entry, test_size=size)
  model = dataclasses.replace(model, entry=entry)
  params, state = jax.device_get(model.init(jax.random.key(0), 64))
  rng = np.random.default_rng(0)
  for leaves in params.values():
    for key, x in leaves.items():
      if key == 'skip_gain':
        leaves[key] = np.float32(rng.uniform(0.5, 1.5))
      elif not np.any(x):
        width = np.sqrt(np.prod(x.shape[:-1])) if x.ndim > 1 else 10
        x = rng.normal(0, 1 / width, x.shape)
        leaves[key] = x.astype(np.float32)
  return networks.of(model, params, state)


def _compare(path: str, reference: networks.Network, images: np.ndarray):
  """Yields what differs for each runtime and precision."""
  images = reference.normalize(images.astype(np.float32))
  batches = np.array_split(images, -(-len(images) // 8))
  expected = np.concatenate([reference.logits(x) for x in batches])
  for runtime, precision in _WAYS:
    network = networks.open_network(
      *(path, None, reference.image_size), runtime=runtime, precision=precision
    )
    actual = np.concatenate([network.logits(x) for x in batches])
    largest = np.max(np.abs(expected), axis=1)
    error = np.max(np.abs(actual - expected), axis=1) / largest
    same = np.argmax(actual, axis=1) == np.argmax(expected, axis=1)
    yield f'{runtime}, {precision}', float(error.max()), float(same.mean())


def main() -> None:
  """Runs the comparison."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--networks', default=','.join(_NAMES))
  parser.add_argument('--image_size', type=int, default=160, help='pixels')
  parser.add_argument('--images', type=int, default=64)
  parser.add_argument('--weights', help='trained ones, in their own size')
  args = parser.parse_args()
  results = {}
  with tempfile.TemporaryDirectory() as folder:
    os.environ['XDG_CACHE_HOME'] = folder  # Graphs that nobody needs again.
    for name in [args.weights] if args.weights else args.networks.split(','):
      if args.weights:
        path, network = name, networks.open_network(name)
      else:
        path, network = f'{folder}/w.npz', _network(name, args.image_size)
        metadata = weights.describe(network.model)
        weights.save_weights(path, network.params, network.state, metadata)
      images = _crops(args.images, network.image_size)
      for way, error, same in _compare(path, network, images):
        print(f'{name:20} {way:22} {error:.1e} {same:7.1%}', file=sys.stderr)
        results.setdefault(name, {})[way] = {'error': error, 'top1': same}
  print(json.dumps(results))


if __name__ == '__main__':
  main()
