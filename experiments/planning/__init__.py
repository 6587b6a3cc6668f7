"""Plans runs: memory and time of a step on an absent accelerator."""

import os


def prepare() -> None:
  """Set the environment variables for compiling without a TPU."""
  os.environ.update(
    JAX_PLATFORMS='cpu',
    # Otherwise the compiler asks a cloud server about this machine.
    TPU_SKIP_MDS_QUERY='1',
    TPU_WORKER_HOSTNAMES='localhost',
    TPU_ACCELERATOR_TYPE='v3-8',
    # Several processes may compile, because no device is used.
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
    TF_CPP_MIN_LOG_LEVEL='3',
  )
