"""The report: what is on the page, and what can not be."""

import base64
import hashlib
import html.parser
import io
import json
import os
import re
import shutil

import evaluation_lib
import numpy as np
import pictures_lib
from PIL import Image
import pytest
import quick_lib

from nfnets import card as card_command
from nfnets import report as command
from nfnets import weights
from nfnets.data import dataset
from nfnets.inference import drawing, evaluation, networks, report, runs

pictures, quickly_compiled = pictures_lib.pictures, quick_lib.quickly_compiled
run, BATCH = evaluation_lib.run, evaluation_lib.BATCH


class Page(html.parser.HTMLParser):
  """Collects the elements of a page, and its text."""

  def __init__(self, text):
    super().__init__()
    self.elements, self.text = [], ''
    self.feed(text)
    self.text = ' '.join(self.text.split())

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.text += data


def network():
  return networks.of(*quick_lib.digits(), {})


@pytest.fixture(scope='module')
def made(pictures):
  """Returns a page and the predictions."""
  return report.make(
    *(network(), pictures, 'test'),
    run_info={
      'command': 'python x "</code><script>alert(1)</script>"',
      'settings': {'<script>': '<script>alert(2)</script>', 'lr': 0.1},
    },
    scalars={'train': {'train_loss': ([1, 2], [2.0, 1.0])}, 'eval': {}},
    weights_name='</title>w.npz',
    batch_size=BATCH,
  )


def test_names_are_shown_as_they_are(made):
  page, _ = made
  text = Page(page).text
  for name in pictures_lib.NAMES:
    name = ' '.join(name.split())
    assert name.replace('\u202e', '\\u202e') in text
  assert '<bdi>two  words</bdi>' in page
  assert '\u202e' not in page
  assert '"</code><script>alert(1)</script>"' in text
  assert '</title>w.npz' in text
  # Each folder in a path is isolated from the others.
  assert '<bdi>test</bdi>/<bdi>' in page


def test_names_run_nothing(made):
  page, _ = made
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


def test_the_page_says_how_good_the_network_is(made):
  page, found = made
  text = Page(page).text
  assert f'{found.accuracy["share"]:.1%} of 31 test images of' in text
  assert f'between {found.accuracy["low"]:.1%} and' in text
  assert 'Training images40' in text and 'loss' in text and 'lr' in text
  # The least accurate class comes first; all have their numbers.
  rows = re.findall(
    r'<th scope="row">(?:<bdi>.*?</bdi>.?)+</th>.*?</tr>', page, re.S
  )
  for row, shown in zip(found.worst_classes(), rows, strict=False):
    numbers = re.findall(r'class="n">([\d.%]+)<', shown)
    measures = [f'{row[x]:.1%}' for x in ('recall', 'precision', 'f1')]
    counts = ['4', str(row['total']), str(row['predicted'])]
    assert numbers == [*measures, *counts]
  macro = [
    f'{x} {found.macro[f"macro_{x}"]:.1%}' for x in ('precision', 'recall')
  ]
  assert ', '.join(macro) in text
  # Every cell of the matrix that is not 0.
  matrix = page.split('<table class="matrix">')[1].split('</table>')[0]
  cells = re.findall(r'<td class="n s(\d)(?: right)?">(.+?)</td>', matrix)
  expected = found.confusion(10).ravel()
  assert [x.replace('·', '0') for _, x in cells] == [*map(str, expected)]
  assert [shade == '0' for shade, _ in cells] == [*(expected == 0)]
  pictures = [x for x in Page(page).elements if x[0] == 'img']
  assert len(pictures) == 1 + len(found.mistakes) + len(found.uncertain)


def test_curves_are_drawn_where_there_are_numbers():
  scalars = {
    'train': {'train_loss': ([1, 2], [2.0, 1.0])},
    'eval': {
      'eval_loss': ([2], [1.5]),
      'eval_ema_loss': ([2], [1.4]),
      'eval_top_1_acc': ([2], [0.5]),
    },
  }
  panels = drawing.draw_curves(scalars)
  assert [title for title, _ in panels] == ['loss', 'top-1 accuracy']
  for _, uri in panels:
    kind, _, content = uri.partition(',')
    assert kind == 'data:image/svg+xml;base64'
    assert b'</svg>' in base64.b64decode(content)
  assert drawing.draw_curves(scalars) == panels
  assert drawing.draw_curves({}) == []


