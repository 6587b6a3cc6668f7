"""The model card beside a network's weights: README.md, for the hub and people.

Markdown, with the block of metadata in front that the Hugging Face Hub reads.
"""

import collections
from collections.abc import Mapping
import logging
import os
import re
import shlex
from typing import Any

import markupsafe

from nfnets import finite_json, messages, paths
from nfnets.inference import evaluation, report_warnings, templates
from nfnets.weights import fetching, files, hub

NAME = 'README.md'
WEIGHTS = 'weights.safetensors'
# By which a card is recognized.
BEGINNING = '---\nlibrary_name: "nfnets"\n'
# Characters with a meaning in GitHub's Markdown.
_SPECIAL = re.compile(r'[\\`*{}\[\]<>&|#~!$]|\b_|_\b')
_DATASETS = {'imagenet2012': 'imagenet-1k'}  # Names of the hub.

_logger = logging.getLogger(__name__)


def may_write(folder: str | os.PathLike[str]) -> bool:
  """Return whether a folder has no README.md except a card of this library."""
  path = paths.path(folder) / NAME
  if not paths.is_file(path):
    return True
  return paths.read_bytes(path).split()[:3] == BEGINNING.encode().split()


def write(folder: str | os.PathLike[str], text: str) -> str:
  """Write a card, whole or not at all, and return the path of the file."""
  path = paths.path(folder) / NAME
  paths.write_bytes(path, text.encode())
  return os.fspath(path)


def write_beside(
  weights: str | os.PathLike[str],
  info: Mapping[str, Any] | None = None,
  found: evaluation.Evaluation | None = None,
  metadata: Mapping[str, Any] | None = None,
) -> str | None:
  """Write the card of a network that has a folder to itself.

  That is so where the file is called weights.safetensors. A README.md that is
  no card stays as it is.

  Args:
    weights: the file.
    info: the content of run.json, if there is a run.
    found: results on a dataset, if there are any.
    metadata: metadata of the file. None: read it.

  Returns:
    The path of the card; None if there is none.

  Raises:
    OSError: if it cannot be written.
  """
  path = paths.path(weights)
  if path.name != WEIGHTS:
    return None
  if not may_write(path.parent):
    _logger.info('%s is no model card, and stays.', path.parent / NAME)
    return None
  if metadata is None:
    metadata = files.read_metadata(fetching.find(weights))
  return write(path.parent, make(metadata, info, found))


def make(
  metadata: Mapping[str, Any],
  info: Mapping[str, Any] | None = None,
  found: evaluation.Evaluation | None = None,
) -> str:
  """Return the card.

  Args:
    metadata: metadata of the weights.
    info: the content of run.json, if there is a run.
    found: results on a dataset; without them the card has what training
      measured, if anything.
  """
  info = info or {}
  settings = dict(info.get('settings', {}))
  base = settings.get('weights') or ''
  accuracy = _accuracy(info, found)
  # The last part of a folder: the others are of somebody's machine.
  data = metadata.get('trained_on') or (found and found.dataset) or ''
  data = _plain(os.path.basename(str(data).rstrip('/'))) or 'images'
  facts = {
    'Dataset': 'trained_on' in metadata and data,
    'Updates': metadata.get('step'),
    'Started': info.get('started'),
    **info.get('versions', {}),
  }
  if settings.get('which_dataset'):
    settings['which_dataset'] = data
  warned = []
  if found is not None:
    warned += report_warnings.check_class_counts(found)
    warned += report_warnings.check_predictions(found)
  text = templates.render(
    'card.md.jinja',
    _escape,
    code=lambda value: markupsafe.Markup(_plain(value).replace('`', "'")),
    yaml=lambda value: markupsafe.Markup(
      finite_json.dumps(value, ensure_ascii=False)
    ),
    # Keys that a file may lack are None.
    metadata=collections.defaultdict(lambda: None, metadata),
    info=info,
    header=_header(metadata, base, data, accuracy),
    base=base,
    data=data,
    accuracy=accuracy,
    found=found,
    facts={name: value for name, value in facts.items() if value},
    commands=commands(info),
    settings=settings,
    warned=warned,
  )
  return f'{BEGINNING}{text}\n'.replace('\n\n\n', '\n\n')


def commands(info: Mapping[str, Any]) -> list[str]:
  """Return the command of a run, and those that changed its settings."""
  command = info.get('command') or ''
  if isinstance(command, list):
    command = shlex.join(command)
  later = info.get('history', ())
  later = [f'{x["command"]}  # from step {x["step"]}' for x in later]
  return [str(command), *later]


def _accuracy(info, found) -> dict[str, Any] | None:
  """Return the accuracy that was measured now, or by training."""
  if found is not None:
    names = {'split': found.split, 'chose_weights': found.chose_weights}
    return {**found.accuracy, **names, 'macro': found.macro}
  results = info.get('results') or {}
  part, total = (
    results.get(f'test_{x}') for x in ('top_1_acc', 'num_examples')
  )
  if part is None or not total:
    return None
  return {
    **evaluation.share(round(part * total), int(total)),
    'share': float(part),
    'split': str(results.get('test_split', 'test')),
    'chose_weights': bool(results.get('test_chose_weights')),
  }


def _header(metadata, base, data, accuracy) -> dict[str, Any]:
  """Return the block of metadata."""
  has_classes = metadata.get('num_classes') != 0
  kind = f'image-{"classification" if has_classes else "feature-extraction"}'
  known = _DATASETS.get(data)
  block = {
    'pipeline_tag': kind,
    'tags': [kind, 'nfnets', 'normalizer-free', 'jax', 'haiku'],
    'license': 'apache-2.0' if base in fetching.RELEASED else None,
    'base_model': _repository(base) if base and hub.is_name(base) else None,
    'datasets': [known] if known else None,
  }
  if accuracy is not None:
    slug = re.sub(r'[^\w.-]+', '-', data).strip('-') or 'images'
    dataset = {'type': known or slug, 'name': data, 'split': accuracy['split']}
    metrics = [('accuracy', 'top-1', accuracy['share'])]
    for key, value in accuracy.get('macro', {}).items():
      name = key.partition('_')[2]
      metrics.append((name, f'macro {name}', value))
    keys = 'type', 'name', 'value'
    result = {'task': {'type': kind}, 'dataset': dataset}
    result['metrics'] = [dict(zip(keys, x, strict=True)) for x in metrics]
    name = metadata.get('model', 'network')
    block['model-index'] = [{'name': name, 'results': [result]}]
  return {key: value for key, value in block.items() if value}


def _repository(name: str) -> str:
  if name.startswith('hf://'):
    return name.removeprefix('hf://').partition('@')[0]
  tagged = (known for known in hub.NAMES if known.partition('.')[0] == name)
  return next(tagged, name)


def _escape(value: Any) -> markupsafe.Markup:
  """Return a value as text in which nothing is Markdown or HTML."""
  if isinstance(value, markupsafe.Markup):
    return value
  return markupsafe.Markup(
    _SPECIAL.sub(lambda found: f'&#{ord(found[0])};', _plain(value))
  )


def _plain(value: Any) -> str:
  """Return a value as text on one line, without marks that hide or turn it."""
  return messages.printable(templates.as_text(value))
