"""Writes docs/api.md, the index of the Python interface, from docstrings.

python tools/write_api.py [--check]

The page has the signature of each public name, and the summary and the example
of its docstring. `--check` writes nothing, and fails if the page is out of date
or an example fails.
"""

import argparse
from collections.abc import Callable
import doctest
import importlib
import inspect
import os
import pathlib
import re
import sys
import tempfile
from typing import Any

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_PAGE = _ROOT / 'docs' / 'api.md'
# None: the names in `__all__`.
_MODULES = {
  'nfnets': None,
  'nfnets.optim': None,
  'nfnets.weights': None,
  'nfnets.utils': None,
  'nfnets.base': ('WSConv2D', 'SqueezeExcite', 'StochDepth', 'signal_metrics'),
  'nfnets.nfnet': ('NFNet',),
  'nfnets.nf_resnet': ('NF_ResNet',),
  'nfnets.nf_regnet': ('NF_RegNet',),
  'nfnets.resnet': ('ResNet',),
  'nfnets.skipinit_resnet': ('SkipInit_ResNet',),
  'nfnets.fixup_resnet': ('FixUp_ResNet',),
  'nfnets.data.preprocess': None,
  'nfnets.data.autoaugment': None,
}
_ARRAY = re.compile(r'array\(.*?\)', re.S)  # A default.
_SET_UP = """\
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tensorflow as tf

import nfnets
from nfnets import base, optim, utils, weights
from nfnets import fixup_resnet, nf_regnet, nf_resnet, nfnet, resnet
from nfnets import skipinit_resnet
from nfnets.data import autoaugment, preprocess

model = nfnets.create_model('nfnet_digits', num_classes=10)
params, state = model.init(jax.random.key(0))
layers = {'net/~/linear': {'w': jnp.ones((8, 4)), 'b': jnp.zeros(4)}}
grads = jax.tree.map(jnp.ones_like, layers)
images = jnp.zeros((2, 32, 32, 3))
labels = jax.nn.one_hot(jnp.array([3, 7]), 10)
weights.save_weights('digits.npz', params)
weights.save_weights('digits.safetensors', params)

image = tf.zeros((32, 32, 3), tf.uint8)
png = tf.io.encode_png(image)
seed = tf.constant([0, 1])

timm_model = nfnets.create_model('timm/test_nfnet')
timm_params, _ = timm_model.init(jax.random.key(0))
tensors = weights.to_timm('test_nfnet', timm_params)
"""
_HEAD = f"""\
# The Python interface

This page lists every public name with its signature and an example.
`help(name)` prints the whole docstring: shapes, dtypes, units and errors.
`python tools/write_api.py` writes this page, and the tests run the examples
after

```python
{_SET_UP}```

Images are float32 [B, H, W, 3], normalized, unless a docstring says otherwise.
Parameters and state are Haiku's trees, {{module: {{name: array}}}}.
"""


def _public() -> dict[str, list[tuple[str, Any]]]:
  """Return {module: [(name, value)]}."""
  public = {}
  for name, members in _MODULES.items():
    module = importlib.import_module(name)
    members = members or module.__all__
    public[name] = [(member, getattr(module, member)) for member in members]
  return public


def signature(function: Callable) -> str:
  """Return the arguments and their defaults, without types."""
  parameters = inspect.signature(function).parameters.values()
  own = [p.replace(annotation=p.empty) for p in parameters if p.name != 'self']
  text = str(inspect.Signature(own))
  for default in (p.default for p in own if callable(p.default)):
    text = text.replace(repr(default), default.__name__)  # No address.
  return text


def make_page() -> str:
  """Return the page.

  Raises:
    ValueError: if a docstring has no example.
  """
  lines = [_HEAD.rstrip()]
  for module, members in _public().items():
    # The networks, one in a module, share a table.
    heading, prefix = module, ''
    if len(members) == 1:
      heading, prefix = 'Networks', f'{module.partition(".")[2]}.'
    if f'## {heading}' not in lines:
      lines += ['', f'## {heading}', '', '| name | summary | example |']
      lines.append('|---|---|---|')
    for name, value in members:
      text = inspect.getdoc(value)
      _, found, example = text.partition('\nExample:\n')
      if not found:
        raise ValueError(f'The docstring of {module}.{name} has no example.')
      cells = (
        f'`{prefix}{name}{_ARRAY.sub("...", signature(value))}`',
        text.split('\n\n')[0].replace('\n', ' '),
        '<br>'.join(f'`{x.strip()}`' for x in example.strip().split('\n')),
      )
      cells = (cell.replace('|', '\\|') for cell in cells)
      lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines) + '\n'


def run_examples() -> int:
  """Run all examples in a temporary folder; return the number of failures."""
  runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
  with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    names = {}
    exec(_SET_UP, names)
    parser = doctest.DocTestParser()
    for module, members in _public().items():
      for name, value in members:
        text = inspect.getdoc(value)
        runner.run(
          parser.get_doctest(text, dict(names), f'{module}.{name}', None, 0)
        )
    os.chdir(_ROOT)
  return runner.summarize(verbose=False).failed


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--check', action='store_true', help='write nothing')
  args = parser.parse_args()
  page = make_page()
  if not args.check:
    _PAGE.write_text(page)
    return 0
  if page != _PAGE.read_text():
    print(f'{_PAGE} is out of date: run tools/write_api.py.', file=sys.stderr)
    return 1
  return int(run_examples() > 0)


if __name__ == '__main__':
  sys.path.insert(0, str(_ROOT))
  sys.exit(main())
