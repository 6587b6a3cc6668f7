"""Learning rates, against golden values and closed forms."""

import golden_lib
import jax
import numpy as np
import pytest

from nfnets import optim


def test_warmup_and_cosine_agree_with_golden():
  golden = golden_lib.load('sgd_agc')['lr']
  schedule = optim.warmup_cosine(1.6, 4.5, 20)
  rates = jax.jit(jax.vmap(schedule))(np.arange(21))
  np.testing.assert_allclose(rates, golden, rtol=1e-5, atol=1e-6)


def test_recipe_of_f0_agrees_with_golden():
  golden = golden_lib.load('sgd_agc')
  steps_per_epoch = 1_281_167 / 4096
  schedule = optim.warmup_cosine(
    0.1 * 4096 / 256, 5 * steps_per_epoch, 360 * steps_per_epoch
  )
  rates = [schedule(step) for step in golden['f0_lr_steps']]
  np.testing.assert_allclose(rates, golden['f0_lr'], rtol=2e-5, atol=1e-7)


def test_rate_ends_and_stays_at_its_end():
  schedule = optim.warmup_cosine(0.4, 3, 10, end=0.001)
  np.testing.assert_allclose(schedule(0), 0, atol=1e-9)
  np.testing.assert_allclose(schedule(3), 0.4, rtol=1e-6)
  np.testing.assert_allclose(schedule(6.5), (0.4 + 0.001) / 2, rtol=1e-5)
  for step in (10, 11, 10_000):
    np.testing.assert_allclose(schedule(step), 0.001, rtol=1e-5)


def test_without_warmup_the_rate_starts_at_its_peak():
  schedule = optim.warmup_cosine(0.3, 0, 10)
  np.testing.assert_allclose(schedule(0), 0.3, rtol=1e-6)
  np.testing.assert_allclose(schedule(5), 0.15, rtol=1e-5)
  assert np.isfinite([schedule(step) for step in range(12)]).all()


@pytest.mark.parametrize(('warmup', 'total'), [(10, 10), (11, 10), (-1, 10)])
def test_warmup_that_does_not_fit_is_refused(warmup, total):
  with pytest.raises(ValueError, match=f'warm-up of {warmup} .* {total} steps'):
    optim.warmup_cosine(0.1, warmup, total)
