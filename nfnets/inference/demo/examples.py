"""Images to begin with: from the test split of a run."""

import io
import os

import numpy as np
from PIL import Image

from nfnets import paths
from nfnets.data import builders, dataset, errors, source
from nfnets.inference import classes, runs
from nfnets.inference.demo import uploads

_MOST_READ = 200  # Records, in search of one of each class.


def of_run(run: str, folder: str, most: int = 10) -> list[tuple[str, str]]:
  """Copies a few test images of a run, of different classes where it can.

  Args:
    run: the folder of the run, or a file in it.
    folder: where to put them; it is made.
    most: how many.

  Returns:
    The copies and the names of their classes; none if it is no run's folder.

  Raises:
    ValueError: if the run's dataset cannot be read.
  """
  if '://' in run and not paths.is_remote(run):
    return []  # The name of something that is fetched.
  where = paths.path(run)
  if not paths.is_dir(where):
    where = where.parent
  if not paths.is_file(where / 'run.json'):
    return []
  settings = runs.read_info(where)['settings']
  name = settings.get('which_dataset')
  if settings.get('fake_data') or not name:
    return []
  builder = dataset.load_builder(name, settings.get('data_dir') or None)
  names = builders.class_names(builder)
  chosen = _choose(source.Source(builder, 'test'), most)
  os.makedirs(folder)
  found = []
  for number, (label, content) in enumerate(chosen):
    path = os.path.join(folder, f'example_{number:02}.png')
    with open(path, 'wb') as file:
      file.write(content)
    found.append((path, classes.on_one_line(names[label])))
  return found


def _choose(images: source.Source, most: int) -> list[tuple[int, bytes]]:
  """Returns labels and images: of as many classes as there are, in order."""
  found: dict[int, bytes] = {}
  others: list[tuple[int, bytes]] = []
  count = min(images.num_examples, _MOST_READ)
  try:
    for index in np.linspace(0, images.num_examples - 1, count, dtype=int):
      try:
        image, label = images.example(int(index))
        content = _png(image)
      except (errors.ExampleError, uploads.UploadError):
        continue  # There are others.
      if label not in found:
        found[label] = content
      elif len(others) < most:
        others.append((label, content))
      if len(found) == most:
        break
  finally:
    images.close()
  return sorted((*found.items(), *others[: most - len(found)]))


def _png(image: bytes | np.ndarray) -> bytes:
  """Returns an image of a dataset as a file that every browser shows."""
  if isinstance(image, bytes):
    image = uploads.decode(image)
    if isinstance(image, bytes):  # A JPEG.
      return image
  content = io.BytesIO()
  channels = image[..., 0] if image.shape[-1] == 1 else image
  Image.fromarray(channels).save(content, 'png')
  return content.getvalue()
