"""Compares runtimes and precisions with JAX in float32, for each family.

python benchmarks/agreement.py [--weights=digits.npz]

The inputs are random crops of two photographs (from scikit-learn). The networks
have random weights without zero gains, or --weights at their image size. Prints
for each runtime and precision the largest logit difference / largest logit of
that image, and the share of images with the same most probable class. The last
line of standard output is JSON.
"""

import os
import pathlib
import tempfile

import numpy as np
from PIL import Image
from sklearn import datasets
import timing

_NAMES = (
  'nfnet_f0,nf_regnet_b0,nf_resnet50,resnet50,skipinit_resnet50,'
  'fixup_resnet50,timm/nfnet_l0,timm/eca_nfnet_l0,timm/nf_resnet50'
)
_WAYS = (
  ('onnxruntime', 'float32'),
  ('openvino', 'float32'),
  ('openvino', 'bfloat16'),
  ('jax', 'bfloat16'),
)


def _crops(count: int, size: int) -> np.ndarray:
  """Return crops of photographs, uint8 [count, size, size, 3]."""
  rng = np.random.default_rng(0)
  photos = datasets.load_sample_images().images
  crops = []
  for i in range(count):
    photo = photos[i % len(photos)]
    side = rng.integers(100, min(photo.shape[:2]))
    top, left = (rng.integers(n - side + 1) for n in photo.shape[:2])
    crop = Image.fromarray(photo[top : top + side, left : left + side])
    crops.append(crop.resize((size, size), Image.Resampling.BICUBIC))
  return np.stack(crops)


def main() -> None:
  """Run the comparison."""
  args = timing.arguments(
    __doc__, networks=_NAMES, image_size=160, images=64, weights=None
  )
  import jax

  import nfnets
  from nfnets import weights

  results = {}
  with tempfile.TemporaryDirectory() as folder:
    os.environ['XDG_CACHE_HOME'] = folder  # The graphs are not needed again.
    for name in [args.weights] if args.weights else args.networks.split(','):
      path, size = name, None
      if not args.weights:
        path, size = pathlib.Path(folder) / 'w.npz', args.image_size
        timing.save_random_network(path, name)
      logits, batches = {}, None
      for way in (('jax', 'float32'), *_WAYS):
        runtime, precision = way
        on_jax = runtime == 'jax'
        model, params, state = nfnets.load(
          str(path),
          runtime=runtime,
          precision='float32' if on_jax else precision,
        )
        dtype = precision if on_jax else 'float32'
        if dtype == 'bfloat16':  # Standardize kernels in float32.
          params = weights.fold_weights(params, model)
          params = jax.tree.map(lambda x: x.astype('bfloat16'), params)
        if batches is None:
          images = _crops(args.images, size or model.test_size)
          images = model.normalize(images.astype(np.float32))
          batches = np.array_split(images, -(-len(images) // 8))
        found = [model.logits(params, x.astype(dtype), state) for x in batches]
        logits[way] = np.concatenate(found).astype(np.float32)
      expected = logits.pop(('jax', 'float32'))
      largest = np.max(np.abs(expected), axis=1)
      results[name] = {
        ', '.join(way): {
          'error': float((np.abs(x - expected).max(1) / largest).max()),
          'top1': float((x.argmax(1) == expected.argmax(1)).mean()),
        }
        for way, x in logits.items()
      }
      timing.say(name)
      timing.table(results[name])
  timing.emit(**results)


if __name__ == '__main__':
  main()
