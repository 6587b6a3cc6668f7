"""The page in a browser, at the server that the command starts."""

import json
import os
import re
import signal
import urllib.parse

import bad_files
import numpy as np
import page_lib
from PIL import Image
import pytest
import quick_lib

from nfnets import weights

# A template of the page might take that for its own.
ODD = '<b>${3*3}{{value}}'
pytestmark = pytest.mark.slow
sync_api = pytest.importorskip('playwright.sync_api')
pytest.importorskip('gradio')

_SECONDS = 30_000  # Milliseconds; compiling is part of the first answer.


@pytest.fixture(scope='module')
def home(tmp_path_factory):
  """A folder in which are all folders that the server may know of."""
  return tmp_path_factory.mktemp('home')


@pytest.fixture(scope='module')
def run(home):
  """The folder of a run of small weights, and a file of embeddings."""
  folder = home / 'run'
  folder.mkdir()
  _, params = quick_lib.digits()
  metadata = {'model': 'nfnet_digits', 'class_names': list('0123456789')}
  weights.save_weights(
    folder / 'weights.safetensors', params, metadata=metadata
  )
  settings = {'which_dataset': 'digits', 'data_dir': str(home / 'data')}
  (folder / 'run.json').write_text(json.dumps({'settings': settings}))
  collection = folder / 'collection'
  collection.mkdir()
  names = [f'{i} {ODD}.png' for i in range(3)]
  for i, name in enumerate(names[:2]):
    pixels = np.full((20, 30, 3), 100 * i, np.uint8)
    Image.fromarray(pixels).save(collection / name)
  np.savez(
    folder / 'embeddings.npz',
    embeddings=np.random.default_rng(0).normal(size=(3, 256)),
    paths=np.array(names),
    model=np.array('nfnet_digits'),
  )
  return folder


@pytest.fixture(scope='module')
def server(home, run):
  """The address of the page."""
  collection = run / 'collection'
  for name in ('tmp', 'cwd'):
    (home / name).mkdir()
  folders = {
    'HOME': str(home),
    'XDG_CACHE_HOME': str(home / 'cache'),
    'TMPDIR': str(home / 'tmp'),
  }
  with page_lib.serving(
    f'--weights={run}',
    f'--embeddings={run / "embeddings.npz"}',
    f'--images={collection}',
    cwd=home / 'cwd',
    env=folders,
  ) as (url, process):
    yield url
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
  assert not os.listdir(home / 'tmp')
  assert not os.listdir(home / 'cwd')
  # Of what else there is, the server has made only the dataset.
  assert {x.name for x in home.iterdir()} <= {
    *('run', 'tmp', 'cwd', 'data', 'cache')
  }


@pytest.fixture(scope='module')
def browser():
  if page_lib.CHROMIUM is None:
    pytest.skip('there is no Chromium')
  with page_lib.browsing() as browser:
    yield browser


@pytest.fixture(scope='module')
def requests():
  """Addresses of all that any page asks for."""
  return []


@pytest.fixture
def page(browser, server, requests):
  """The page in a window of its own."""
  window = browser.new_page(viewport={'width': 1200, 'height': 900})
  window.set_default_timeout(_SECONDS)
  window.on('request', lambda request: requests.append(request.url))
  window.goto(server)
  says(window, 'Choose an image.')
  yield window
  window.close()


def says(page, text):
  """Waits until the page says something, a text or a pattern."""
  sync_api.expect(page.locator('#status p')).to_have_text(
    text, timeout=_SECONDS
  )


ANSWER = re.compile(r'^\d, \d+\.\d%\.$')


def upload(page, name, content, where='#image'):
  file = {'name': name, 'mimeType': 'image/png', 'buffer': content}
  page.locator(f'{where} input[type=file]').set_input_files(file)


def check_answer(page):
  says(page, ANSWER)
  page.locator('#stages figure').nth(4).wait_for()
  bars = page.locator('#top').get_by_text('%')
  sync_api.expect(bars).to_have_count(5)
  assert page.locator('#pictures figure').count() == 2


