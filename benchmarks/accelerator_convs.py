"""The part of accelerator.py on F0's grouped convolutions.

python benchmarks/accelerator_convs.py SIZES

takes SIZES as accelerator.py gives them, in JSON. Prints a line of JSON for
each form and layout.
"""

import json
import sys

import accelerator_timing as timing
import jax
import jax.numpy as jnp

# Of F0's stages at 192 px: side of the map, channels, groups of the 3x3
# convolutions in a stage's later blocks.
_CONVS = ((48, 128, 1), (24, 256, 2), (12, 768, 6), (6, 768, 6))


def _convolution(form: str, layout: str, groups: int):
  """Returns a function from (images, kernel) to images."""
  axis = layout.index('C')
  kernel_layout = 'HWIO' if layout == 'NHWC' else 'OIHW'
  out_axis = kernel_layout.index('O')

  def plain(x, w, count):
    return jax.lax.conv_general_dilated(
      x,
      w,
      (1, 1),
      'SAME',
      dimension_numbers=(layout, kernel_layout, layout),
      feature_group_count=count,
    )

  def split(x, w):
    parts = zip(
      jnp.split(x, groups, axis), jnp.split(w, groups, out_axis), strict=True
    )
    return jnp.concatenate([plain(a, b, 1) for a, b in parts], axis)

  def dense(x, w):
    in_axis = kernel_layout.index('I')
    width = w.shape[in_axis]
    rows = []
    for i, part in enumerate(jnp.split(w, groups, out_axis)):
      pads = [(0, 0)] * 4
      pads[in_axis] = (i * width, (groups - 1 - i) * width)
      rows.append(jnp.pad(part, pads))
    return plain(x, jnp.concatenate(rows, out_axis), 1)

  return {
    'grouped': lambda x, w: plain(x, w, groups),
    'split': split,
    'dense': dense,
  }[form]


def main() -> None:
  """Runs this part."""
  sizes = json.loads(sys.argv[1])
  batch = sizes['conv_batch']
  for side, channels, groups in _CONVS:
    for form in ('grouped', 'split', 'dense') if groups > 1 else ('grouped',):
      for layout in ('NHWC', 'NCHW'):
        shape = {'N': batch, 'H': side, 'W': side, 'C': channels}
        x = jnp.ones([shape[axis] for axis in layout], jnp.bfloat16)
        width = channels // groups
        kernel = (3, 3, width, channels)
        if layout == 'NCHW':
          kernel = (channels, width, 3, 3)
        w = jnp.ones(kernel, jnp.bfloat16)
        conv = _convolution(form, layout, groups)
        # Of a linear function, a gradient needs no forward pass.
        gradients = {
          'forward': lambda x, w, g, conv=conv: conv(x, w),
          'for_images': lambda x, w, g, conv=conv: jax.vjp(
            lambda x: conv(x, w), x
          )[1](g),
          'for_kernel': lambda x, w, g, conv=conv: jax.vjp(
            lambda w: conv(x, w), w
          )[1](g),
        }
        milliseconds = {}
        for name, fn in gradients.items():
          compiled = jax.jit(fn).lower(x, w, x).compile()
          run = timing.loop(compiled, x, w, x)
          seconds = timing.median_seconds(run, sizes['seconds'] / 20)
          milliseconds[name] = round(1e3 * seconds, 4)
        timing.emit(
          side=side,
          channels=channels,
          groups=groups,
          batch=batch,
          form=form,
          layout=layout,
          milliseconds=milliseconds,
        )


if __name__ == '__main__':
  main()
