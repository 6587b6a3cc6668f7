"""The model card: what it says, what it replaces, and that the hub reads it."""

import functools
import json
import shutil

import evaluation_lib
import huggingface_hub
from markdown_it import MarkdownIt
import numpy as np
import pictures_lib
from PIL import Image
import pytest
import quick_lib
from scipy import stats

import nfnets
from nfnets import card as command
from nfnets import weights
from nfnets.inference import card, classes, evaluation, runs

pictures, quickly_compiled = pictures_lib.pictures, quick_lib.quickly_compiled
run = evaluation_lib.run

LABELS = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 1, 1, 1, -1])


def measured(names=('cat', 'dog', 'fox')):
  return evaluation.Evaluation(LABELS, PREDICTED, len(names), names, 'pets')


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
  text = card.make(metadata(trained_on='/home/me/pets'), info, measured())
  data = huggingface_hub.ModelCard(text).data
  assert data.library_name == 'nfnets'
  assert data.pipeline_tag == 'image-classification'
  assert data.base_model == 'timm/dm_nfnet_f0.dm_in1k'
  result, *macro = data.eval_results
  assert (result.dataset_name, result.dataset_split) == ('pets', 'test')
  assert (result.metric_type, result.metric_value) == ('accuracy', 4 / 6)
  # Of cat and dog 1 and 2 / 3 are precise, 2 / 3 and 1 are found; no fox is.
  expected = {'precision': 5 / 9, 'recall': 5 / 9, 'f1': 1.6 / 3}
  actual = {x.metric_type: x.metric_value for x in macro}
  assert actual == pytest.approx(expected)
  assert '/home/me' not in text


def test_results_have_intervals_overall_and_by_class():
  shown = rendered(card.make(metadata(), None, measured()))
  for correct, total in ((4, 6), (2, 3), (2, 2), (0, 1)):
    interval = stats.binomtest(correct, total).proportion_ci(method='wilson')
    between = ' – ' if total < 6 else ' to '
    assert f'{interval.low:.1%}{between}{interval.high:.1%}' in shown
  assert 'precision 55.6%, recall 55.6%, F1 53.3%' in shown
  assert shown.index('fox') < shown.rindex('cat') < shown.rindex('dog')


@pytest.mark.parametrize('chosen', [True, False])
def test_results_of_training_do_where_there_are_no_others(chosen):
  results = {'test_top_1_acc': 0.5, 'test_num_examples': 10}
  results |= {'test_split': 'validation', 'test_chose_weights': chosen}
  shown = rendered(card.make(metadata(), {'results': results}))
  interval = stats.binomtest(5, 10).proportion_ci(method='wilson')
  assert f'{interval.low:.1%} to {interval.high:.1%}' in shown
  assert ('also decided which weights were kept' in shown) is chosen
  assert '(validation)' in shown
  assert 'Not measured yet' in rendered(card.make(metadata()))


PRIVACY = {
  'epsilon': 7.5336,
  'largest_batch': 17021,
  'key_is_secret': 1,
  'delta': 8e-7,
  'noise_multiplier': 2.5,
  'clipping': 1.0,
  'batch_size': 16384,
  'num_examples': 1271167,
  'steps': 71589,
}


def test_private_training_says_what_it_assumes():
  info = {'command': 'x --lr=4'}
  shown = rendered(card.make(metadata(privacy=PRIVACY), info))
  for text in (
    'ε = 7.53',
    'δ = 8e-07',
    '71,589 updates',
    '16,384 of 1,271,167 on average, 17,021 at most',
    'Poisson',
    'holds as long as the key',
  ):
    assert text in shown
  fixed = metadata(privacy={**PRIVACY, 'key_is_secret': 0})
  assert 'The guarantee does not hold' in rendered(card.make(fixed, info))
  assert 'rivacy' not in rendered(card.make(metadata(), info))


@pytest.mark.parametrize(
  'wrong', [{'epsilon': 1.0}, {**PRIVACY, 'steps': 'x'}, {**PRIVACY, 'a': 1}]
)
def test_metadata_on_privacy_are_all_there_or_none(wrong):
  with pytest.raises(ValueError, match='privacy is not numbers called epsilon'):
    weights.metadata.encode(metadata(privacy=wrong))
  weights.metadata.encode(metadata(privacy=PRIVACY))


def test_names_are_shown_as_they_are():
  names = pictures_lib.NAMES
  found = evaluation.Evaluation(*[np.arange(10)] * 2, 10, names, 'a|b<i>')
  command_line = 'x ``` <script>alert(1)</script>'
  info = {'command': command_line, 'settings': {'```': '\u202e'}}
  text = card.make(metadata(names), info, found)
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
  text = card.make(metadata(), {'settings': {'weights': base}})
  assert huggingface_hub.ModelCard(text).data.license == license_
  assert words in rendered(text)


