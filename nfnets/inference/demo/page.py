"""The page itself: what it shows, and what happens when something is chosen."""

from collections.abc import Iterator, Sequence
import html
import os
import pathlib
from typing import Any

import gradio as gr
import numpy as np

from nfnets import messages
from nfnets.errors import ImageError
from nfnets.inference.demo import answers as answers_lib
from nfnets.inference.demo import neighbours, pictures, server

_NEIGHBOURS = 8
_MAX_FILES = 32  # In one table.
_STAGES = [f'Stage {i + 1}, stride {2 ** (i + 1)}' for i in range(5)]
_TABLE = (
  '<table><thead><tr><th scope="col">File</th><th scope="col">First</th>'
  '<th scope="col">Second</th><th scope="col">Third</th></tr></thead><tbody>'
  '{}</tbody></table>'
)


def style() -> dict[str, Any]:
  """Return what `server.launch` takes as style. No font is fetched."""
  fonts = ['system-ui', 'sans-serif']
  css = pathlib.Path(__file__).with_name('page.css')
  return {
    'theme': gr.themes.Default(
      primary_hue='teal', font=fonts, font_mono=['ui-monospace', 'monospace']
    ),
    'css': css.read_text(encoding='utf-8'),
  }


class Page:
  """Lays out the page, and answers what it asks.

  Args:
    answers: the network's.
    title: a line about the weights.
    examples: images to begin with: paths, and names of their classes.
    index: a collection in which to look for similar images.
    images: the folder that the collection's paths start from.

  Attributes:
    blocks: the page, of Gradio.
  """

  def __init__(
    self,
    answers: answers_lib.Answers,
    *,
    title: str,
    examples: Sequence[tuple[str, str]] = (),
    index: neighbours.Index | None = None,
    images: str = '',
  ):
    self._answers, self._examples = answers, examples
    self._index, self._images = index, images
    name = answers.network.name
    # Files that are sent are removed after a while, for which it looks often.
    self.blocks = gr.Blocks(
      title=f'{name} · nfnets',
      analytics_enabled=False,
      delete_cache=(60, server.KEPT),
    )
    with self.blocks:
      gr.HTML(
        f'<h1>What {html.escape(name)} sees</h1><p>{html.escape(title)}</p>',
        elem_id='title',
      )
      with gr.Row():
        with gr.Column(min_width=280, scale=2), gr.Tabs():
          events = self._make_inputs()
        with gr.Column(min_width=280, scale=3):
          self._make_outputs()
      self._connect(events)

  def _make_inputs(self) -> list[tuple]:
    """Make what is on the left; return events, their handlers and inputs."""
    network = self._answers.network
    with gr.Tab('Files'):
      # gr.Image would take only what the browser knows as an image.
      self._files = gr.File(
        label='Drop an image, or several', file_count='multiple', height=160
      )
      events = [(self._files.upload, self._on_files, self._files)]
      if self._examples:
        shown = self._gallery('Examples', list(self._examples))
        events.append((shown.select, self._on_example, None))
    with gr.Tab('Camera, clipboard'):
      camera = gr.Image(
        label='Take or paste an image',
        sources=['webcam', 'clipboard'],
        image_mode=None,
        type='filepath',
        height=300,
        buttons=[],
      )
      events.append((camera.input, self._show, camera))
    if pictures.is_for_digits(network.name, network.class_names):
      with gr.Tab('Sketch'):
        pad = gr.Sketchpad(
          label='Draw a digit with the brush',
          image_mode='L',
          canvas_size=(280, 280),
          fixed_canvas=True,
          brush=gr.Brush(26, colors=['#000000'], color_mode='fixed'),
          layers=False,
          transforms=(),
          buttons=[],
          elem_id='sketch',
        )
        # The pad's own events come before the drawing has arrived.
        events.append((gr.Button('Answer').click, self._on_sketch, pad))
    return events

  def _make_outputs(self) -> None:
    answers = self._answers
    self._status = gr.HTML(
      '<p>Choose an image.</p>',
      js_on_load="element.setAttribute('aria-live', 'polite');",
      elem_id='status',
    )
    self._seen = gr.State()
    with gr.Column(visible=False, elem_id='answer') as self._answer:
      self._top = gr.Label(
        label='Most probable classes', show_heading=False, elem_id='top'
      )
      self._pictures = self._gallery('Pictures')
      with gr.Row():
        self._label = gr.Dropdown(
          label='What speaks for',
          choices=[(name, i) for i, name in enumerate(answers.names)],
          min_width=200,
        )
        self._method = gr.Dropdown(
          label='How to tell',
          choices=answers.methods,
          value=answers.method,
          min_width=200,
        )
      self._stages = self._gallery('Stages')
      self._neighbours = self._gallery('Neighbours')
    self._table = gr.HTML(elem_id='table', visible=False)

  def _gallery(self, label: str, value: Any = None) -> gr.Gallery:
    return gr.Gallery(
      value,
      label=label,
      format='png',
      object_fit='contain',
      interactive=False,
      allow_preview=label != 'Examples',
      visible=label != 'Neighbours' or self._index is not None,
      buttons=[],
      elem_id=label.lower(),
      elem_classes='figures',
    )

  def _connect(self, events: list[tuple]) -> None:
    outputs = [self._status, self._seen, self._answer, self._top, self._files]
    outputs += [self._pictures, self._label, self._stages, self._neighbours]
    outputs += [self._table]
    choices = [self._seen, self._label, self._method]
    events += [(x.input, self._on_choice, choices) for x in choices[1:]]
    for event, handler, inputs in events:
      inputs = inputs if isinstance(inputs, list) else [inputs, self._method]
      event(
        handler,
        [x for x in inputs if x is not None],
        outputs,
        concurrency_id='network',
        concurrency_limit=1,
        show_progress='hidden',
        # Also answer input that arrives while the network runs.
        trigger_mode='always_last',
        api_visibility='private',
      )

  def _on_files(self, paths: list[str], method: str) -> Iterator[dict]:
    alone = len(paths) == 1
    answer = self._show(paths[0], method) if alone else self._list(paths)
    for update in answer:
      # Empty, it takes the next ones.
      yield {**update, self._files: None}

  def _on_example(self, method: str, event: gr.SelectData) -> Iterator[dict]:
    yield from self._show(self._examples[event.index][0], method)

  def _on_sketch(self, drawing: dict | None, method: str) -> Iterator[dict]:
    composite = drawing and drawing['composite']
    digit = None if composite is None else pictures.digit(composite)
    if digit is None:
      yield self._cleared('Draw a digit.')
    else:
      yield from self._show(digit, method)

  def _on_choice(self, seen: Any, label: int, method: str) -> dict:
    name = self._answers.names[label]
    return {
      self._status: _status(f'What speaks for {name}.'),
      self._pictures: self._shown(seen, label, method),
    }

  def _show(
    self, image: str | np.ndarray | None, method: str
  ) -> Iterator[dict]:
    """Yield what changes on the page for a file or a digit, as it is known."""
    answers = self._answers
    if image is None:
      yield self._cleared('Choose an image.')
      return
    yield {self._status: _status(self._waiting())}
    try:
      image = pictures.read(image) if isinstance(image, str) else image
      seen, top = answers.see(image)
    except ImageError as error:
      yield self._cleared(sentence(error), True)
      return
    best, probability = top[0]
    yield {
      self._status: _status(f'{answers.names[best]}, {probability:.1%}.'),
      self._answer: gr.update(visible=True),
      self._table: gr.update(visible=False),
      self._seen: seen,
      self._top: {answers.names[i]: p for i, p in top},
      self._label: best,
      self._pictures: self._shown(seen, best, method),
    }
    stages = zip(answers.stages(seen), _STAGES, strict=True)
    yield {self._stages: list(stages)}
    if self._index is not None:
      found = self._index.nearest(answers.embed(seen), _NEIGHBOURS)
      yield {self._neighbours: [self._neighbour(*x) for x in found]}

  def _shown(self, seen: np.ndarray, label: int, method: str) -> list[tuple]:
    side, name = len(seen), self._answers.names[label]
    return [
      (self._answers.picture(seen), f'What it saw: {side} × {side} pixels'),
      (self._answers.where(seen, label, method), f'What speaks for {name}'),
    ]

  def _neighbour(self, path: str, similarity: float) -> tuple:
    picture = pictures.thumbnail(os.path.join(self._images, path))
    caption = f'{similarity:.3f} {messages.printable(path)}'
    if picture is None:
      return np.full((64, 64, 3), 200, np.uint8), f'{caption}, not found'
    return picture, caption

  def _list(self, paths: list[str]) -> Iterator[dict]:
    """Yield a table that grows, with a row for each file."""
    yield self._cleared(self._waiting())
    names, rows, failed = self._answers.names, '', 0
    count = min(len(paths), _MAX_FILES)
    for number, path in enumerate(paths[:count], 1):
      try:
        _, top = self._answers.see(pictures.read(path))
      except ImageError as error:
        failed += 1
        text = html.escape(sentence(error))
        cells = f'<td colspan="3" class="alert">{text}</td>'
      else:
        shown = [f'{html.escape(names[i])}<br>{p:.1%}' for i, p in top[:3]]
        cells = ''.join(f'<td>{x}</td>' for x in shown)
      name = html.escape(messages.printable(os.path.basename(path)))
      rows += f'<tr><th scope="row">{name}</th>{cells}</tr>'
      done = f'{number} of {count} images'
      if number == count:
        done += f', {failed} without an answer' if failed else ''
        done += f'; the first {count} are taken' if count < len(paths) else ''
      yield {
        self._status: _status(f'{done}.'),
        self._table: gr.update(value=_TABLE.format(rows), visible=True),
      }

  def _cleared(self, text: str, is_error: bool = False) -> dict:
    return {
      self._status: _status(text, is_error),
      self._answer: gr.update(visible=False),
      self._table: gr.update(visible=False),
      self._seen: None,
    }

  def _waiting(self) -> str:
    if self._answers.is_warm:
      return 'Looking at it …'
    return (
      'Looking at it … The first answer takes longer, while the network is '
      'compiled for this machine.'
    )


def _status(text: str, is_error: bool = False) -> str:
  return f'<p class="{"alert" if is_error else ""}">{html.escape(text)}</p>'


def sentence(error: ImageError) -> str:
  """Return what the page says of a file without an answer."""
  reason = str(error).rstrip('.')
  verb = '' if reason.startswith(('has ', 'cannot ')) else 'is '
  return f'This file {verb}{reason}.'
