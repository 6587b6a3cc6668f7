"""What the compiler reads when it is loaded."""

import os


def prepare() -> None:
  """Sets the environment, so that no device is looked for or used."""
  os.environ.update(
    JAX_PLATFORMS='cpu',
    # The TPU compiler would ask the cloud which machine this is.
    TPU_SKIP_MDS_QUERY='1',
    TPU_WORKER_HOSTNAMES='localhost',
    TPU_ACCELERATOR_TYPE='v3-8',
    # It touches no device, so several may be at work.
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
    TF_CPP_MIN_LOG_LEVEL='3',
  )
