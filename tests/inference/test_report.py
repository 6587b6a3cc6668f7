"""The report: what is on the page, and what can not be."""

import base64
import hashlib
import html.parser
import json
import os

import numpy as np
import pictures_lib
from PIL import Image
import pytest
import quick_lib

from nfnets import report as command
from nfnets import weights
from nfnets.data import dataset
from nfnets.inference import evaluation, figures, report
from nfnets.inference import page as page_lib

pictures, quickly_compiled = pictures_lib.pictures, quick_lib.quickly_compiled

# As in other tests, which have it compiled.
BATCH = 5


class Page(html.parser.HTMLParser):
  """Collects the elements of a page, and its text."""

  def __init__(self, text):
    super().__init__()
    self.elements, self.text = [], ''
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.text += data


@pytest.fixture(scope='module')
def found(pictures):
  model, params = quick_lib.digits()
  return evaluation.predict(
    model, params, {}, pictures, 'test', batch_size=BATCH, most=4
  )


@pytest.fixture(scope='module')
def page(pictures):
  model, params = quick_lib.digits()
  run = {
    'command': 'python x "</code><script>alert(1)</script>"',
    'settings': {'<script>': '<script>alert(2)</script>', 'lr': 0.1},
  }
  scalars = {'train': {'train_loss': ([1, 2], [2.0, 1.0])}, 'eval': {}}
  return report.make(
    *(model, params, {}, pictures, 'test'),
    run_info=run,
    scalars=scalars,
    weights_name='</title>w.npz',
    batch_size=BATCH,
  )


def expected_probabilities(pictures):
  """Of the test images, read and run one by one."""
  model, params = quick_lib.digits()
  paths = [os.path.join(pictures.root, p) for p in pictures.paths('test')]
  images = [model.preprocess(np.asarray(Image.open(path))) for path in paths]
  images = np.stack(images + images[: -len(images) % BATCH])
  logits = [
    model.logits(params, images[i : i + BATCH])
    for i in range(0, len(images), BATCH)
  ]
  exp = np.exp(np.float64(np.concatenate(logits))[: len(paths)])
  return exp / exp.sum(axis=1, keepdims=True)


def test_every_image_counts_once_and_the_extremes_are_kept(pictures, found):
  probabilities = expected_probabilities(pictures)
  best = probabilities.argmax(axis=1)
  labels = np.array(pictures.labels('test'))
  np.testing.assert_array_equal(found.labels, labels)
  np.testing.assert_array_equal(found.predicted, best)
  top = probabilities.max(axis=1)
  doubtful = np.argsort(top)[:4]
  assert [picture.index for picture in found.uncertain] == list(doubtful)
  wrong = np.flatnonzero(best != labels)
  sure = wrong[np.argsort(-top[wrong])][:4]
  assert [picture.index for picture in found.mistakes] == list(sure)
  for picture in found.mistakes:
    i = picture.index
    assert (picture.label, picture.predicted) == (labels[i], best[i])
    np.testing.assert_allclose(
      (picture.confidence, picture.of_label),
      (top[i], probabilities[i, labels[i]]),
      rtol=1e-3,
    )


def test_pictures_are_what_the_network_gets(pictures, found):
  model, _ = quick_lib.digits()
  for picture in found.uncertain:
    path = os.path.join(pictures.root, pictures.paths('test')[picture.index])
    image = model.preprocess(np.asarray(Image.open(path)))
    assert picture.pixels.dtype == np.uint8
    image = np.clip(model.denormalize(image), 0, 255)
    np.testing.assert_allclose(picture.pixels, image, atol=0.51)


def test_names_are_shown_as_they_are(page, pictures):
  text = Page(page).text
  for name in pictures_lib.NAMES:
    assert name.replace('\u202e', '\\u202e') in text
  assert '\u202e' not in page
  assert '"</code><script>alert(1)</script>"' in text
  assert '</title>w.npz' in text
  # Each folder in a path is isolated from the others.
  assert '<bdi>test</bdi>/<bdi>' in page


def test_names_run_nothing(page):
  elements = Page(page).elements
  tags = {tag for tag, _ in elements}
  allowed = 'html head meta title style body main header section footer h1 h2 '
  allowed += 'h3 p dl div dt dd code b bdi span ul li figure figcaption img '
  allowed += 'table thead tbody tr th td details summary svg rect'
  assert tags <= set(allowed.split())
  harmless = 'class src alt title lang charset http-equiv content name scope '
  harmless += 'tabindex viewbox preserveaspectratio aria-hidden x y width '
  harmless += 'height'
  for tag, attributes in elements:
    assert set(attributes) <= set(harmless.split()), (tag, attributes)
    if tag == 'img':
      assert attributes['src'].startswith('data:image/')
    else:
      assert 'src' not in attributes
  [policy] = [
    a['content'] for _, a in elements if a.get('http-equiv', '').endswith('cy')
  ]
  style = page.split('<style>')[1].split('</style>')[0]
  digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
  assert policy == (
    f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; "
    "base-uri 'none'; form-action 'none'"
  )


def test_the_page_says_how_good_the_network_is(page, pictures):
  probabilities = expected_probabilities(pictures)
  labels = pictures.labels('test')
  share = np.mean(probabilities.argmax(axis=1) == labels)
  text = ' '.join(Page(page).text.split())
  assert f'{share:.1%} of 31 test images of' in text
  assert 'Training images40' in text
  assert 'loss' in text and 'lr' in text


