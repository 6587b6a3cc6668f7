"""The model card: what it says, what it replaces, and that the hub reads it."""

import json

import huggingface_hub
from markdown_it import MarkdownIt
import numpy as np
import pictures_lib
from PIL import Image
import pytest
import quick_lib
from scipy import stats

from nfnets import card as command
from nfnets import weights
from nfnets.inference import card, card_text, measures

pictures, quickly_compiled = pictures_lib.pictures, quick_lib.quickly_compiled

LABELS = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 1, 1, 1, -1])


def measured(names=('cat', 'dog', 'fox'), **kwargs):
  counts = measures.by_class(LABELS, PREDICTED, len(names))
  return card_text.Measured('pets', 'test', names, counts, **kwargs)


def metadata(names=('cat', 'dog', 'fox'), **others):
  model, _ = quick_lib.digits()
  return weights.describe(
    model, class_names=list(names), num_classes=len(names), **others
  )


def rendered(text):
  """Returns the text that people see, with the block of metadata left out."""
  body = text.split('\n---\n', 1)[1]
  shown = []
  for token in MarkdownIt('gfm-like', {'linkify': False}).parse(body):
    assert not token.type.startswith('html_block') or token.content.startswith(
      ('<details>', '<summary>', '</details>', '<!-- nfnets')
    )
    for child in token.children or [token]:
      assert child.type != 'html_inline', child.content
      shown.append(child.content)
  return '\n'.join(shown)


def test_the_hub_reads_the_metadata():
  info = {'settings': {'weights': 'timm/dm_nfnet_f0'}, 'command': 'x'}
  text = card_text.make(metadata(trained_on='/home/me/pets'), info, measured())
  data = huggingface_hub.ModelCard(text).data
  assert data.library_name == 'nfnets'
  assert data.pipeline_tag == 'image-classification'
  assert data.base_model == 'timm/dm_nfnet_f0.dm_in1k'
  [result] = data.eval_results
  assert (result.dataset_name, result.dataset_split) == ('pets', 'test')
  assert (result.metric_type, result.metric_value) == ('accuracy', 4 / 6)
  assert '/home/me' not in text


def test_results_have_intervals_overall_and_by_class():
  shown = rendered(card_text.make(metadata(), None, measured()))
  for correct, total in ((4, 6), (2, 3), (2, 2), (0, 1)):
    interval = stats.binomtest(correct, total).proportion_ci(method='wilson')
    between = ' – ' if total < 6 else ' to '
    assert f'{interval.low:.1%}{between}{interval.high:.1%}' in shown
  assert shown.index('fox') < shown.rindex('cat') < shown.rindex('dog')


def test_results_of_training_do_where_there_are_no_others():
  results = {
    'test_top_1_acc': 0.5,
    'test_num_examples': 10,
    'test_split': 'validation',
  }
  shown = rendered(card_text.make(metadata(), {'results': results}))
  interval = stats.binomtest(5, 10).proportion_ci(method='wilson')
  assert f'{interval.low:.1%} to {interval.high:.1%}' in shown
  assert 'also decided which weights were kept' in shown
  assert 'Not measured yet' in rendered(card_text.make(metadata()))


PRIVACY = {
  'epsilon': 7.5336,
  'epsilon_of_any_order': 229.2,
  'delta': 8e-7,
  'noise_multiplier': 2.5,
  'clipping': 1.0,
  'batch_size': 16384,
  'num_examples': 1271167,
  'steps': 71589,
}


def test_private_training_says_what_it_assumes_and_not_its_seed():
  info = {'command': 'x --random_seed=815 --config.random_seed 816 --lr=4'}
  shown = rendered(card_text.make(metadata(privacy=PRIVACY), info))
  for text in (
    'ε = 7.53',
    'δ = 8e-07',
    '71,589 updates',
    '16,384 of 1,271,167',
  ):
    assert text in shown
  assert 'Poisson' in shown and 'ε ≤ 229' in shown
  assert '815' not in shown and '816' not in shown and '--lr=4' in shown
  shown = rendered(card_text.make(metadata(), info))
  assert 'rivacy' not in shown and '815' in shown


@pytest.mark.parametrize(
  'wrong', [{'epsilon': 1.0}, {**PRIVACY, 'steps': 'x'}, {**PRIVACY, 'a': 1}]
)
def test_metadata_on_privacy_are_all_there_or_none(wrong):
  with pytest.raises(ValueError, match='privacy is not numbers called epsilon'):
    weights.metadata.encode(metadata(privacy=wrong))
  weights.metadata.encode(metadata(privacy=PRIVACY))


def test_names_are_shown_as_they_are():
  names = pictures_lib.NAMES
  counts = measures.by_class(np.arange(10), np.arange(10), 10)
  found = card_text.Measured('a|b<i>', 'test', names, counts)
  command_line = 'x ``` <script>alert(1)</script>'
  info = {'command': command_line, 'settings': {'```': '\u202e'}}
  text = card_text.make(metadata(names), info, found)
  shown = rendered(text)
  assert '\u202e' not in text
  for name in names:
    assert name.replace('\u202e', '\\u202e') in shown
  assert 'a|b<i>' in shown and '<script>alert(1)</script>' in shown
  assert huggingface_hub.ModelCard(text).data.eval_results


