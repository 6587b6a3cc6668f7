"""scikit-learn's 1,797 handwritten digits as a TFDS dataset, no download.

Small enough to train on a laptop in a minute, and read by the same pipeline as
ImageNet.
"""

import contextlib
import io
import os
import pathlib
import tempfile

from absl import logging
import numpy as np
import tensorflow_datasets as tfds

from nfnets import paths
from nfnets.errors import UserError

_DESCRIPTION = """\
Handwritten digits of 43 people, as 8x8 grey images: the test set of the UCI
"Optical Recognition of Handwritten Digits" data, which scikit-learn includes.
Pixel values 0-16 are scaled to 0-255. The 1,797 images are shuffled with a
fixed seed; the last 360 are the test split.
"""

_CITATION = """\
@misc{alpaydin1998digits,
  author = {Alpaydin, E. and Kaynak, C.},
  title = {Optical Recognition of Handwritten Digits},
  year = {1998},
  howpublished = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49},
}
"""

_NUM_TEST = 360


class Digits(tfds.core.GeneratorBasedBuilder):
  """The TFDS dataset 'digits'."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES = {'1.0.0': 'First version.'}

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=_DESCRIPTION,
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(shape=(8, 8, 1), encoding_format='png'),
          'label': tfds.features.ClassLabel(num_classes=10),
        }
      ),
      supervised_keys=('image', 'label'),
      homepage='https://doi.org/10.24432/C50P49',
      citation=_CITATION,
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    del dl_manager  # Nothing is downloaded.
    # Takes a second to import, and is needed only here.
    from sklearn import datasets

    digits = datasets.load_digits()
    images = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    order = np.random.RandomState(0).permutation(len(images))
    examples = [(int(i), images[i], int(digits.target[i])) for i in order]
    return {
      'train': self._generate_examples(examples[:-_NUM_TEST]),
      'test': self._generate_examples(examples[-_NUM_TEST:]),
    }

  def _generate_examples(self, examples):
    for key, image, label in examples:
      yield key, {'image': image, 'label': label}


def is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
  """Return whether a dataset is on the disk."""
  # TFDS's own check warns of every folder that does not exist yet.
  return builder.data_path.exists() and builder.is_prepared()


def prepare(data_dir: str | None = None) -> None:
  """Write the dataset under the TFDS data directory, unless it is there.

  Several processes may do so at once: each prepares a copy of its own, and
  the first to finish puts it in place. In a bucket, each puts the same there.

  Args:
    data_dir: The TFDS data directory; None means TFDS's default.

  Raises:
    UserError: The directory cannot be written.
  """
  builder = Digits(data_dir=data_dir)
  if is_prepared(builder):
    return
  final = os.fspath(builder.data_path)
  logging.info('Preparing the digits dataset in %s.', final)
  root = None
  try:
    if not paths.is_remote(final):
      root = os.path.dirname(os.path.dirname(final))
      os.makedirs(os.path.dirname(final), exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix='.digits-') as folder:
      made = Digits(data_dir=folder)
      # TFDS reports progress on the terminal, which for half a second of work
      # is noise.
      silence = io.StringIO()
      with contextlib.redirect_stdout(silence):
        with contextlib.redirect_stderr(silence):
          made.download_and_prepare()
      files = pathlib.Path(made.data_path)
      if root:
        os.rename(files, final)
        return
      # By dataset_info.json TFDS tells that the others are there. Whoever
      # uploads at the same time has the same files.
      for name in sorted(os.listdir(files), key='dataset_info.json'.__eq__):
        paths.write_bytes(f'{final}/{name}', (files / name).read_bytes())
  except OSError as error:
    if not is_prepared(builder):
      raise UserError(
        f'The digits dataset cannot be written to {final} ({error}). Choose '
        'another folder with TFDS_DATA_DIR or --data_dir=DIR.'
      ) from error
