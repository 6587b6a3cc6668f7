"""What the compilers read when they are loaded."""

import os

from experiments.planning import chips

_GPUS = [chip.name for chip in chips.CHIPS.values() if chip.platform == 'cuda']


def prepare(argv: list[str]) -> None:
  """Sets this process's environment, so that no device is looked for or used.

  Args:
    argv: the command line, which may name a GPU: its compiler comes with JAX's
      build for GPUs, which otherwise is left alone.
  """
  is_gpu = any(arg.removeprefix('--device=') in _GPUS for arg in argv)
  os.environ.update(
    JAX_PLATFORMS='cpu,cuda' if is_gpu else 'cpu',
    JAX_SKIP_CUDA_CONSTRAINTS_CHECK='1',
    # The TPU compiler would ask the cloud which machine this is.
    TPU_SKIP_MDS_QUERY='1',
    TPU_WORKER_HOSTNAMES='localhost',
    TPU_ACCELERATOR_TYPE='v3-8',
    # It touches no device, so several may be at work.
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
    TF_CPP_MIN_LOG_LEVEL='3',
  )