@pytest.mark.parametrize(
  ('base', 'license_', 'words'),
  [
    ('nfnet_f0', 'apache-2.0', 'Apache 2.0'),
    ('hf://a/b', None, 'a licence of their own'),
    ('', None, 'None was chosen yet'),
  ],
)
def test_the_licence_is_that_of_the_start(base, license_, words):
  text = card_text.make(metadata(), {'settings': {'weights': base}})
  assert huggingface_hub.ModelCard(text).data.license == license_
  assert words in rendered(text)


def test_only_cards_that_nobody_changed_are_replaced(tmp_path):
  path = tmp_path / card.NAME
  card.write(tmp_path, 'first\n')
  card.write(tmp_path, 'second\n')
  path.write_text(path.read_text().replace('second', 'mine'))
  before = path.read_text()
  with pytest.raises(card.ChangedError, match=r'README\.md'):
    card.write(tmp_path, 'third\n')
  file = tmp_path / card.WEIGHTS
  assert card.write_beside(file, metadata=metadata()) is None
  assert path.read_text() == before
  card.write(tmp_path, 'third\n', overwrite=True)
  assert path.read_text().startswith('third\n')


def test_files_among_others_get_no_card(tmp_path):
  assert card.write_beside(tmp_path / 'x.npz', metadata=metadata()) is None
  assert not list(tmp_path.iterdir())


@pytest.fixture
def run(tmp_path, pictures, monkeypatch):
  """Returns a folder as training leaves it, and has its network compiled."""
  model, params = quick_lib.digits()
  folder = tmp_path / 'run'
  folder.mkdir()
  settings = {'which_dataset': pictures.root, 'eval_subset': 'valid'}
  (folder / 'run.json').write_text(
    json.dumps({'settings': settings, 'command': 'python train.py'})
  )
  described = weights.describe(
    model,
    class_names=list(pictures.info.features['label'].names),
    trained_on=pictures.root,
  )
  weights.save_weights(folder / card.WEIGHTS, params, {}, described)
  open_model = weights.open_model

  def open_shared(path, name=None):
    _, params, state = open_model(path, name)
    return quick_lib.digits()[0], params, state

  monkeypatch.setattr(weights, 'open_model', open_shared)
  return folder


def test_a_folder_for_the_hub_is_read_back_from_there(
  run, tmp_path, monkeypatch, capsys
):
  cache, output = tmp_path / 'hub', tmp_path / 'upload'
  assert command.main([str(run), f'--output={output}', '--batch_size=5']) == 0
  results = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert results['images'] == 31
  assert {p.name for p in output.iterdir()} == {card.NAME, card.WEIGHTS}
  # What `hf upload` and then `hf download` would make of it.
  repository = cache / 'models--owner--name'
  (repository / 'refs').mkdir(parents=True)
  (repository / 'refs' / 'main').write_text('0' * 40)
  (repository / 'snapshots').mkdir()
  output.rename(repository / 'snapshots' / ('0' * 40))
  monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(cache))
  expected = weights.read_weights(run / card.WEIGHTS)
  actual = weights.read_weights('hf://owner/name')
  np.testing.assert_equal(actual, expected)
  assert weights.read_metadata('hf://owner/name') == weights.read_metadata(
    run / card.WEIGHTS
  )


def test_the_three_lines_work(run, tmp_path, monkeypatch, capsys):
  assert command.main([str(run), '--recorded']) == 0
  text = (run / card.NAME).read_text()
  code = text.split('```python\n')[1].split('```')[0]
  monkeypatch.chdir(run)
  Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save('image.jpg')
  scope = {}
  exec(code, scope)
  assert scope['model'].logits(
    scope['params'], scope['image'][None], scope['state']
  ).shape == (1, 10)


def test_weights_among_others_need_a_folder(run, tmp_path, capsys):
  other = tmp_path / 'other.npz'
  params, state = weights.read_weights(run / card.WEIGHTS)
  weights.save_weights(other, params, state)
  assert command.main([f'--weights={other}', '--recorded']) == 2
  assert '--output=FOLDER' in capsys.readouterr().err
  folder = tmp_path / 'new'
  assert command.main([f'--weights={other}', f'--output={folder}']) == 0
  # What was recognized from the numbers is said there.
  said = weights.read_metadata(folder / card.WEIGHTS)
  assert said['model'] == 'nfnet_digits'


def test_commands_that_say_too_little_or_too_much_are_wrong(capsys):
  for args, message in (
    ([], 'RUN is needed'),
    (['run', '--data=digits'], '--data cannot be set'),
    (['--weights=w', '--data=digits', '--recorded'], '--data is for'),
  ):
    with pytest.raises(SystemExit) as error:
      command.main(args)
    assert error.value.code == 2 and message in capsys.readouterr().err
