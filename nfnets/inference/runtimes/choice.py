"""Which runtime there is for a device and a precision."""

import importlib.util
import os
import sys

from nfnets.inference.runtimes import (
  PRECISIONS,
  RUNTIMES,
  RuntimeMissingError,
)

TITLES = {'jax': 'JAX', 'onnxruntime': 'ONNX Runtime', 'openvino': 'OpenVINO'}
# The fastest first; and the extra of this project that brings a runtime.
_ON_CPUS = {'openvino': 'openvino', 'onnxruntime': 'onnx'}


def choose(runtime: str, precision: str) -> str:
  """Returns the runtime to take.

  Args:
    runtime: one of `RUNTIMES`. 'auto' is JAX where it sees an accelerator, and
      else the fastest one for a CPU that is installed.
    precision: one of `PRECISIONS`.

  Raises:
    RuntimeMissingError: if it is not installed, or does not have the precision.
    ValueError: for other names.
  """
  for what, name, known in (
    ('runtime', runtime, RUNTIMES),
    ('precision', precision, PRECISIONS),
  ):
    if name not in known:
      raise ValueError(f'No {what} {name!r}; there are {", ".join(known)}.')
  if runtime == 'auto':
    if _has_accelerator():
      return 'jax'
    for name in _ON_CPUS:
      if not _missing(name) and _can(name, precision):
        return name
    return 'jax'
  if missing := _missing(runtime):
    raise RuntimeMissingError(
      f'{TITLES[runtime]} needs packages that are not installed: '
      f'{", ".join(missing)}; pip install ".[{_ON_CPUS[runtime]}]" in the '
      'folder of this project.'
    )
  if not _can(runtime, precision):
    raise RuntimeMissingError(
      f'{TITLES[runtime]} does not compute in {precision} on this CPU; it does '
      'in float32, and JAX does in both.'
      if runtime == 'openvino'
      else 'ONNX Runtime does not compute in bfloat16 on a CPU; it does in '
      'float32, and OpenVINO and JAX do in both.'
    )
  return runtime


def _missing(runtime: str) -> list[str]:
  """Returns the packages that a runtime lacks."""
  if runtime == 'jax':
    return []
  # The graph is made by means of the second.
  return [name for name in (runtime, 'onnx') if not _is_installed(name)]


def _can(runtime: str, precision: str) -> bool:
  """Returns whether a runtime that is installed has a precision here."""
  if precision == 'float32' or runtime == 'jax':
    return True
  if runtime == 'onnxruntime':
    return False
  from nfnets.inference.runtimes import openvino_runtime

  return openvino_runtime.has_bfloat16()


def _is_installed(name: str) -> bool:
  if name in sys.modules:
    return sys.modules[name] is not None
  return importlib.util.find_spec(name) is not None


def _has_accelerator() -> bool:
  """Returns whether JAX computes on anything but a CPU.

  JAX is not imported for that where there are no packages for accelerators.
  """
  if os.environ.get('JAX_PLATFORMS') == 'cpu':
    return False
  if not (_is_installed('jax_plugins') or _is_installed('libtpu')):
    return False
  import jax

  return jax.default_backend() != 'cpu'