def test_the_evaluations_of_training_are_a_table(pictures):
  losses = [0.9, 0.5, 0.6, 0.7, 0.8]
  steps = [10, 20, 30, 40, 50]
  scalars = {
    'eval_loss': (steps, losses),
    'eval_top_1_acc': (steps, [0.5, 0.75, 0.7, 0.7, 0.7]),
    'train_sample_loss': (steps, losses),
    'epoch': (steps, [0.5, 1.0, 1.5, 2.0, 2.5]),
    'learning_rate': (steps, [0.1] * 5),
  }
  html, _ = report.make(
    *(network(), pictures, 'test'),
    scalars={'eval': scalars},
    best_step=20,
    batch_size=BATCH,
  )
  table = html[html.index('training loss</th>') :].split('</table>')[0]
  rows = [re.findall(r'>([^<]*)</td>', row) for row in table.split('<tr')[1:]]
  assert [row[1] for row in rows] == ['10', '20', '30', '40', '50']
  assert rows[1][:6] == ['1.0', '20', '0.5000', '0.5000', '75.00 %', '0.1']
  assert [bool(row[6]) for row in rows] == [False, True, False, False, False]
  assert table.count('class="best"') == 1
  assert 'Validation got worse long before the end' in Page(html).text


def test_what_is_wrong_with_the_pictures_is_on_the_page(pictures, tmp_path):
  root = tmp_path / 'pictures'
  shutil.copytree(pictures.root, root, ignore=lambda *_: ['.cache'])
  for split in ('train', 'test'):
    (root / split / 'plain' / 'broken.png').write_bytes(b'')
  shutil.copy(root / 'train/plain/0.png', root / 'train/🦊 fox/same.png')
  builder = dataset.load_builder(str(root))
  html, _ = report.make(network(), builder, 'test', batch_size=BATCH)
  text = Page(html).text
  warned = text[text.index('Before you trust this') :]
  assert '2 images cannot be read, and are left out: ' in warned
  for split in ('train', 'test'):
    assert f'{root}/{split}/plain/broken.png (an empty file)' in warned
  assert 'One file has the same content in two classes' in warned
  assert 'train/plain/0.png = train/🦊 fox/same.png' in warned


@pytest.mark.parametrize(
  ('num_classes', 'best', 'texts'),
  [
    (30, 29, ['The other 10 classes', 'is class 10 10.0%']),
    (200, 199, ['neighbours share a cell', 'is class 10 10.0%']),
    (10, 10, ["the network's other classes", 'not tested', 'is <other> 10.0%']),
  ],
)
def test_many_classes_and_those_of_the_network_have_their_place(
  pictures, monkeypatch, num_classes, best, texts
):
  labels = np.arange(90) % (min(num_classes, 100) - 1)
  predicted = np.where(np.arange(90) % 2, labels, best)
  predicted[0] = 3  # A single mistake of ten images is not white.
  names = [f'class {i}' for i in range(num_classes)] + ['<other>']
  shown = evaluation.Picture(
    0, np.zeros((200, 9, 3), np.uint8), 10, 1, 0.5, 0.1
  )
  found = evaluation.Evaluation(
    *(labels, predicted, num_classes, names), 'data', uncertain=(shown,)
  )
  monkeypatch.setattr(evaluation, 'evaluate', lambda *_: found)
  monkeypatch.setattr(report, '_train_counts', lambda *_: None)
  html, _ = report.make(network(), pictures, 'test')
  page = Page(html)
  assert all(text in page.text for text in texts)
  assert not re.search(r'class="n s0( right)?">\d', html)
  kinds = [x['class'] for _, x in page.elements if 'heat' in x.get('class', '')]
  assert kinds == {30: ['heat c16'], 200: ['heat c2'], 10: []}[num_classes]
  # Of the rows and of the columns, where there is room.
  if kinds:
    heat = html.split('class="heat')[1].split('</div>')[0]
    assert heat.count('<li>') == (60 if num_classes == 30 else 0)


def test_a_single_mistake_is_seen_beside_many_right_ones():
  matrix = np.diag([1000] * 30)
  matrix[3, 7], matrix[4, 8], matrix[5, 9] = 1, 400, 20
  kind, _, content = drawing.draw_confusion(matrix, 16).partition(',')
  assert kind == 'data:image/png;base64'
  image = Image.open(io.BytesIO(base64.b64decode(content)))
  assert image.size == (480, 480)
  # Cells without the grid.
  cells = np.asarray(image.convert('RGB'), float)[7::16, 7::16]
  assert (cells[matrix == 0] == 255).all()
  assert (np.ptp(cells[matrix > 0], axis=-1) > 40).all()
  is_red = cells[..., 0] > cells[..., 2]
  np.testing.assert_array_equal(is_red, (matrix > 0) & ~np.eye(30, dtype=bool))
  one, many, some = (cells[i, i + 4].sum() for i in (3, 4, 5))
  # The logarithm of 20 is half of that of 400.
  assert many < some - 150 < one - 300


