"""Checks names of datasets: image folders and TFDS names.

Does not import TensorFlow, so that commands reject a wrong name at once.
"""

import difflib
import os
import re

from nfnets import paths
from nfnets.errors import UserError

# name[/config][:version]. Other forms of TFDS names may start a download.
_NAME = r'\w+(/[\w.\-]+)?(:[\d*]+\.[\d*]+\.[\d*]+)?'
# A path, not a name.
_FOLDER = re.compile(r'[/~]|\.{1,2}(/|$)')


def is_name(name: str) -> bool:
  """Return whether a name can be a TFDS name."""
  return not _FOLDER.match(name) and bool(re.fullmatch(_NAME, name))


def check(name: str, data_dir: str | None = None) -> None:
  """Raise UserError if there is neither a folder nor a dataset of this name.

  Args:
    name: a local folder of images, or a TFDS name.
    data_dir: the TFDS folder. None: TFDS's default.
  """
  if paths.is_remote(name):
    return
  if _FOLDER.match(name):
    find_folder(name)
    return
  if os.path.isdir(name):
    return
  if not is_name(name):
    raise UserError(
      f'{name!r} is not the name of a dataset or a local folder.{near(name)} '
      'Dataset names look like mnist, my_dataset/config or imagenet2012:5.1.0.'
    )
  import tensorflow_datasets as tfds  # Imports TensorFlow later.

  if paths.is_remote(data_dir or ''):
    return
  base = re.split('[/:]', name)[0]
  known = tfds.list_builders(with_community_datasets=False)
  root = data_dir or os.fspath(tfds.core.constants.DATA_DIR)
  if base in ('digits', *known) or os.path.isdir(os.path.join(root, base)):
    return
  close = difflib.get_close_matches(base, known)
  hint = f' Did you mean {" or ".join(close)} of TFDS?' if close else ''
  raise UserError(
    f'Unknown dataset {name!r}: there is no such folder, no such TFDS dataset, '
    f'and no such dataset in {root}.{near(name) or hint} '
    'To try the code without own data, use --config=digits.'
  )


def find_folder(name: str) -> str:
  """Return the absolute path of an image folder."""
  root = os.path.abspath(paths.expand(name))
  if not os.path.exists(root):
    raise UserError(
      f'There is no folder {root}.{near(name)} Give a folder of images, '
      'DIR/CLASS/IMAGES, or the name of a TFDS dataset such as mnist.'
    )
  if not os.path.isdir(root):
    raise UserError(
      f'{root} is a file. Expected is a folder of images, DIR/CLASS/IMAGES. '
      'Unpack archives first.'
    )
  return root


def near(name: str) -> str:
  """Return a sentence with folders of similar names, or ''."""
  parent, base = os.path.split(paths.expand(name).rstrip(os.sep))
  try:
    with os.scandir(parent or os.curdir) as entries:
      folders = {x.name.lower(): x.name for x in entries if x.is_dir()}
  except OSError:
    return ''
  close = difflib.get_close_matches(base.lower(), folders)
  found = [os.path.join(parent or os.curdir, folders[x]) for x in close]
  return f' Did you mean the folder {" or ".join(found)}?' if found else ''
