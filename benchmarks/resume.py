"""Seconds until the first batch, at the start and in the middle of an epoch.

python benchmarks/resume.py [--data_dir=/tmp/resume] [--examples=1281167]

Makes a dataset of as many examples as ImageNet has, of one small JPEG each (on
the first run; 1.5 GB), and opens the pipeline of the NFNet-F0 recipe at the
first step and at one in the middle of an epoch. What a resumed run skips is
neither read nor decoded, so both should take the same time. The last line of
standard output is JSON.
"""

import argparse
import io
import json
import pathlib
import statistics
import sys
import time

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

# For a clone that is not installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from nfnets.data import dataset  # noqa: E402

_BATCH = 64


class Many(tfds.core.GeneratorBasedBuilder):
  """The same JPEG again and again, with other labels."""

  VERSION = tfds.core.Version('1.0.0')
  # A class attribute, because TFDS makes the builder.
  num_examples = 0

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(shape=(None, None, 3)),
          'label': tfds.features.ClassLabel(num_classes=1000),
        }
      ),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples()}

  def _generate_examples(self):
    rng = np.random.default_rng(0)
    image = tf.image.resize(rng.uniform(0, 255, (4, 5, 3)), (96, 120))
    jpeg = tf.io.encode_jpeg(tf.cast(image, tf.uint8)).numpy()
    for i in range(self.num_examples):
      yield i, {'image': io.BytesIO(jpeg), 'label': i % 1000}


def _seconds_to_first_batch(builder, step: int) -> float:
  start = time.perf_counter()
  with dataset.train_batches(
    builder,
    'train',
    image_size=192,
    global_batch_size=_BATCH,
    seed=0,
    first_step=step,
    augment_name='cutmix_mixup_0.4_randaugment_405',
  ) as batches:
    next(batches)
    return time.perf_counter() - start


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--data_dir', default='/tmp/resume')
  parser.add_argument('--examples', type=int, default=1_281_167)
  parser.add_argument('--repeats', type=int, default=5)
  args = parser.parse_args()
  Many.num_examples = args.examples
  builder = Many(data_dir=f'{args.data_dir}/{args.examples}')
  builder.download_and_prepare()

  start = time.perf_counter()
  _seconds_to_first_batch(builder, 0)
  results = {'first_time_with_index': time.perf_counter() - start}
  middle = int(3.5 * args.examples / _BATCH)
  for name, step in (('start', 0), ('middle_of_epoch_4', middle)):
    results[name] = statistics.median(
      _seconds_to_first_batch(builder, step) for _ in range(args.repeats)
    )
  for name, seconds in results.items():
    print(f'{name:22} {seconds:.2f} s')
  print(json.dumps({'examples': args.examples, **results}))


if __name__ == '__main__':
  main()
