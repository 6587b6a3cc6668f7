"""What private training says that it tells of an example."""

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

from experiments import configs, loop, privacy, recipe
from nfnets.data.batches import Poisson, PoissonOrder
from nfnets.data.builders import SplitReader

# ImageNet's training images, less the 10,000 that were held out.
_PUBLISHED_EXAMPLES = 1_271_167
_PUBLISHED_STEPS = 71_589


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
  assert (ours.train_preproc, ours.augment_name) == ('crop_flip', None)
  ours.fake_data = True
  built = recipe.build(ours, jax.random.key(0))
  assert built.num_steps == _PUBLISHED_STEPS
  assert ours.train_batch_size == 16_384
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
    event, _PUBLISHED_STEPS
  )
  published = accountant.get_epsilon(private.delta)
  assert published == pytest.approx(8.0, abs=1e-3)
  assert 7.4 < private.epsilon(_PUBLISHED_STEPS) < published


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


def test_what_a_batch_has_no_room_for_counts(monkeypatch):
  """With little room, more; and with the room that it has, next to nothing."""
  private, epsilons = _privacy(), []
  monkeypatch.setattr(privacy, '_DEVIATIONS', 1)
  for most in (private.largest_batch, 60, 1000):
    event = dp_accounting.TruncatedSubsampledGaussianDpEvent(
      1000, 0.032, most, 2.0
    )
    accountant = dp_accounting.pld.PLDAccountant(
      dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    )
    epsilons.append(accountant.compose(event, 100).get_epsilon(1e-5))
  assert private.epsilon(100) == pytest.approx(epsilons[0], rel=1e-2)
  assert epsilons[0] > 1.5 * epsilons[2]
  monkeypatch.undo()
  assert private.largest_batch == 60  # 32 + 5 * 5.57.
  assert private.epsilon(100) == pytest.approx(epsilons[1], rel=1e-2)
  assert epsilons[1] == pytest.approx(epsilons[2], rel=1e-2)


def test_training_ends_with_the_last_update_of_the_budget():
  private = _privacy()
  last = private.last_step(10_000)
  assert private.epsilon(last) <= 3.0 < private.epsilon(last + 1)
  assert private.last_step(last - 5) == last - 5
  assert _privacy(budget=math.inf).last_step(10_000) == 10_000
  assert private.epsilon(0) == 0


def test_noise_follows_from_key_and_update():
  params = {'w': np.zeros((100, 100), np.float32), 'b': np.zeros(3, 'f4')}
  noise = _privacy().noise()
  update = jax.jit(noise.update)
  start = noise.init(params)._replace(secret_key=_privacy(key=1).new_key())
  first, state = update(params, start)
  second, _ = update(params, state)
  again, _ = update(params, start)
  key = _privacy(key=2).new_key()
  other, _ = update(params, start._replace(secret_key=key))
  np.testing.assert_array_equal(first['w'], again['w'])
  for different in (second, other):
    assert (
      abs(np.corrcoef(first['w'].ravel(), different['w'].ravel())[0, 1]) < 0.05
    )
  # 2.0 times 0.5, of 32.
  assert first['w'].std() == pytest.approx(1 / 32, rel=0.03)
  assert abs(first['w'].mean()) < 1e-3
  assert not np.isin(first['b'], first['w']).any()


def _draws(key, steps, most=64, probability=0.032):
  """Returns [steps, 1000], whether each example is in each batch."""
  sample = Poisson(probability, most, key)
  steps, indices = PoissonOrder(1000, 64, sample)(np.arange(64 * steps))
  drawn = np.zeros((steps[-1] + 1, 1001), bool)  # The last is none.
  drawn[steps, indices] = True
  return drawn[:, :-1]


def test_each_example_is_drawn_by_itself():
  drawn = _draws(key=5, steps=4000)
  sizes, counts = drawn.sum(1), drawn.sum(0)
  for values, number in ((sizes, 1000), (counts, 4000)):
    wanted = stats.binom(number, 0.032)
    assert abs(values.mean() - wanted.mean()) < 4 * wanted.std() / 1000**0.5
    assert values.var() == pytest.approx(wanted.var(), rel=0.2)
  # Neither the one before nor the one beside it say anything.
  for one, other in ((drawn[1:], drawn[:-1]), (drawn[:, 1:], drawn[:, :-1])):
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.003
  np.testing.assert_array_equal(_draws(key=5, steps=9), drawn[:9])
  assert (_draws(key=6, steps=9) != drawn[:9]).any()


def test_a_draw_that_is_too_large_keeps_a_random_part():
  sizes = _draws(key=5, steps=3000).sum(1)
  kept = _draws(key=5, steps=3000, most=30)
  np.testing.assert_array_equal(kept.sum(1), np.minimum(sizes, 30))
  counts = kept.sum(0)
  assert abs(stats.linregress(np.arange(1000), counts).slope) < 2e-3
  assert _draws(key=5, steps=2, most=64, probability=1.0).sum() == 128


