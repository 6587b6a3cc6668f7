"""The text of a model card: what a network is, how good, and how to use it.

Markdown, with the block of metadata in front that the Hugging Face Hub reads.
"""

from collections.abc import Mapping, Sequence
import json
import os
import re
import shlex
from typing import Any, NamedTuple
import unicodedata

import numpy as np

from nfnets.inference import advice, measures
from nfnets.weights import fetching, hub

_SHOWN_CLASSES = 20  # The others are folded up.
# What GitHub's Markdown would take for more than text.
_SPECIAL = re.compile(r'[\\`*{}\[\]<>&|#~!$]|\b_|_\b')
_SEED = re.compile(r'(random_seed[= ])\S+')
_DATASETS = {'imagenet2012': 'imagenet-1k'}  # Names of the hub.


class Measured(NamedTuple):
  """What a network makes of a split.

  Attributes:
    dataset: Its name.
    split: 'test' or 'validation'.
    names: Of the classes.
    counts: Of the predictions.
    chosen: Whether these images decided which weights were kept.
  """

  dataset: str
  split: str
  names: Sequence[str]
  counts: measures.ByClass
  chosen: bool = False


def make(
  metadata: Mapping[str, Any],
  info: Mapping[str, Any] | None = None,
  measured: Measured | None = None,
) -> str:
  """Returns the card.

  Args:
    metadata: what the file of weights says of itself.
    info: what is in run.json, if training left one.
    measured: results on a dataset; without them the card has what training
      measured, if anything.
  """
  info = info or {}
  settings = info.get('settings', {})
  base = settings.get('weights') or ''
  sections = [
    _header(metadata, info, measured, base),
    _title(metadata, base),
    _results(metadata, info, measured),
    _usage(metadata),
    _preprocessing(metadata),
    _training(metadata, info),
    _privacy(metadata),
    _limits(metadata, measured),
    _license(base),
  ]
  return '\n\n'.join(section for section in sections if section) + '\n'


def _header(metadata, info, measured, base) -> str:
  """Returns the block of metadata, as YAML whose values are JSON."""
  kind = 'image-classification'
  if metadata.get('num_classes') == 0:
    kind = 'image-feature-extraction'
  data = _dataset(metadata, measured)
  block = {
    'library_name': 'nfnets',
    'pipeline_tag': kind,
    'tags': [kind, 'nfnets', 'normalizer-free', 'jax', 'haiku'],
  }
  if base in fetching.RELEASED:
    block['license'] = 'apache-2.0'
  if base and hub.is_name(base):
    block['base_model'] = _repository(base)
  if data in _DATASETS:
    block['datasets'] = [_DATASETS[data]]
  accuracy = _accuracy(info, measured)
  if accuracy is not None:
    share, _, split = accuracy
    result = {
      'task': {'type': kind},
      'dataset': {
        'type': _DATASETS.get(data, _slug(data)),
        'name': data,
        'split': split,
      },
      'metrics': [{'type': 'accuracy', 'name': 'top-1', 'value': share}],
    }
    name = metadata.get('model', 'network')
    block['model-index'] = [{'name': name, 'results': [result]}]
  lines = [
    f'{key}: {json.dumps(value, ensure_ascii=False)}'
    for key, value in block.items()
  ]
  return '\n'.join(['---', *lines, '---'])


def _repository(name: str) -> str:
  if name.startswith('hf://'):
    return name.removeprefix('hf://').partition('@')[0]
  tagged = (known for known in hub.NAMES if known.partition('.')[0] == name)
  return next(tagged, name)


def _slug(text: str) -> str:
  return re.sub(r'[^\w.-]+', '-', text).strip('-') or 'images'


def _dataset(metadata: Mapping[str, Any], measured: Measured | None) -> str:
  name = metadata.get('trained_on') or (measured and measured.dataset) or ''
  # Of a folder the last part: the others are of somebody's machine.
  return _plain(os.path.basename(str(name).rstrip('/'))) or 'images'


def _title(metadata: Mapping[str, Any], base: str) -> str:
  name = metadata.get('model', 'A normalizer-free network')
  data = metadata.get('trained_on')
  title = f'# {name}'
  if data:
    what = 'fine-tuned' if base else 'trained'
    title += f', {what} on {_text(_dataset(metadata, None))}'
  number = metadata.get('num_classes')
  does = 'gives a vector for an image'
  if number:
    names = metadata.get('class_names') or []
    shown = ', '.join(_text(name) for name in names[:10])
    shown += ', …' if len(names) > 10 else ''
    does = f'tells {number:,} classes of images apart'
    does += f': {shown}' if shown else ''
  text = (
    f'{title}\n\nA network without normalization layers, {name}, that {does}. '
    'The family is described in '
    '[Characterizing signal propagation to close the performance gap in '
    'unnormalized ResNets](https://arxiv.org/abs/2101.08692) and '
    '[High-Performance Large-Scale Image Recognition Without '
    'Normalization](https://arxiv.org/abs/2102.06171).'
  )
  if base:
    text += f' Training started from the weights `{_code(base)}`.'
  return text