def test_upload_is_answered_with_all_that_there_is(page):
  upload(page, 'photo.jpg', bad_files.JPEG)
  check_answer(page)
  near = page.locator('#neighbours figcaption')
  sync_api.expect(near).to_have_count(3)
  assert sorted(x.split(' (')[0] for x in near.all_inner_texts()) == [
    *(f'0 {ODD}.png', f'1 {ODD}.png', f'2 {ODD}.png')
  ]
  assert page.locator('#neighbours img').count() == 2
  before = page.locator('#pictures img').nth(1).get_attribute('src')
  page.get_by_label('How to tell').click()
  page.get_by_role('option', name='Input gradient').click()
  says(page, re.compile('^What speaks for'))
  after = page.locator('#pictures img').nth(1).get_attribute('src')
  assert before != after


def test_bad_uploads_are_answered_in_a_sentence(page, subtests):
  for name, (content, reason) in bad_files.FILES.items():
    with subtests.test(name=name):
      page.reload()
      says(page, 'Choose an image.')
      upload(page, name, content)
      says(page, ANSWER if reason is None else re.compile(re.escape(reason)))
      has_answer = page.locator('#answer').is_visible()
      assert has_answer == (reason is None)


def test_sketch_is_answered_and_cleared(page):
  page.get_by_role('tab', name='Sketch').click()
  pad = page.locator('#sketch canvas')
  box = pad.bounding_box()
  page.mouse.move(box['x'] + 140, box['y'] + 40)
  page.mouse.down()
  page.mouse.move(box['x'] + 140, box['y'] + 240, steps=5)
  page.mouse.up()
  check_answer(page)
  page.get_by_role('button', name='Clear').click()
  says(page, 'Draw a digit.')


def test_several_images_make_a_table(page):
  page.get_by_role('tab', name='Several').click()
  files = [
    {'name': name, 'mimeType': 'image/png', 'buffer': content}
    for name, content in (
      ('a <b>.jpg', bad_files.JPEG),
      ('text.png', b'no image'),
      ('c.jpg', bad_files.JPEG),
    )
  ]
  page.locator('#files input[type=file]').set_input_files(files)
  says(page, '3 of 3 images, 1 without an answer.')
  rows = page.locator('#table tbody tr')
  assert rows.count() == 3
  assert rows.nth(0).locator('td').count() == 4
  assert 'no image in' in rows.nth(1).inner_text()
  assert page.locator('#table b').count() == 0


def test_keyboard_is_enough(page):
  example = page.locator('#examples button').first
  for _ in range(30):
    page.keyboard.press('Tab')
    if example.evaluate('x => x === document.activeElement'):
      break
  page.keyboard.press('Enter')
  check_answer(page)
  page.get_by_role('tab', name='Image', exact=True).focus()
  page.keyboard.press('Tab')  # The next one is that of the sketch pad.
  page.keyboard.press('Enter')
  pad = page.locator('#sketch canvas')
  for _ in range(5):
    page.keyboard.press('Tab')
    if pad.evaluate('x => x === document.activeElement'):
      break
  page.keyboard.press('Enter')
  says(page, 'Draw a digit first.')
  for key in ('ArrowUp', 'ArrowUp', ' ', 'ArrowDown', 'ArrowDown', 'Enter'):
    page.keyboard.press(key)
  check_answer(page)


def test_everything_that_can_be_operated_has_a_name(page):
  page.locator('#examples button').first.click()
  check_answer(page)
  page.locator('#neighbours figure').first.wait_for()
  nameless = page.evaluate("""() => [...document.querySelectorAll(
    'button, input, select, textarea, a[href], canvas, [tabindex="0"]'
  )].filter(x => x.checkVisibility() && !(
    x.innerText?.trim() || x.getAttribute('aria-label') || x.title ||
    x.labels?.length || x.getAttribute('aria-labelledby') ||
    x.querySelector('img[alt]:not([alt=""])')
  )).map(x => x.outerHTML.slice(0, 300))""")
  assert not nameless


def test_narrow_window_needs_no_scrolling_sideways(page):
  page.set_viewport_size({'width': 360, 'height': 740})
  page.locator('#examples button').first.click()
  check_answer(page)
  page.locator('#neighbours figure').first.wait_for()
  width = page.evaluate('document.documentElement.scrollWidth')
  assert width == 360


def test_nothing_is_asked_of_another_machine(page, server, requests):
  hosts = {urllib.parse.urlsplit(url).netloc for url in requests}
  assert hosts - {''} == {urllib.parse.urlsplit(server).netloc}
