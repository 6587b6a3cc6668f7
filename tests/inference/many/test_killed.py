"""A command that is killed while it computes, as by a machine that goes."""

import os
import signal
import subprocess
import sys
import time

import golden_lib
import numpy as np
from PIL import Image
import pytest
import quick_lib

from nfnets import weights


@pytest.mark.slow
def test_what_was_killed_is_gone_on_with(tmp_path):
  folder = tmp_path / 'pictures'
  folder.mkdir()
  rng = np.random.default_rng(0)
  for i in range(300):
    pixels = rng.integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f'{i:03}.png')
  weights.save_weights(tmp_path / 'w.npz', quick_lib.digits()[1])

  def start(output, *args):
    return subprocess.Popen(
      [
        *(sys.executable, '-m', 'nfnets.embed', folder, '--batch_size=1'),
        *(f'--weights={tmp_path / "w.npz"}', '--runtime=jax'),
        *(f'--output={output}', *args),
      ],
      cwd=golden_lib.GOLDEN.parents[1],
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )

  output, whole = tmp_path / 'x.npz', tmp_path / 'whole.npz'
  rows = tmp_path / 'x.npz.partial' / 'rows.jsonl'
  process = start(output)
  while process.poll() is None and not (
    rows.exists() and rows.read_bytes().count(b'\n') > 20
  ):
    time.sleep(0.01)
  process.kill()
  assert process.wait() == -signal.SIGKILL and not output.exists()
  done = rows.stat().st_size
  process = start(output, '--resume')
  assert process.wait() == 0 and done
  assert start(whole).wait() == 0
  with np.load(output) as found, np.load(whole) as expected:
    assert set(found) == set(expected)
    np.testing.assert_array_equal(found['paths'], expected['paths'])
    np.testing.assert_allclose(
      found['embeddings'], expected['embeddings'], rtol=1e-5, atol=1e-5
    )
  assert sorted(os.listdir(tmp_path)) == [
    *('pictures', 'w.npz', 'whole.npz', 'x.npz')
  ]