def _accuracy(info, measured) -> tuple[float, int, str] | None:
  """Returns the accuracy, of how many images and of which split."""
  if measured is not None:
    total = int(measured.counts.total.sum())
    share = float(measured.counts.correct.sum() / total) if total else 0.0
    return share, total, measured.split
  results = info.get('results') or {}
  share, total = (
    results.get(f'test_{x}') for x in ('top_1_acc', 'num_examples')
  )
  if share is None or not total:
    return None
  return float(share), int(total), str(results.get('test_split', 'test'))


def _results(metadata, info, measured) -> str:
  lines = ['## Results', '']
  accuracy = _accuracy(info, measured)
  if accuracy is None:
    known = metadata.get('accuracy')
    if known is None:
      return '\n'.join([*lines, 'Not measured yet.'])
    lines.append(
      f'Accuracy {known:.1%}, as noted when the weights were written; on how '
      'many images is not known.'
    )
    return '\n'.join(lines)
  share, total, split = accuracy
  low, high = measures.wilson(round(share * total), total)
  data = _text(_dataset(metadata, measured))
  lines.append(
    f'**{share:.1%}** of {total:,} images of {data} ({split}) are recognized; '
    f'the 95 % interval is {low:.1%} to {high:.1%} (Wilson).'
  )
  if split != 'test' or (measured and measured.chosen):
    lines += [
      '',
      'These images also decided which weights were kept, so that the accuracy '
      'on new ones is a little lower.',
    ]
  if measured is None:
    lines += ['', 'By class: not measured; `python -m nfnets.card` does it.']
  else:
    lines += ['', *_classes(measured)]
  return '\n'.join(lines)


def _classes(measured: Measured) -> list[str]:
  """Returns the table of the classes, the least accurate first."""
  counts = measured.counts
  low, high = measures.wilson(counts.correct, counts.total)
  share = counts.correct / np.maximum(counts.total, 1)
  order = np.lexsort((high, share, counts.total == 0))
  head = [
    '| class | recognized | of | share | 95 % interval | predicted |',
    '|---|---|---|---|---|---|',
  ]
  rows = [
    f'| {_text(measured.names[i])} | {counts.correct[i]} | {counts.total[i]} | '
    + (f'{share[i]:.1%} | ' if counts.total[i] else '– | ')
    + f'{low[i]:.1%} – {high[i]:.1%} | {counts.predicted[i]} |'
    for i in order
  ]
  lines = [*head, *rows[:_SHOWN_CLASSES]]
  if rest := rows[_SHOWN_CLASSES:]:
    lines += [
      *('', '<details>'),
      f'<summary>The other {len(rest):,} classes</summary>',
      *('', *head, *rest, '', '</details>'),
    ]
  return lines


def _usage(metadata: Mapping[str, Any]) -> str:
  call = 'logits' if metadata.get('num_classes', 1) else 'embed'
  command = 'classify IMAGE' if call == 'logits' else 'embed FOLDER --output=F'
  verb, _, arguments = command.partition(' ')
  return f"""## Use

```python
import nfnets
model, params, state = nfnets.load('weights.safetensors')  # Or 'hf://owner/name'.
image = model.preprocess(open('image.jpg', 'rb').read())
print(model.{call}(params, image[None], state))
```

or, in a shell,
`python -m nfnets.{verb} --weights=weights.safetensors {arguments}`."""


def _preprocessing(metadata: Mapping[str, Any]) -> str:
  size, mode = metadata.get('image_size'), metadata.get('preprocessing')
  if not size or not mode:
    return ''
  mean, std = (
    ', '.join(f'{x:.3f}' for x in metadata.get(key, ()))
    for key in ('mean', 'std')
  )
  return (
    f'## Preprocessing\n\nImages of {size} × {size} pixels, RGB, by '
    f'`{mode}` (bicubic). Of the channels in 0–255, the mean {mean} is '
    f'subtracted, and what remains divided by {std}. `model.preprocess` does '
    'it.'
  )


