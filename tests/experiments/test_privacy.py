"""What private training says that it tells of an example."""

import itertools
import json
import math
import sys

import command_lib
import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from experiments import configs, privacy, recipe

# ImageNet's training images, less the 10,000 that were held out.
_PUBLISHED_EXAMPLES = 1_271_167


def _privacy(**settings):
  return privacy.Privacy(
    **{
      'noise_multiplier': 2.0,
      'delta': 1e-5,
      'budget': 3.0,
      'clipping': 0.5,
      'batch_size': 32,
      'num_examples': 1000,
      **settings,
    }
  )


def test_the_recipe_is_the_published_one(monkeypatch):
  monkeypatch.setattr(recipe, '_FAKE_EXAMPLES', _PUBLISHED_EXAMPLES)
  ours = configs.load('nf_resnet50:private').experiment_kwargs.config
  assert (ours.which_dataset, ours.eval_subset) == ('imagenet2012', 'valid')
  assert ours.augmentation_multiplicity == 4
  assert (ours.train_preproc, ours.augment_name) == ('crop_flip', '')
  ours.fake_data = True
  built = recipe.build(ours, jax.random.key(0))
  assert (built.num_steps, ours.train_batch_size) == (71_589, 16_384)
  assert float(built.schedule(0)) == float(built.schedule(70_000)) == 4
  assert (ours.clip_per_example, ours.per_example.clipping) == ('norm', 1)
  private = built.privacy
  assert (private.noise_multiplier, private.delta) == (2.5, 8e-7)
  assert private.budget == 8 and private.num_examples == _PUBLISHED_EXAMPLES
  assert (ours.which_ema, ours.ema_decay) == ('tf1_ema', 0.99999)
  assert ours.label_smoothing == 0 and not ours.optimizer.kwargs
  kwargs = ours.model_kwargs
  assert (kwargs.stochdepth_rate, kwargs.drop_rate) == (0, 0)
  assert built.model.overrides['skipinit_gain'] is jnp.ones


def test_the_published_settings_give_the_published_epsilon():
  """8 by the accountant of the time, Renyi's; ours is a closer bound."""
  config = configs.load('nf_resnet50:private').experiment_kwargs.config
  private = privacy.make(config, _PUBLISHED_EXAMPLES)
  event = dp_accounting.PoissonSampledDpEvent(
    private.batch_size / _PUBLISHED_EXAMPLES,
    dp_accounting.GaussianDpEvent(private.noise_multiplier),
  )
  accountant = dp_accounting.rdp.RdpAccountant().compose(
    event, config.num_steps
  )
  published = accountant.get_epsilon(private.delta)
  assert published == pytest.approx(8.0, abs=1e-3)
  assert 7.4 < private.epsilon(config.num_steps) < published


def _closed_form(sigma, delta):
  """Epsilon of one Gaussian mechanism (arXiv 1805.06530, theorem 8)."""

  def excess(epsilon):
    low, high = (
      stats.norm.cdf(s / 2 / sigma - epsilon * sigma) for s in (1, -1)
    )
    return low - math.exp(epsilon) * high - delta

  return optimize.brentq(excess, 0, 100)


def test_without_sampling_epsilon_is_the_closed_form():
  private = _privacy(batch_size=1000, num_examples=1000)
  for steps in (1, 9):
    expected = _closed_form(2 / math.sqrt(steps), 1e-5)
    assert private.epsilon(steps) == pytest.approx(expected, rel=1e-2)
    assert private.epsilon_of_any_order(steps) == pytest.approx(expected)