def test_batches_hold_the_draw_and_are_masked(data_dir):
  config = configs.load('digits:private').experiment_kwargs.config
  config.update(train_batch_size=36, data_dir=data_dir)
  config.per_example.chunk = None
  built = recipe.build(config, jax.random.key(0))
  # 36 + 30 fit, and the rows are what four devices divide.
  assert (built.privacy.largest_batch, built.batch_size) == (66, 68)
  key = built.privacy.new_key()
  with built.train_batches(3, key) as batches:
    batch = next(batches)
  halves = []
  for i in range(2):
    with built.train_batches(
      3, key, process_index=i, process_count=2
    ) as batches:
      halves.append(next(batches))
  for name, value in batch.items():
    joined = np.concatenate([half[name] for half in halves])
    np.testing.assert_array_equal(value, joined)
  sample = PoissonOrder(1437, 68, built.privacy.sampling(key))
  _, indices = sample(np.arange(3 * 68, 4 * 68))
  np.testing.assert_array_equal(batch['mask'], indices >= 0)
  source = SplitReader(built.builder, 'train_and_valid')
  records = source.read(np.maximum(indices, 0))
  labels = [int(source.parse(record)[1]) for record in records]
  np.testing.assert_array_equal(batch['labels'], labels)


def test_the_key_is_a_secret_of_its_own_unless_a_setting_fixes_it():
  def start(key):
    config = configs.load('digits:private:small').experiment_kwargs.config
    config.private.key = key
    module = loop.Experiment('train', jax.random.key(0), config)
    state = module.snapshot_state()['train_state']
    facts = module._recipe.privacy.facts(1)
    return *state.opt_state[0].secret_key, facts['key_is_secret']

  secrets = [start(None), start(None)]
  assert secrets[0] != secrets[1] and secrets[0][-1] == 1
  assert start(3) == start(3) != start(4)
  assert start(3)[-1] == 0


class _Config:
  training_steps = 10_000


def test_a_run_that_goes_on_counts_what_it_has_made():
  private, config = _privacy(), _Config()
  private.limit_steps(config, None, 0)
  last = config.training_steps
  assert 1 < last < 10_000
  begun = {'privacy': json.loads(json.dumps(private.facts(last)))}
  private.limit_steps(config, begun, last)  # There is nothing left to do.
  assert config.training_steps == last
  with pytest.raises(
    ValueError, match=f'after the {last} made so far it is 2.9'
  ):
    _privacy(budget=2.0).limit_steps(config, begun, last)
  with pytest.raises(ValueError, match='is 0.0001, and after the first it is'):
    _privacy(budget=1e-4).limit_steps(config, None, 0)
  with pytest.raises(ValueError, match='no run.json says with how much noise'):
    private.limit_steps(config, None, 5)


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'private.noise_multiplier': -1.0}, 'noise_multiplier is -1.0 and'),
    ({'private.noise_multiplier': 0.0}, 'noise_multiplier is 0.0 and'),
    ({'private.noise_multiplier': 0.01}, 'less than 0.1'),
    ({'private.epsilon': 0.0}, 'epsilon 0.0; they must be positive'),
    ({'private.delta': 0.0}, 'delta is 0.0; it must be above 0'),
    ({'private.delta': 0.01}, 'about 1 / 1000, one'),
    ({'private.sampling': 'epochs'}, "sampling is 'epochs'; epsilon is known"),
    ({'clip_per_example': 'unit'}, "clip_per_example is 'unit'"),
    ({'clip_per_example': ''}, "clip_per_example is ''"),
    ({'train_batch_size': 1024}, 'more than the 1000 examples'),
    ({'augment_name': 'cutmix'}, "'cutmix', which mixes images"),
    ({'class_weights': 'balanced'}, 'the number of examples of each class'),
    ({'balance_classes': True}, 'the number of examples of each class'),
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
    *('--config=digits:private:small', '--fake_data=False'),
    *(f'--checkpoint_dir={tmp_path}', '--private.key=7'),
  )
  private = _privacy(
    noise_multiplier=3.0, batch_size=16, num_examples=1437, clipping=1.0
  )
  budget = (private.epsilon(3) + private.epsilon(4)) / 2
  straight = tmp_path / 'straight'
  result = run_command(
    *args, f'--private.epsilon={budget}', f'--checkpoint_dir={straight}'
  )
  assert result.status == 0, result.log
  assert 'is spent after 3 of 6 steps' in result.log
  assert 'private.key is set' in result.log
  assert result.json['step'] == 3
  assert result.json['epsilon'] == pytest.approx(private.epsilon(3))
  card = (straight / 'README.md').read_text()
  assert f'**ε = {private.epsilon(3):.3g}** at δ = 1e-05' in card
  assert 'The guarantee does not hold' in card
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
      ('--private.noise_multiplier=4', '--change_settings'),
      'private.noise_multiplier cannot change within a run.',
    ),
    (
      ('--private.key=None', '--change_settings'),
      'private.key cannot change within a run.',
    ),
    (('--private.epsilon=0.001',), 'after the 3 made so far it is'),
  ):
    result = run_command(*args, *wrong)
    assert result.status == 2
    assert message in result.log.strip().splitlines()[-1]


@pytest.mark.slow
def test_the_secret_is_in_the_checkpoint_alone(run_command, tmp_path):
  """And a run that goes on keeps it."""
  args = ('--config=digits:private:small', f'--checkpoint_dir={tmp_path}')
  found = []
  for steps in (2, 4):
    result = run_command(*args, f'--training_steps={steps}')
    assert result.status == 0, result.log
    arrays = command_lib.read_arrays(tmp_path, steps)
    found += [v for k, v in arrays.items() if 'secret_key' in k]
    assert 'The guarantee' not in (tmp_path / 'README.md').read_text()
  np.testing.assert_array_equal(*found)
  shown = [result.log.encode(), result.output.encode()]
  files = [f for f in tmp_path.rglob('*') if f.is_file()]
  shown += [f.read_bytes() for f in files if 'latest' not in f.parts]
  for word in found[0]:
    for content in shown:
      assert str(word).encode() not in content
      assert word.tobytes() not in content