def _training(metadata: Mapping[str, Any], info: Mapping[str, Any]) -> str:
  rows = [
    ('Dataset', _dataset(metadata, None) if 'trained_on' in metadata else ''),
    ('Updates', metadata.get('step')),
    ('Started', info.get('started')),
    *((k, v) for k, v in info.get('versions', {}).items()),
  ]
  rows = [(k, v) for k, v in rows if v]
  if not rows and not info:
    return ''
  lines = ['## Training', '']
  if rows:
    lines += ['| | |', '|---|---|']
    lines += [f'| {_text(k)} | {_text(v)} |' for k, v in rows]
  command = info.get('command') or ''
  if isinstance(command, list):
    command = shlex.join(command)
  if 'privacy' in metadata:  # Who knows the seed can take the noise away.
    command = _SEED.sub(r'\1…', command)
  if command:
    lines += ['', '```', _code(command), '```']
  if settings := dict(info.get('settings', {})):
    if settings.get('which_dataset'):
      settings['which_dataset'] = _dataset(metadata, None)
    lines += [
      *('', '<details>', '<summary>All settings</summary>', '', '```'),
      *(f'{_code(k)} = {_code(v)}' for k, v in sorted(settings.items())),
      *('```', '', '</details>'),
    ]
  return '\n'.join(lines)


def _privacy(metadata: Mapping[str, Any]) -> str:
  if 'privacy' not in metadata:
    return ''
  facts = metadata['privacy']
  return (
    '## Privacy\n\nTraining was differentially private (DP-SGD, '
    '[arXiv 1607.00133](https://arxiv.org/abs/1607.00133)): '
    f'**ε = {facts["epsilon"]:.3g}** at δ = {facts["delta"]:g} for adding or '
    f'removing one image, after {facts["steps"]:,} updates on batches of '
    f'{facts["batch_size"]:,} of {facts["num_examples"]:,}, the gradient of '
    f'each clipped to a norm of {facts["clipping"]:g}, with a noise multiplier '
    f'of {facts["noise_multiplier"]:g}.\n\n'
    'This ε is that of Poisson sampling, each image being in each batch by a '
    'draw of its own, while batches were parts of shuffled epochs: it is '
    'usual to state it so, and not proved '
    '([arXiv 2403.17673](https://arxiv.org/abs/2403.17673)). What is proved, '
    'for any order and for leaving out what one image contributes, is '
    f'ε ≤ {facts["epsilon_of_any_order"]:.3g}. Both are of this training '
    'alone, not of other runs on the same images, and hold as long as the seed '
    'of the noise is secret.'
  )


def _limits(metadata: Mapping[str, Any], measured: Measured | None) -> str:
  points = [
    'It knows the classes that it was trained on, and says one of them of any '
    'image.'
    if metadata.get('num_classes')
    else 'Its vectors mean something for images like those of training.',
    'Nothing was measured but what this page shows: neither images of another '
    'origin, noise or attacks, nor whether the probabilities are calibrated, '
    'nor whether groups of people fare differently.',
  ]
  if metadata.get('trained_on') in _DATASETS:
    points.append(
      "ImageNet's images are mostly photographs of single things, collected on "
      'the Internet; its terms allow research that is not commercial.'
    )
  if measured is not None:
    names = [_text(name) for name in measured.names]
    for warned in (
      *advice.on_counts(names, None, measured.counts.total),
      *advice.on_predictions(names, measured.counts, 0),
    ):
      more = f' and {warned.more:,} more' if warned.more else ''
      about = ', '.join(warned.names)
      points.append(f'{warned.text} {about}{more}'.strip())
  return '\n'.join(['## Limits', '', *(f'- {point}' for point in points)])


def _license(base: str) -> str:
  if base in fetching.RELEASED:
    text = (
      'The weights that training started from were released in '
      '[google-deepmind/deepmind-research]'
      '(https://github.com/google-deepmind/deepmind-research/tree/master/nfnets)'
      ', whose licence is Apache 2.0.'
    )
  elif base:
    text = (
      f'The weights that training started from, `{_code(base)}`, have a '
      'licence of their own, which these follow. `license:` in the block at '
      'the top has to name one.'
    )
  else:
    text = (
      'None was chosen yet: whoever publishes these weights adds `license:` to '
      'the block at the top.'
    )
  return f'## Licence\n\n{text}'


def _text(value: Any) -> str:
  """Returns a value as text in which nothing is Markdown or HTML."""
  return _SPECIAL.sub(lambda found: f'&#{ord(found[0])};', _plain(value))


def _code(value: Any) -> str:
  """Returns a value as text for a block of code, which it cannot end."""
  return _plain(value).replace('`', "'")


def _plain(value: Any) -> str:
  """Returns a value as text on one line, without marks that hide or turn it."""
  text = value if isinstance(value, str) else json.dumps(value, default=str)
  return ''.join(
    ascii(c)[1:-1] if unicodedata.category(c) in ('Cc', 'Cf', 'Cs') else c
    for c in text
  )