def test_a_network_without_any_finite_output_has_no_report(
  run, pictures, capsys
):
  path = run / 'weights.safetensors'
  _, params = quick_lib.digits()
  head = {'w': np.full((256, 10), np.nan), 'b': np.zeros(10)}
  params = {**params, evaluation_lib.HEAD: head}
  weights.save_weights(path, params, {}, weights.read_metadata(path))
  for main in (command.main, card_command.main):
    assert main([str(run), f'--batch_size={BATCH}']) == 1
    out, err = capsys.readouterr()
    assert not out and 'not finite for any of 31 images' in err
  assert not (run / 'report.html').exists()


@pytest.mark.parametrize(
  ('subset', 'noted', 'expected'),
  [
    ('test', {}, False),
    ('valid', {'eval_top_1_acc': 0.5}, False),
    ('test', {'eval_top_1_acc': 0.5}, True),
  ],
)
def test_images_chose_weights_where_evaluation_noted_its_metric(
  run, pictures, subset, noted, expected
):
  file = run / 'weights.safetensors'
  metadata = weights.read_metadata(file)
  settings = {'which_dataset': pictures.root, 'eval_subset': subset}
  (run / 'run.json').write_text(json.dumps({'settings': settings}))
  weights.save_weights(file, *weights.read_weights(file), {**metadata, **noted})
  assert runs.open_run(str(run)).chose_by_test is expected


def test_the_command_writes_the_page_of_a_run(run, pictures, capsys):
  umask = os.umask(0o022)
  os.umask(umask)
  assert command.main([str(run), f'--batch_size={BATCH}']) == 0
  output = run / 'report.html'
  out = capsys.readouterr().out
  results = json.loads(out.splitlines()[-1])
  assert results['output'] == str(output)
  assert results['suspects'] == str(run / 'suspects.csv')
  assert 0 < results['macro_f1'] < 1
  text = Page(output.read_text()).text
  assert '31 test images' in text
  # Without those that chose the best step.
  assert f'Training images{len(pictures.paths("train"))}' in text
  assert output.stat().st_mode & 0o777 == 0o666 & ~umask
  left = {path.name for path in run.iterdir()}
  left -= {'run.json', 'weights.safetensors'}
  assert left == {'report.html', 'suspects.csv', 'README.md'}
  kept = [(run / x).read_bytes() for x in ('README.md', 'suspects.csv')]
  assert command.main([str(run), '--tta=flip', f'--batch_size={BATCH}']) == 0
  assert 'Test-time augmentationflip' in Page(output.read_text()).text
  # The card is of the network alone.
  now = [(run / x).read_bytes() for x in ('README.md', 'suspects.csv')]
  assert [x == y for x, y in zip(kept, now, strict=True)] == [True, False]


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'fake_data': True}, 'was a run on random images'),
    ({}, 'run.json names no dataset'),
    ({'which_dataset': './nowhere'}, 'There is no folder'),
    (None, 'run.json has no settings'),
    ('run.json', 'is no folder of a run'),
    ('weights.safetensors', 'weights.safetensors: there is no such file'),
    ('classes', "instead: 'x'"),
  ],
)
def test_runs_without_a_report_are_told_apart(
  run, pictures, capsys, settings, message
):
  if settings == 'classes':
    model, params = quick_lib.digits()
    names = pictures.names
    names = [*names[:8], 'x', names[8]]
    metadata = weights.describe(model, class_names=names)
    weights.save_weights(run / 'weights.safetensors', params, {}, metadata)
    message = (
      f'have: {pictures.names[9]!r} (number 9). The network has {message}'
    )
  elif isinstance(settings, str):
    (run / settings).unlink()
  else:
    (run / 'run.json').write_text(json.dumps({'settings': settings}))
  assert command.main([str(run)]) == 1
  err = capsys.readouterr().err
  assert err.startswith('error: ') and message in err
  assert len(err.splitlines()) == 1
  assert not (run / 'report.html').exists()


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    ([], 'RUN is needed'),
    (['--weights=nfnet_f0'], 'RUN is needed'),
    (['{run}', '--data=digits'], '--data cannot be set'),
  ],
)
def test_wrong_commands_are_answered(run, capsys, args, message):
  with pytest.raises(SystemExit) as error:
    command.main([arg.format(run=run) for arg in args])
  assert error.value.code == 2 and message in capsys.readouterr().err


def test_pages_appear_whole_or_not_at_all(tmp_path, pictures, monkeypatch):
  path, html = tmp_path / 'report.html', os.fsdecode(b'caf\xe9')
  found = evaluation.Evaluation(np.zeros(1, int), np.zeros(1, int), 1, ['a'])
  report.save(str(path), html, found, pictures, 'test')
  assert path.read_text() == 'caf\\udce9'
  monkeypatch.setattr(os, 'replace', lambda *_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    report.save(str(path), 'new', found, pictures, 'test')
  assert path.read_text() == 'caf\\udce9' and len(list(tmp_path.iterdir())) == 2
