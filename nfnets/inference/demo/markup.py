"""Parts of the page as HTML, in which nothing from outside is markup."""

from collections.abc import Sequence
import html
import io
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from nfnets.inference import classes
from nfnets.inference.demo import pictures, uploads

ALERT = '<p class="alert">'  # What a message of something wrong begins with.
_THUMBNAIL = 256


def buttons(examples: Sequence[tuple[str, str]]) -> str:
  """Returns images to choose from, as HTML."""
  parts = []
  for number, (path, name) in enumerate(examples):
    url = pictures.data_url(thumbnail(uploads.read(pathlib.Path(path))))
    parts.append(
      f'<button type="button" data-number="{number}"><img alt="" src="{url}">'
      f'{html.escape(name)}</button>'
    )
  return f'<h2>Examples</h2><div class="choices">{"".join(parts)}</div>'


def status(text: str, is_error: bool = False) -> str:
  """Returns a message."""
  return f'{ALERT if is_error else "<p>"}{html.escape(text)}</p>'


def figures(title: str, shown: Sequence[tuple[np.ndarray | None, str]]) -> str:
  """Returns pictures with their captions, as HTML."""
  parts = []
  for picture, caption in shown:
    caption = html.escape(caption)
    image = '<div class="missing">not found</div>'
    if picture is not None:
      # The caption says it already.
      image = f'<img alt="" src="{pictures.data_url(picture)}">'
    parts.append(f'<figure>{image}<figcaption>{caption}</figcaption></figure>')
  heading = f'<h2>{html.escape(title)}</h2>' if title else ''
  return f'{heading}<div class="figures">{"".join(parts)}</div>'


def table(rows: Sequence[tuple[str, np.ndarray | None, Any]]) -> str:
  """Returns names, pictures and classes or what is wrong, as HTML."""
  parts = []
  for name, picture, said in rows:
    image = ''
    if picture is not None:
      image = f'<img alt="" src="{pictures.data_url(picture)}">'
    if isinstance(said, str):
      cells = f'<td colspan="3" class="alert">{html.escape(said)}</td>'
    else:
      cells = ''.join(
        f'<td>{html.escape(label)}<br>{probability:.1%}</td>'
        for label, probability in said
      )
    name = html.escape(classes.on_one_line(name))
    parts.append(f'<tr><td>{image}</td><th scope="row">{name}</th>{cells}</tr>')
  return (
    '<table><thead><tr><th scope="col">Image</th><th scope="col">File</th>'
    '<th scope="col">First</th><th scope="col">Second</th>'
    f'<th scope="col">Third</th></tr></thead><tbody>{"".join(parts)}</tbody>'
    '</table>'
  )


def thumbnail(image: bytes | np.ndarray) -> np.ndarray:
  """Returns a small picture of what `uploads.read` returns."""
  if isinstance(image, bytes):
    image = np.asarray(Image.open(io.BytesIO(image)).convert('RGB'))
  return pictures.thumbnail(image, _THUMBNAIL)
