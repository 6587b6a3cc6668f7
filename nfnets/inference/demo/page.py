"""The page itself: what is where, and what happens when something is chosen."""

from collections.abc import Callable, Iterator, Sequence
import html
import pathlib
from typing import Any

import gradio as gr
import numpy as np

from nfnets.inference.demo import answers as answers_lib
from nfnets.inference.demo import (
  markup,
  neighbours,
  pictures,
  server,
  sketch,
  uploads,
)

_FOLDER = pathlib.Path(__file__).parent
_NEIGHBOURS = 8
_TABLE_THUMBNAIL = 64
_ON_BUTTON = """
element.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (button) trigger('click', {number: button.dataset.number});
});
"""
_STAGES = [f'Stage {i + 1}, stride {2 ** (i + 1)}' for i in range(5)]


def style() -> dict[str, Any]:
  """Returns what `server.launch` takes as style. No font is fetched."""
  fonts = ['system-ui', 'sans-serif']
  return {
    'theme': gr.themes.Default(
      primary_hue='teal', font=fonts, font_mono=['ui-monospace', 'monospace']
    ),
    'css': (_FOLDER / 'page.css').read_text(encoding='utf-8'),
  }


class Page:
  """Lays out the page, and answers what it asks."""

  def __init__(
    self,
    answers: answers_lib.Answers,
    folder: str,
    *,
    title: str,
    examples: Sequence[tuple[str, str]] = (),
    index: neighbours.Index | None = None,
    images: str = '',
  ):
    """Collects what the page needs.

    Args:
      answers: the network's.
      folder: where uploads are.
      title: what is said of the weights, in a line.
      examples: images to begin with: paths, and names of their classes.
      index: a collection in which to look for similar images.
      images: the folder that the collection's paths start from.
    """
    self._answers = answers
    self._folder = folder
    self._title = title
    self._examples = examples
    self._index = index
    self._images = images
    self._network = answers.network

  def build(self) -> gr.Blocks:
    """Returns the page."""
    name = self._network.name
    # Files that are sent are removed after a while, for which it looks often.
    blocks = gr.Blocks(
      title=f'{name} · nfnets',
      analytics_enabled=False,
      delete_cache=(60, server.KEPT),
    )
    with blocks:
      gr.HTML(
        f'<h1>What {html.escape(name)} sees</h1>'
        f'<p>{html.escape(self._title)}</p>',
        elem_id='title',
      )
      with gr.Row():
        with gr.Column(min_width=280, scale=2):
          inputs = self._inputs()
        with gr.Column(min_width=280, scale=3):
          outputs = self._outputs()
      self._connect(inputs, outputs)
    return blocks

  def _inputs(self) -> dict[str, Any]:
    made = {}
    with gr.Tabs():
      with gr.Tab('Image'):
        made['image'] = gr.Image(
          label='Drop, paste or take an image',
          sources=['upload', 'clipboard', 'webcam'],
          image_mode=None,
          type='filepath',
          height=300,
          buttons=[],
          elem_id='image',
        )
        if self._examples:
          made['examples'] = gr.HTML(
            markup.buttons(self._examples),
            js_on_load=_ON_BUTTON,
            elem_id='examples',
          )
      if sketch.is_for(self._network.name, self._network.class_names):
        with gr.Tab('Sketch'):
          made['sketch'] = gr.HTML(
            html_template=(_FOLDER / 'sketch.html').read_text('utf-8'),
            js_on_load=(_FOLDER / 'sketch.js').read_text('utf-8'),
            elem_id='sketch',
          )
      with gr.Tab('Several'):
        made['files'] = gr.File(
          label=f'Up to {server.MAX_FILES} images',
          file_count='multiple',
          height=200,
          elem_id='files',
        )
    return made

  def _outputs(self) -> dict[str, Any]:
    methods = self._answers.methods
    made = {}
    made['status'] = gr.HTML(
      markup.status('Choose an image.'),
      js_on_load="element.setAttribute('aria-live', 'polite');",
      elem_id='status',
    )
    made['seen'] = gr.State()
    with gr.Column(visible='hidden', elem_id='answer') as made['answer']:
      made['top'] = gr.Label(
        label='Most probable classes', show_heading=False, elem_id='top'
      )
      made['pictures'] = gr.HTML(elem_id='pictures')
      with gr.Row():
        made['label'] = gr.Dropdown(
          label='What speaks for',
          choices=[(name, i) for i, name in enumerate(self._answers.names)],
          min_width=200,
          elem_id='label',
        )
        made['method'] = gr.Dropdown(
          label='How to tell',
          choices=methods,
          value=self._answers.method,
          min_width=200,
          elem_id='method',
        )
      made['stages'] = gr.HTML(elem_id='stages')
      made['neighbours'] = gr.HTML(
        elem_id='neighbours', visible=self._index is not None
      )
    made['table'] = gr.HTML(elem_id='table', visible='hidden')
    return made

  def _connect(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
    self._out = outputs = {**outputs, 'image': inputs['image']}
    # Messages come as they are, so that nothing but `uploads` opens a file.
    settings = {
      'outputs': list(outputs.values()),
      'preprocess': False,
      'concurrency_id': 'network',
      'concurrency_limit': 1,
      'show_progress': 'hidden',
      # What was drawn or chosen meanwhile is answered, too.
      'trigger_mode': 'always_last',
      'api_visibility': 'private',
    }
    method = outputs['method']
    inputs['image'].input(self._on_image, [inputs['image'], method], **settings)
    if 'examples' in inputs:
      inputs['examples'].click(self._on_example, method, **settings)
    if 'sketch' in inputs:
      inputs['sketch'].input(
        self._on_sketch, [inputs['sketch'], method], **settings
      )
    inputs['files'].upload(self._on_files, inputs['files'], **settings)
    for choice in (outputs['label'], method):
      choice.input(
        self._on_choice,
        [outputs['seen'], outputs['label'], method],
        **{
          **settings,
          'outputs': [outputs['status'], outputs['pictures']],
        },
      )

  def _on_image(self, payload: Any, method: Any) -> Iterator[dict]:
    if payload is None:
      yield self._cleared('Choose an image.')
    else:
      for update in self._show(
        lambda: uploads.read(uploads.find(payload, self._folder)), method
      ):
        if update.get(self._out['status'], '').startswith(markup.ALERT):
          update[self._out['image']] = None  # A broken one says nothing.
        yield update

  def _on_example(self, method: Any, event: gr.EventData) -> Iterator[dict]:
    number = getattr(event, 'number', None)
    if number not in map(str, range(len(self._examples))):
      raise gr.Error('There is no such example.')
    path, _ = self._examples[int(number)]
    for update in self._show(lambda: uploads.read(pathlib.Path(path)), method):
      yield {**update, self._out['image']: path}

  def _on_sketch(self, value: Any, method: Any) -> Iterator[dict]:
    if value:
      yield from self._show(lambda: sketch.read(value), method)
    else:
      yield self._cleared('Draw a digit.')

  def _on_choice(self, seen: Any, label: Any, method: Any) -> dict:
    out, answers = self._out, self._answers
    if seen is None:
      return {out['status']: markup.status('Choose an image first.', True)}
    seen = answers_lib.Seen(*seen)
    if not isinstance(label, int) or not 0 <= label < len(answers.names):
      return {out['status']: markup.status('There is no such class.', True)}
    said = f'What speaks for {answers.names[label]}.'
    return {
      out['status']: markup.status(said),
      out['pictures']: self._pictures(seen, label, method),
    }

  def _show(
    self, read: Callable[[], bytes | np.ndarray], method: Any
  ) -> Iterator[dict]:
    """Yields what changes on the page, as it is known."""
    out, answers = self._out, self._answers
    yield {out['status']: markup.status(self._waiting())}
    try:
      seen = answers.see(read())
    except uploads.UploadError as error:
      yield self._cleared(str(error), True)
      return
    best, probability = seen.top[0]
    name = answers.names[best]
    yield {
      out['status']: markup.status(f'{name}, {probability:.1%}.'),
      out['answer']: gr.update(visible=True),
      out['table']: gr.update(visible='hidden'),
      out['seen']: seen,
      out['top']: {answers.names[i]: p for i, p in seen.top},
      out['label']: best,
      out['pictures']: self._pictures(seen, best, method),
    }
    yield {out['stages']: markup.figures('Its five stages', self._stages(seen))}
    if self._index is not None:
      yield {out['neighbours']: self._neighbours(self._index, seen)}

  def _pictures(self, seen: answers_lib.Seen, label: int, method: Any) -> str:
    answers = self._answers
    if method not in answers.methods:
      method = answers.method
    name = answers.names[label]
    side = self._network.image_size
    return markup.figures(
      '',
      [
        (seen.picture, f'What it saw: {side} × {side} pixels'),
        (answers.where(seen, label, method), f'What speaks for {name}'),
      ],
    )

  def _stages(self, seen: answers_lib.Seen) -> list[tuple[np.ndarray, str]]:
    return list(zip(self._answers.stages(seen), _STAGES, strict=True))

  def _neighbours(self, index: neighbours.Index, seen: answers_lib.Seen) -> str:
    try:
      found = index.nearest(self._answers.embed(seen), _NEIGHBOURS)
    except ValueError as error:
      return f'<p>{html.escape(str(error))}</p>'
    shown = []
    for path, similarity in found:
      # Of the collection, which the person has who has started this.
      try:
        picture = markup.thumbnail(
          uploads.read(pathlib.Path(self._images, path))
        )
      except uploads.UploadError:
        picture = None
      shown.append((picture, f'{path} ({similarity:.3f})'))
    return markup.figures('The most similar images', shown)

  def _on_files(self, payloads: Any) -> Iterator[dict]:
    out, answers = self._out, self._answers
    payloads = payloads if isinstance(payloads, list) else [payloads]
    cut = len(payloads) > server.MAX_FILES
    payloads = payloads[: server.MAX_FILES]
    yield {
      **self._cleared(self._waiting()),
      out['table']: gr.update(visible='hidden'),
    }
    rows, failed = [], 0
    for number, payload in enumerate(payloads):
      try:
        image = uploads.read(uploads.find(payload, self._folder))
        seen = answers.see(image)
      except uploads.UploadError as error:
        failed += 1
        rows.append((uploads.name(payload), None, str(error)))
      else:
        said = [(answers.names[i], p) for i, p in seen.top[:3]]
        picture = pictures.thumbnail(seen.picture, _TABLE_THUMBNAIL)
        rows.append((uploads.name(payload), picture, said))
      done = f'{number + 1} of {len(payloads)} images'
      if number + 1 == len(payloads):
        done += f', {failed} without an answer' if failed else ''
        done += f'; the first {server.MAX_FILES} are taken' if cut else ''
      yield {
        out['status']: markup.status(f'{done}.'),
        out['table']: gr.update(value=markup.table(rows), visible=True),
      }

  def _cleared(self, text: str, is_error: bool = False) -> dict:
    out = self._out
    return {
      out['status']: markup.status(text, is_error),
      out['answer']: gr.update(visible='hidden'),
      out['table']: gr.update(visible='hidden'),
      out['seen']: None,
    }

  def _waiting(self) -> str:
    if self._answers.is_warm:
      return 'Looking at it …'
    return (
      'Looking at it … The first answer takes longer, while the network is '
      'compiled for this machine.'
    )