def test_curves_are_drawn_where_there_are_numbers():
  scalars = {
    'train': {'train_loss': ([1, 2], [2.0, 1.0])},
    'eval': {
      'eval_loss': ([2], [1.5]),
      'eval_ema_loss': ([2], [1.4]),
      'eval_top_1_acc': ([2], [0.5]),
    },
  }
  panels = figures.draw_curves(scalars)
  assert [title for title, _ in panels] == ['loss', 'top-1 accuracy']
  for _, uri in panels:
    kind, _, content = uri.partition(',')
    assert kind == 'data:image/svg+xml;base64'
    assert b'</svg>' in base64.b64decode(content)
  assert figures.draw_curves(scalars) == panels
  assert figures.draw_curves({}) == []


def test_the_confusions_of_many_classes_become_a_picture():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 30, 90).astype(np.int32)
  found = evaluation.Predictions(labels, np.roll(labels, 1), [], [], 0)
  names = [f'class {i}' for i in range(30)]
  shown = report._confusion(names, found)
  assert shown['picture'].startswith('data:image/png;base64,')
  assert len(shown['pairs']) == 20


def test_output_that_is_not_finite_is_a_mistake(pictures):
  model, params = quick_lib.digits()
  linear = {'w': params['NFNet/~/linear']['w'] * np.nan, 'b': np.zeros(10)}
  found = evaluation.predict(
    model,
    {**params, 'NFNet/~/linear': linear},
    *({}, pictures, 'test'),
    batch_size=BATCH,
  )
  assert (found.predicted == -1).all() and len(found.labels) == 31
  assert not found.mistakes and not found.uncertain


@pytest.fixture
def run(tmp_path, pictures):
  """Returns a folder as training leaves it."""
  model, params = quick_lib.digits()
  folder = tmp_path / 'a "run"'
  folder.mkdir()
  settings = {'which_dataset': pictures.root, 'eval_subset': 'valid'}
  (folder / 'run.json').write_text(json.dumps({'settings': settings}))
  metadata = weights.describe(model, class_names=pictures_names(pictures))
  weights.save_weights(folder / 'weights.safetensors', params, {}, metadata)
  return folder


def pictures_names(pictures):
  return list(pictures.info.features['label'].names)


def same_model(monkeypatch):
  """Has weights opened with the model that is compiled already."""
  open_model = weights.open_model

  def open_shared(path, name=None):
    model, params, state = open_model(path, name)
    shared, _ = quick_lib.digits()
    return shared, params, state

  monkeypatch.setattr(weights, 'open_model', open_shared)


def test_the_command_writes_the_page_of_a_run(
  run, pictures, monkeypatch, capsys
):
  same_model(monkeypatch)
  umask = os.umask(0o022)
  os.umask(umask)
  assert command.main([str(run), f'--batch_size={BATCH}']) == 0
  output = run / 'report.html'
  out = capsys.readouterr().out
  assert json.loads(out.splitlines()[-1]) == {'output': str(output)}
  text = Page(output.read_text()).text
  assert '31 test images' in text
  # Without those that chose the best step.
  assert f'Training images{len(pictures.paths("train"))}' in text
  assert output.stat().st_mode & 0o777 == 0o666 & ~umask
  left = {path.name for path in run.iterdir()}
  left -= {'run.json', 'weights.safetensors'}
  assert left == {'report.html', 'README.md'}


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'fake_data': True}, 'was a run on random images'),
    ({}, 'run.json names no dataset'),
    ({'which_dataset': './nowhere'}, 'There is no folder'),
    (None, 'run.json has no settings'),
  ],
)
def test_runs_without_anything_to_report_are_told_apart(
  run, capsys, settings, message
):
  (run / 'run.json').write_text(json.dumps({'settings': settings}))
  assert command.main([str(run)]) == 1
  err = capsys.readouterr().err
  assert err.startswith('error: ') and message in err
  assert len(err.splitlines()) == 1
  assert not (run / 'report.html').exists()


@pytest.mark.parametrize(
  ('missing', 'message'),
  [('run.json', 'is no folder of a run'), ('weights.safetensors', 'no such')],
)
def test_what_a_run_lacks_is_named(run, capsys, missing, message):
  (run / missing).unlink()
  assert command.main([str(run)]) == 1
  err = capsys.readouterr().err
  assert message in err and missing in err and len(err.splitlines()) == 1


def test_networks_of_other_classes_are_refused(pictures, run, capsys):
  model, params = quick_lib.digits()
  names = pictures_names(pictures)
  metadata = weights.describe(model, class_names=[*names[:8], 'x', names[8]])
  path = run / 'weights.safetensors'
  weights.save_weights(path, params, {}, metadata)
  assert command.main([str(run)]) == 1
  err = capsys.readouterr().err
  assert 'number 8' in err and "'x'" in err and len(err.splitlines()) == 1


def test_commands_that_say_too_little_or_too_much_are_wrong(capsys):
  for args, message in (
    ([], 'RUN is needed'),
    (['--weights=w.npz'], 'RUN is needed'),
    (['run', '--data=digits'], '--data cannot be set'),
  ):
    with pytest.raises(SystemExit) as error:
      command.main(args)
    assert error.value.code == 2 and message in capsys.readouterr().err


def test_a_page_that_cannot_be_written_leaves_the_old_one(
  tmp_path, monkeypatch
):
  path = tmp_path / 'report.html'
  path.write_text('old')
  monkeypatch.setattr(os, 'replace', lambda *_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    page_lib.save(str(path), 'new')
  assert path.read_text() == 'old' and len(list(tmp_path.iterdir())) == 1


def test_names_that_are_no_text_can_be_written(tmp_path):
  path = tmp_path / 'report.html'
  page_lib.save(str(path), os.fsdecode(b'caf\xe9'))
  assert path.read_text() == 'caf\\udce9'


def test_errors_of_the_dataset_come_before_the_network_runs(pictures):
  model, params = quick_lib.digits()
  with pytest.raises(dataset.DatasetError, match='Unknown split'):
    report.make(model, params, {}, pictures, 'tset')
