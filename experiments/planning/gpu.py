"""Descriptions of GPUs, as XLA's compiler asks for them.

The numbers are NVIDIA's: data sheets, and the tables of technical
specifications by compute capability in the CUDA C++ Programming Guide.
"""

# Of all of them.
_COMMON = {
  'threads_per_block_limit': 1024,
  'threads_per_warp': 32,
  'threads_per_core_limit': 2048,
  'shared_memory_per_block': 48 * 1024,
  'registers_per_core_limit': 65536,
  'registers_per_block_limit': 65536,
  'block_dim_limit_x': 2**31 - 1,
  'block_dim_limit_y': 65535,
  'block_dim_limit_z': 65535,
  'thread_dim_limit_x': 1024,
  'thread_dim_limit_y': 1024,
  'thread_dim_limit_z': 64,
}
# By device: what differs, the compute capability and the name.
_OWN = {
  'h100': (
    {
      'core_count': 132,
      'fpus_per_core': 128,
      'clock_rate_ghz': 1.98,
      'l2_cache_size': 50 * 2**20,
      'memory_bandwidth': 3_350_000_000_000,
      'device_memory_size': 80 * 2**30,
      'shared_memory_per_core': 228 * 1024,
      'shared_memory_per_block_optin': 227 * 1024,
    },
    (9, 0),
    'NVIDIA H100 80GB HBM3',
  ),
  'a100': (
    {
      'core_count': 108,
      'fpus_per_core': 64,
      'clock_rate_ghz': 1.41,
      'l2_cache_size': 40 * 2**20,
      'memory_bandwidth': 2_039_000_000_000,
      'device_memory_size': 80 * 2**30,
      'shared_memory_per_core': 164 * 1024,
      'shared_memory_per_block_optin': 163 * 1024,
    },
    (8, 0),
    'NVIDIA A100-SXM4-80GB',
  ),
}


def target_config(name: str) -> str:
  """Returns XLA's GpuTargetConfigProto of a GPU, as text.

  Args:
    name: 'h100' or 'a100', of 80 GB.
  """
  own, (major, minor), label = _OWN[name]
  lines = [f'  {key}: {value}' for key, value in {**_COMMON, **own}.items()]
  # Of cuDNN 9 and CUDA 12, which JAX 0.10 is for.
  return '\n'.join(
    [
      'gpu_device_info {',
      *lines,
      f'  cuda_compute_capability {{ major: {major} minor: {minor} }}',
      '}',
      'platform_name: "CUDA"',
      'dnn_version_info { major: 9 minor: 10 patch: 0 }',
      'runtime_version { major: 12 minor: 9 patch: 0 }',
      f'device_description_str: "{label}"',
    ]
  )