@pytest.mark.parametrize(
  ('other', 'is_card'),
  [
    (f'{card.BEGINNING}changed'.replace('\n', '\r\n'), True),
    *((x, False) for x in ('# My own\n', '---\nlibrary_name: timm\n---\n', '')),
  ],
)
def test_only_cards_are_replaced(run, capsys, monkeypatch, other, is_card):
  # It is refused before anything is evaluated.
  monkeypatch.setattr(evaluation, 'evaluate', None)
  path, args = run / card.NAME, [str(run), '--recorded']
  path.write_bytes(other.encode())
  assert command.main(args) == (not is_card)
  if not is_card:
    error = capsys.readouterr().err.splitlines()[-1]
    assert str(path) in error and '--overwrite' in error
    assert card.write_beside(run / card.WEIGHTS) is None
    assert path.read_text() == other
  assert command.main([*args, '--overwrite']) == 0
  assert path.read_text().startswith(card.BEGINNING)


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


def odd_pictures():
  """Yields (suffix, pixels, settings) to save, as people have them."""
  rng = np.random.default_rng(0)
  exif = Image.Exif()
  exif[0x112] = 6
  for _ in range(4):
    pixels = np.kron(rng.integers(0, 256, (3, 4, 4)), np.ones((12, 10, 1)))
    pixels = np.uint8(pixels)
    yield '.png', pixels, {}
    yield '.webp', pixels, {'lossless': True}
    yield '.png', pixels[..., :3], {'exif': exif}
    yield '.jpg', pixels[..., :3], {'exif': exif}
    yield '.tiff', pixels[..., :3], {'exif': exif}
    yield '.png', np.uint16(pixels[..., 0]) << 8, {}


def test_the_three_lines_give_the_predictions_of_the_card(
  run, tmp_path, monkeypatch
):
  for i, (suffix, pixels, options) in enumerate(odd_pictures()):
    folder = tmp_path / 'data' / 'test' / pictures_lib.NAMES[i % 10]
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / f'{i}{suffix}', **options)
  shutil.copytree(tmp_path / 'data' / 'test', tmp_path / 'data' / 'train')
  settings = {'which_dataset': str(tmp_path / 'data')}
  (run / 'run.json').write_text(json.dumps({'settings': settings}))
  output = tmp_path / 'card'
  assert command.main([str(run), f'--output={output}', '--batch_size=5']) == 0
  text = (output / card.NAME).read_text()
  opened = runs.open_run(str(run))
  found = evaluation.evaluate(opened.network, opened.builder, 'test', 5, 99)
  result, *_ = huggingface_hub.ModelCard(text).data.eval_results
  assert result.metric_value == found.accuracy['share']
  code = text.split('```python\n')[1].split('```')[0]
  monkeypatch.chdir(output)
  monkeypatch.setattr(nfnets, 'load', functools.cache(nfnets.load))
  assert len(found.uncertain) == 24
  for picture in found.uncertain:
    path = opened.builder.paths('test')[picture.index]
    shutil.copy(tmp_path / 'data' / path, 'image.jpg')
    printed = []
    exec(code, {'print': printed.append})
    [(label, probability)] = classes.top_classes(printed[0][0], 1)
    assert label == picture.predicted, path
    assert probability == pytest.approx(picture.confidence, rel=1e-3), path


def test_weights_of_no_run_get_a_card_in_a_folder(run, tmp_path, capsys):
  source, other = run / card.WEIGHTS, tmp_path / 'other.npz'
  weights.save_weights(other, *weights.read_weights(source))
  assert command.main([f'--weights={other}', '--recorded']) == 2
  assert '--output=FOLDER' in capsys.readouterr().err
  assert card.write_beside(other) is None
  for i, (file, said) in enumerate(
    [
      # What was recognized from the numbers is said there.
      (other, {'model': 'nfnet_digits'}),
      (source, weights.read_metadata(source)),
    ]
  ):
    args = f'--weights={file}', f'--output={tmp_path / str(i)}'
    assert command.main([*args, '--image_size=24']) == 0
    written = weights.read_metadata(tmp_path / str(i) / card.WEIGHTS)
    # What the card is of.
    assert {**written, **said, 'image_size': 24} == written


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    ([], 'RUN is needed'),
    (['{run}', '--data=digits'], '--data cannot be set'),
    (['--weights=nfnet_f0', '--data=digits', '--recorded'], '--data is for'),
  ],
)
def test_wrong_commands_are_answered(run, capsys, args, message):
  with pytest.raises(SystemExit) as error:
    command.main([arg.format(run=run) for arg in args])
  assert error.value.code == 2 and message in capsys.readouterr().err
