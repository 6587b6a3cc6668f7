"""The images of a dataset, with their labels."""

from collections.abc import Iterator
import functools
import os
from typing import Any

import numpy as np

from nfnets.inference import images
from nfnets.inference.many.sources import Item, Labelled, Source


def of_builder(builder: Any, split: str) -> Source:
  """Returns the images of a split of a dataset, in its order.

  They are called by their paths or, in a dataset of TFDS, NAME/SPLIT[NUMBER].

  Args:
    builder: from `nfnets.data.dataset.load_builder`.
    split: one of `builders.SPLITS`.

  Raises:
    DatasetError: if the split is unknown, empty or damaged.
  """
  from nfnets.data import builders
  from nfnets.data.folders import Folder
  from nfnets.data.source import Source as Examples

  names = tuple(builders.class_names(builder))
  total = builders.num_examples(builder, split)
  if isinstance(builder, Folder):

    def items() -> Iterator[Item]:
      for path, label in zip(
        builder.paths(split), builder.labels(split), strict=True
      ):
        path = os.path.join(builder.root, path)
        yield Item(path, functools.partial(_read_file, path, label))

  else:
    examples = Examples(builder, split)

    def items() -> Iterator[Item]:
      for index in range(total):
        read = functools.partial(_read_example, examples, index)
        yield Item(f'{builder.name}/{split}[{index}]', read)

  return Source(items, lambda: total, names)


def _read_file(path: str, label: int, check: bool) -> Labelled:
  return images.read_image(path, check), label


def _read_example(examples: Any, index: int, check: bool) -> Labelled:
  from nfnets.data.errors import ExampleError

  del check  # As in training and evaluation.
  try:
    image, label = examples.example(index)
  except ExampleError as error:
    raise images.ImageError(str(error)) from error
  if isinstance(image, np.ndarray) and image.shape[-1] == 1:
    image = np.repeat(image, 3, axis=-1)
  return image, label
