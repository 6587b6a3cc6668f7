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


def upload(page, *files):
  page.locator('input[type=file]').first.set_input_files(
    [
      {'name': name, 'mimeType': kind, 'buffer': content}
      for name, kind, content in files
    ]
  )


def check_answer(page):
  says(page, ANSWER)
  page.locator('#stages img').nth(4).wait_for()
  bars = page.locator('#top').get_by_text('%')
  sync_api.expect(bars).to_have_count(5)
  assert page.locator('#pictures img').count() == 2


def test_upload_is_answered_with_all_that_there_is(page):
  upload(page, ('photo.jpg', 'image/png', bad_files.JPEG))
  check_answer(page)
  near = page.locator('#neighbours .caption-label')
  sync_api.expect(near).to_have_count(3)
  assert sorted(x.split(' ', 1)[1] for x in near.all_inner_texts()) == [
    *(f'0 {ODD}.png', f'1 {ODD}.png', f'2 {ODD}.png, not found')
  ]
  before = page.locator('#pictures img').nth(1).get_attribute('src')
  page.get_by_label('How to tell').click()
  page.get_by_role('option', name='Input gradient').click()
  says(page, re.compile('^What speaks for'))
  sync_api.expect(page.locator('#pictures img').nth(1)).not_to_have_attribute(
    'src', before
  )


def test_bad_uploads_are_answered_in_a_sentence(page, subtests):
  heic = b'\0\0\0\x1cftypheic' + bytes(99)
  files = {
    **bad_files.FILES,
    # Without a type by their names.
    'IMG 1': (bad_files.JPEG, None),
    'a': (heic, re.compile('a HEIC picture|damaged|cannot be decoded')),
  }
  for name, (content, reason) in files.items():
    with subtests.test(name=name):
      page.reload()
      says(page, 'Choose an image.')
      upload(page, (name, '', content))
      if isinstance(reason, str):
        reason = re.compile(re.escape(reason))
      says(page, reason or ANSWER)
      assert page.locator('#top').is_visible() == (reason is None)
  upload(page, ('large.png', 'image/png', bytes(20_000_001)))
  page.get_by_text('exceed the maximum allowed size').wait_for()


def test_sketch_is_answered_and_cleared(page):
  page.get_by_role('tab', name='Sketch').click()
  answer = page.get_by_role('button', name='Answer')
  answer.click()
  says(page, 'Draw a digit.')
  page.get_by_label('Brush').click()
  box = page.locator('#sketch canvas').first.bounding_box()
  middle = box['x'] + box['width'] / 2
  page.mouse.move(middle, box['y'] + 0.3 * box['height'])
  page.mouse.down()
  page.mouse.move(middle, box['y'] + 0.7 * box['height'], steps=9)
  page.mouse.up()
  page.wait_for_timeout(1000)  # Gradio's pad says nothing when it is done.
  answer.click()
  check_answer(page)


def test_several_images_make_a_table(page):
  upload(
    page,
    ('a <b>.jpg', 'image/jpeg', bad_files.JPEG),
    ('text.png', 'image/png', b'no image'),
    ('c.jpg', 'image/jpeg', bad_files.JPEG),
  )
  says(page, '3 of 3 images, 1 without an answer.')
  rows = page.locator('#table tbody tr')
  assert rows.count() == 3
  assert rows.nth(0).locator('td').count() == 3
  assert 'no image in' in rows.nth(1).inner_text()
  assert page.locator('#table b').count() == 0


def test_keyboard_is_enough(page):
  example = page.locator('#examples button.thumbnail-item').first
  for _ in range(30):
    page.keyboard.press('Tab')
    if example.evaluate('x => x === document.activeElement'):
      break
  page.keyboard.press('Enter')
  check_answer(page)


def test_everything_that_can_be_operated_has_a_name(page):
  page.locator('#examples img').first.click()
  check_answer(page)
  page.locator('#neighbours img').first.wait_for()
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
  page.locator('#examples img').first.click()
  check_answer(page)
  page.locator('#neighbours img').first.wait_for()
  width = page.evaluate('document.documentElement.scrollWidth')
  assert width == 360


def test_nothing_is_asked_of_another_machine(page, server, requests):
  hosts = {urllib.parse.urlsplit(url).netloc for url in requests}
  assert hosts - {''} == {urllib.parse.urlsplit(server).netloc}
