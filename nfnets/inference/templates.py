"""The templates of the report and of the card."""

from collections.abc import Callable
import pathlib
from typing import Any

import jinja2

from nfnets import finite_json

FOLDER = pathlib.Path(__file__).parent


def as_text(value: Any) -> str:
  """Return a value as text: a string as it is, all else as JSON."""
  if isinstance(value, str):
    return value
  return finite_json.dumps(value, ensure_ascii=False, default=str)


def render(template: str, escape: Callable[[Any], Any], **context: Any) -> str:
  """Return a text made from a template in this folder.

  Args:
    template: the name of the file.
    escape: a function that is applied to every shown value.
    **context: the variables of the template.
  """
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(FOLDER),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    finalize=escape,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters['percent'] = '{:.1%}'.format
  environment.filters['thousands'] = '{:,}'.format
  environment.filters['as_text'] = as_text
  return environment.get_template(template).render(context)
