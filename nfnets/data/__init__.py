"""The input pipeline: TFDS datasets read with tf.data.

This package is the only one that imports TensorFlow. Importing it hides every
accelerator from TensorFlow, which would otherwise take the memory that JAX
needs.
"""

import os

# Both have to be set before TensorFlow is imported: log errors only, and do
# without oneDNN, which nothing here uses and which announces itself at length.
if os.environ.get('TF_CPP_MIN_LOG_LEVEL', '1') == '1':  # JAX sets it to that.
  os.environ['TF_CPP_MIN_LOG_LEVEL'] = '2'
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

# It needs a home folder, which is found here.
import nfnets.paths  # noqa: E402, F401, I001
import tensorflow as tf  # noqa: E402

try:
  for _kind in ('GPU', 'TPU'):
    tf.config.set_visible_devices([], _kind)
  # Images are worked on side by side; each one on several threads is slower.
  tf.config.threading.set_intra_op_parallelism_threads(1)
except RuntimeError:
  pass  # The program has already used TensorFlow: its choice stands.
