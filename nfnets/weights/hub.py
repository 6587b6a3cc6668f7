"""Downloads weights from the Hugging Face Hub.

The package `huggingface_hub` downloads them to its own cache.
"""

import os
import pathlib
import re

from nfnets import messages

_FILES = ('model.safetensors', 'weights.safetensors')
_REPOSITORY = re.compile(r'hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?')
# {timm's network with published weights: default tag}.
_TAGS = {
  **{f'dm_nfnet_f{i}': 'dm_in1k' for i in range(7)},
  'nfnet_l0': 'ra2_in1k',
  'eca_nfnet_l0': 'ra2_in1k',
  'eca_nfnet_l1': 'ra2_in1k',
  'eca_nfnet_l2': 'ra3_in1k',
  'nf_regnet_b1': 'ra2_in1k',
  'nf_resnet50': 'ra2_in1k',
  'test_nfnet': 'r160_in1k',
}
NAMES = tuple(f'timm/{name}.{tag}' for name, tag in _TAGS.items())


def is_name(text: str) -> bool:
  """Return whether a name refers to the hub."""
  return text.startswith('hf://') or model_name(text) is not None


def model_name(text: str) -> str | None:
  """Return the model of a name 'timm/NAME'; None for other names."""
  prefix, _, name = text.partition('/')
  if prefix != 'timm':
    return None
  from nfnets.weights import timm

  return timm.NETWORKS.get(name.partition('.')[0])


def fetch(name: str, offline: bool) -> pathlib.Path:
  """Return the file of weights, and download it if needed.

  Args:
    name: 'timm/NAME', with or without a tag, or 'hf://org/repo[@revision]'.
    offline: use only the hub's cache.

  Raises:
    OSError: if the weights do not exist or the download fails.
    ValueError: if the name is invalid.
  """
  repository, revision = _parse(name)
  try:
    import huggingface_hub
    from huggingface_hub import constants, errors
  except ModuleNotFoundError as error:
    raise OSError(
      f'{name}: the Hugging Face Hub needs a package that is not installed: '
      f'{error.name}. Run pip install ".[hub]" in the folder of this project.'
    ) from error
  offline = offline or constants.HF_HUB_OFFLINE
  # Do not contact the hub for files in the cache.
  for is_local in (True,) if offline else (True, False):
    for file in _FILES:
      try:
        path = huggingface_hub.hf_hub_download(
          repository,
          file,
          revision=revision,
          cache_dir=constants.HF_HUB_CACHE,
          endpoint=os.environ.get('HF_ENDPOINT'),
          local_files_only=is_local,
        )
        return pathlib.Path(path)
      # Errors of the hub, the connection or the disk have many classes.
      except Exception as error:
        if is_local or isinstance(error, errors.RemoteEntryNotFoundError):
          continue
        reason = messages.one_line(error)
        if isinstance(error, errors.LocalEntryNotFoundError):
          cause = messages.one_line(error.__cause__ or error)
          reason = f'the hub cannot be reached: {cause}'
        raise OSError(f'{name}: {reason}') from error
  if not offline:
    raise OSError(f'{name}: {repository} has neither {" nor ".join(_FILES)}.')
  raise OSError(
    f"{name}: these weights are not in the hub's cache, "
    f'{constants.HF_HUB_CACHE}, and nothing may be fetched (NFNETS_OFFLINE or '
    f'HF_HUB_OFFLINE is set). `hf download {repository} {_FILES[0]}` puts them '
    'there.'
  )


def _parse(name: str) -> tuple[str, str | None]:
  if name.startswith('hf://'):
    match = _REPOSITORY.fullmatch(name)
    if match is None:
      raise ValueError(
        f'{name} is not of the form hf://organization/repository[@revision].'
      )
    return match[1], match[2]
  plain, _, tag = name.removeprefix('timm/').partition('.')
  tag = tag or _TAGS.get(plain)
  if tag is None:
    raise ValueError(
      f'{name}: timm has published no weights of {plain}, only '
      f'{", ".join(NAMES)}.'
    )
  return f'timm/{plain}.{tag}', None
