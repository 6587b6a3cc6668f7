"""Compares NFNet-F0 with `nfnets.conv`'s lowering and with XLA's convolution.

python benchmarks/conv_lowering.py [--timm_python=/path/to/python]

Prints the seconds of forward and backward pass ('train') and of inference in
float32. --timm_python, the Python of an environment with timm and PyTorch, adds
timm's `dm_nfnet_f0`. The last line of standard output is JSON.
"""

import sys

import timing


def _serve(form: str) -> None:
  """Serve F0 in one form."""
  if form == 'timm':
    return timing.serve_timm('float32')
  import jax
  import jax.numpy as jnp
  import numpy as np

  from nfnets import conv, utils

  model, params, _ = timing.random_network()

  def prepare(what, batch, size):
    labels = jax.nn.one_hot(jnp.arange(batch), 1000)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, size, size, 3), np.float32)

    def loss(params, images):
      out, _ = model.apply(params, {}, jax.random.key(1), images, True)
      return jnp.mean(utils.softmax_cross_entropy(out['logits'], labels))

    def infer(params, images):
      return model.apply(params, {}, None, images, False)[0]['logits']

    fn = jax.grad(loss) if what == 'train' else infer
    with conv.lowering(form):
      compiled = jax.jit(fn).lower(params, images).compile()
    return lambda: jax.block_until_ready(compiled(params, images))

  timing.serve(prepare)


def main() -> None:
  """Run the benchmark."""
  sizes = {'train_size': 192, 'test_size': 256}
  args = timing.arguments(
    __doc__, batch=8, **sizes, repeats=5, timm_python=None, serve=None
  )
  if args.serve:
    return _serve(args.serve)
  pythons = {'plain': sys.executable, 'split': sys.executable}
  if args.timm_python:
    pythons['timm'] = args.timm_python
  found = timing.take_turns(
    {form: [x, __file__, f'--serve={form}'] for form, x in pythons.items()},
    [f'train {args.batch} {args.train_size}']
    + [f'infer {args.batch} {args.test_size}'],
    args.repeats,
  )
  timing.emit(seconds=found)


if __name__ == '__main__':
  main()
