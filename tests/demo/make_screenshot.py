"""Takes the picture of the page in docs/demo.md, with a run's test images.

python tests/demo/make_screenshot.py runs/digits
"""

import argparse
import io
import pathlib
import signal

import page_lib
from PIL import Image

_OUTPUT = pathlib.Path(__file__).parents[2] / 'docs' / 'demo.png'
_EXAMPLE = 3


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('run', metavar='RUN', help='folder of a run on digits')
  run = parser.parse_args().run
  with page_lib.serving(f'--weights={run}') as (url, process):
    with page_lib.browsing() as browser:
      page = browser.new_page(viewport={'width': 1100, 'height': 900})
      page.set_default_timeout(120_000)
      page.goto(url)
      page.locator('#examples img').nth(_EXAMPLE).click()
      page.locator('#stages img').nth(4).wait_for()
      page.locator('#top').get_by_text('%').first.wait_for()
      page.wait_for_timeout(1000)  # Bars grow.
      content = page.screenshot(full_page=True)
    process.send_signal(signal.SIGINT)
    process.wait()
  image = Image.open(io.BytesIO(content)).convert('RGB')
  image.save(_OUTPUT, optimize=True)
  print(_OUTPUT, f'{_OUTPUT.stat().st_size / 1e3:.0f} kB')


if __name__ == '__main__':
  main()
