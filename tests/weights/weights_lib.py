"""What the tests of files of weights share."""

import io
import zipfile

import numpy as np
import pytest

from nfnets.weights import files


def assert_same(tree, expected):
  """Asserts that trees agree, and have arrays that are fit for use."""
  assert type(tree) is dict
  assert {m: set(leaves) for m, leaves in tree.items()} == {
    m: set(leaves) for m, leaves in expected.items()
  }
  for module, leaves in expected.items():
    assert type(tree[module]) is dict
    for name, leaf in leaves.items():
      actual = tree[module][name]
      assert type(actual) is np.ndarray and actual.shape == np.shape(leaf)
      assert actual.dtype == np.dtype(leaf.dtype).newbyteorder('=')
      assert actual.flags.writeable and actual.flags.aligned
      np.testing.assert_array_equal(actual, leaf)


def refusal(path, load=files.load_weights) -> str:
  """Returns why a file is refused, in a sentence that begins with its name."""
  with pytest.raises(ValueError) as caught:
    load(path)
  message = str(caught.value)
  assert message.startswith(f'{path}: ') and message.endswith('.')
  assert len(message) < 700
  return message


def load_bytes(folder, content):
  """Reads a file with this content."""
  path = folder / 'F0_haiku.npz'
  path.write_bytes(content)
  return files.load_haiku_file(path)


def refusal_of_bytes(folder, content) -> str:
  """Returns why a file with this content is refused."""
  path = folder / 'F0_haiku.npz'
  path.write_bytes(content)
  return refusal(path)


def zipped(**members):
  """Returns a zip archive of these files."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
    for name, content in members.items():
      archive.writestr(name, content)
  return file.getvalue()
