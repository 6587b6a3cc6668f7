"""What depends on weights alone, computed on all cores when it is needed."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
import math
import os
import threading
from typing import Any

import numpy as np

# Elements from which on an array is worth a thread's while.
_LARGE = 10_000


class Deferred:
  """An array that is not computed yet; its shape and dtype are known."""

  def __init__(
    self, shape: Sequence[int], dtype: Any, compute: Callable[[], np.ndarray]
  ):
    self.shape = tuple(shape)
    self.dtype = np.dtype(dtype)
    self._compute: Callable[[], np.ndarray] | None = compute
    self._array: np.ndarray | None = None
    self._lock = threading.Lock()

  @property
  def ndim(self) -> int:
    return len(self.shape)

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  @property
  def nbytes(self) -> int:
    return self.size * self.dtype.itemsize

  def reshape(self, shape: Sequence[int]) -> 'Deferred':
    shape = np.empty(self.shape, np.bool_).reshape(shape).shape
    return Deferred(shape, self.dtype, lambda: array(self).reshape(shape))

  def transpose(self, axes: Sequence[int]) -> 'Deferred':
    shape = [self.shape[axis] for axis in axes]
    return Deferred(shape, self.dtype, lambda: array(self).transpose(axes))

  def array(self) -> np.ndarray:
    """Returns the array; it is computed once, whoever asks."""
    with self._lock:
      if self._compute is not None:
        self._array = self._compute()
        self._compute = None  # And what it needed.
      return self._array


Known = np.ndarray | Deferred


def known(x: Any) -> Known:
  """Returns a number or an array of any kind as one of these."""
  return x if isinstance(x, Deferred) else np.asarray(x)


def array(x: Known) -> np.ndarray:
  """Returns an array, computed now if need be."""
  return x.array() if isinstance(x, Deferred) else x


def apply(
  function: Callable[..., np.ndarray],
  args: Iterable[Any],
  dtype: Any,
  shape: Sequence[int] | None = None,
) -> Known:
  """Calls a function of arrays, later if some of them are large.

  Args:
    function: of arrays.
    args: the arrays, or numbers.
    dtype: of the result.
    shape: of the result; what the arguments are broadcast to if None.
  """
  args = [known(x) for x in args]
  if all(isinstance(x, np.ndarray) and x.size < _LARGE for x in args):
    return function(*args)
  if shape is None:
    shape = np.broadcast_shapes(*(x.shape for x in args))
  return Deferred(shape, dtype, lambda: function(*map(array, args)))


def compute(arrays: Sequence[Known]) -> Iterator[np.ndarray]:
  """Yields the arrays in their order, while the next are computed."""
  with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    yield from pool.map(array, arrays)