@pytest.mark.parametrize('examples, batch', [(6, 3), (5, 3), (4, 3)])
def test_any_order_is_the_worst_of_them(examples, batch):
  """Each place that an example can have in each epoch is tried."""
  epochs, most = 4, 0
  steps = epochs * examples // batch
  for places in itertools.product(range(examples), repeat=epochs):
    at = [(e * examples + place) // batch for e, place in enumerate(places)]
    most = max(most, sum(n**2 for n in np.bincount(at)[:steps]))
  private = _privacy(batch_size=batch, num_examples=examples)
  found = private.epsilon_of_any_order(steps)
  assert found == pytest.approx(_closed_form(2 / math.sqrt(most), 1e-5))


def test_training_ends_with_the_last_update_of_the_budget():
  private = _privacy()
  last = private.last_step(10_000)
  assert private.epsilon(last) <= 3.0 < private.epsilon(last + 1)
  assert private.last_step(last - 5) == last - 5
  assert _privacy(budget=math.inf).last_step(10_000) == 10_000
  assert private.epsilon(0) == private.epsilon_of_any_order(0) == 0


def test_noise_follows_from_seed_and_update():
  params = {'w': np.zeros((100, 100), np.float32), 'b': np.zeros(3, 'f4')}
  noise = _privacy().noise(seed=1)
  update = jax.jit(noise.update)
  first, state = update(params, noise.init(params))
  second, _ = update(params, state)
  again, _ = update(params, noise.init(params))
  other, _ = update(params, _privacy().noise(seed=2).init(params))
  np.testing.assert_array_equal(first['w'], again['w'])
  for different in (second, other):
    assert (
      abs(np.corrcoef(first['w'].ravel(), different['w'].ravel())[0, 1]) < 0.05
    )
  # 2.0 times 0.5, of 32.
  assert first['w'].std() == pytest.approx(1 / 32, rel=0.03)
  assert abs(first['w'].mean()) < 1e-3
  assert not np.isin(first['b'], first['w']).any()


class _Config:
  training_steps = 10_000


def test_a_run_that_goes_on_counts_what_it_has_made():
  private, config = _privacy(), _Config()
  privacy.plan(config, private, None, 0)
  last = config.training_steps
  assert 1 < last < 10_000
  begun = {'privacy': json.loads(json.dumps(private.facts(last)))}
  privacy.plan(config, private, begun, last)  # There is nothing left to do.
  assert config.training_steps == last
  less = _privacy(budget=2.0)
  with pytest.raises(
    ValueError, match=f'after the {last} made so far it is 2.9'
  ):
    privacy.plan(config, less, begun, last)
  with pytest.raises(ValueError, match='is 0.0001, and after the first it is'):
    privacy.plan(config, _privacy(budget=1e-4), None, 0)
  for now, before in (
    (_privacy(noise_multiplier=3.0), begun),
    (_privacy(batch_size=16), begun),
    (_privacy(num_examples=999), begun),
    (None, begun),
    (private, {}),
    (private, None),
  ):
    with pytest.raises(ValueError, match='has begun with .* choose another'):
      privacy.plan(config, now, before, 5)
  privacy.plan(config, None, {}, 5)


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'private.noise_multiplier': -1.0}, 'noise_multiplier is -1.0; it must'),
    ({'private.noise_multiplier': 0.0}, 'noise_multiplier is 0.0; it must'),
    ({'private.noise_multiplier': 0.01}, 'less than 0.1'),
    ({'private.epsilon': 0.0}, 'epsilon is 0.0; it must be positive'),
    ({'private.delta': 0.0}, 'delta is 0.0; it must be above 0'),
    ({'private.delta': 0.01}, 'about 1 / 1000, one'),
    ({'clip_per_example': 'unit'}, "clip_per_example is 'unit'"),
    ({'clip_per_example': ''}, "clip_per_example is ''"),
    ({'train_batch_size': 1024}, 'more than the 1000 examples'),
    ({'augment_name': 'cutmix'}, "'cutmix', which mixes images"),
    ({'skip_nonfinite': True}, 'skip_nonfinite is True'),
    ({'skip_corrupt': True}, 'skip_corrupt is True'),
  ],
)
def test_settings_that_are_not_private(settings, message):
  config = configs.load('digits:private').experiment_kwargs.config
  assert privacy.make(config, 1000)
  config.update_from_flattened_dict(settings)
  with pytest.raises(ValueError) as error:
    privacy.make(config, 1000)
  assert message in str(error.value) and '\n' not in str(error.value)


def test_a_missing_package_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'dp_accounting.pld', None)
  privacy._loss_of_one_update.cache_clear()
  with pytest.raises(ValueError, match='is not installed.* pip install'):
    _privacy(noise_multiplier=2.5).epsilon(1)


@pytest.mark.slow
def test_a_run_ends_when_its_budget_is_spent(run_command, tmp_path):
  """And says so; another noise does not go on with it."""
  args = (
    '--config=digits:private:small',
    f'--checkpoint_dir={tmp_path}',
    '--random_seed=12345',
  )
  private = _privacy(
    noise_multiplier=3.0, batch_size=16, num_examples=10_000, budget=1.0
  )
  budget = (private.epsilon(3) + private.epsilon(4)) / 2
  straight = tmp_path / 'straight'
  result = run_command(
    *args, f'--private.epsilon={budget}', f'--checkpoint_dir={straight}'
  )
  assert result.status == 0, result.log
  assert 'is spent after 3 of 6 steps' in result.log
  assert result.json['step'] == 3
  assert result.json['epsilon'] == pytest.approx(private.epsilon(3))
  card = (straight / 'README.md').read_text()
  assert f'**ε = {private.epsilon(3):.3g}** at δ = 1e-05' in card
  assert 'Poisson' in card and '12345' not in card
  # With a stop on the way it is the same, to the last digit.
  for steps in (2, 6):
    result = run_command(
      *args, f'--private.epsilon={budget}', f'--training_steps={steps}'
    )
    assert result.status == 0, result.log
  assert result.json['step'] == 3
  got, want = (command_lib.read_arrays(f, 3) for f in (tmp_path, straight))
  assert set(got) == set(want)
  for name, array in got.items():
    np.testing.assert_array_equal(array, want[name], name)
  for wrong, message in (
    (
      '--private.noise_multiplier=4',
      'has begun with a noise multiplier of 3.0',
    ),
    ('--private.epsilon=0.001', 'after the 3 made so far it is'),
  ):
    result = run_command(*args, wrong)
    assert result.status == 2
    assert message in result.log.strip().splitlines()[-1]
