"""The page of the report as HTML, and as a file.

It works offline and runs nothing: all pictures are inside, there is no script,
names are escaped, and a Content-Security-Policy forbids whatever else a name
could bring in.
"""

import base64
from collections.abc import Mapping
import hashlib
import pathlib
import re
from typing import Any

import jinja2
import markupsafe

from nfnets import paths

_FOLDER = pathlib.Path(__file__).parent
# Control characters, what overrides the direction of text, and what stands for
# bytes that are no UTF-8.
_UNSEEN = re.compile(
  '[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]'
)


def render(context: Mapping[str, Any]) -> str:
  """Returns the page, of what the template asks for."""
  style = (_FOLDER / 'report.css').read_text(encoding='utf-8')
  digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_FOLDER),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    finalize=_visible,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters['percent'] = lambda share: f'{share:.1%}'
  environment.filters['thousands'] = lambda number: f'{number:,}'
  template = environment.get_template('report.html.jinja')
  # The style is the project's own, and not a user's.
  style = markupsafe.Markup(style)
  return template.render(context, style=style, style_digest=digest)


def _visible(value: Any) -> Any:
  """Shows marks that would turn or hide the text around them as escapes."""
  if not isinstance(value, str) or isinstance(value, markupsafe.Markup):
    return value
  return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], value)


def save(path: str, html: str) -> None:
  """Writes a page, in full or not at all.

  Raises:
    OSError: if it cannot be written.
  """
  # Names of files can hold what UTF-8 has not.
  paths.write_bytes(path, html.encode('utf-8', 'backslashreplace'))
