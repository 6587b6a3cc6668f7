"""The part of accelerator.py that PyTorch and timm take.

/path/to/python benchmarks/accelerator_timm.py SIZES

needs the Python of an environment that has both, and SIZES as accelerator.py
gives them, in JSON. Prints a line of JSON for each measurement.
"""

import json
import statistics
import sys
import time

import timm
import timm.utils
import torch

_DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
_IS_CUDA = _DEVICE == 'cuda'


def _wait() -> None:
  if _IS_CUDA:
    torch.cuda.synchronize()


def _median_seconds(run, seconds: float) -> float:
  """Returns the median time of a call, of groups of about so many seconds."""
  run()
  run()
  _wait()
  start = time.perf_counter()
  run()
  _wait()
  count = max(1, int(seconds / (time.perf_counter() - start)))
  times = []
  for _ in range(5):
    start = time.perf_counter()
    for _ in range(count):
      run()
    _wait()
    times.append((time.perf_counter() - start) / count)
  return statistics.median(times)


def _prepare(what: str, batch: int, size: int):
  """Returns a function that makes one training step, or one inference."""
  torch.compiler.reset()
  model = timm.create_model('dm_nfnet_f0', drop_path_rate=0.25)
  model = model.to(_DEVICE, memory_format=torch.channels_last)
  model.train(what == 'train')
  images = torch.randn(batch, 3, size, size, device=_DEVICE)
  images = images.to(memory_format=torch.channels_last)
  forward = torch.compile(model) if _IS_CUDA else model
  autocast = torch.autocast(_DEVICE, torch.bfloat16)

  def infer():
    with torch.inference_mode(), autocast:
      forward(images)

  if what == 'infer':
    return infer
  labels = torch.randint(1000, (batch,), device=_DEVICE)
  loss = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
  average = timm.utils.ModelEmaV3(model, decay=0.99999)
  optimizer = torch.optim.SGD(
    model.parameters(), 0.1, momentum=0.9, nesterov=True
  )

  def train():
    with autocast:
      value = loss(forward(images).float(), labels)
    value.backward()
    timm.utils.adaptive_clip_grad(model.parameters(), 0.01)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    average.update(model)

  return train


def main() -> None:
  """Runs this part of the benchmark."""
  sizes = json.loads(sys.argv[1])
  for batch in sizes['batches'][:3]:
    for what in ('train', 'infer'):
      size = sizes['train_size' if what == 'train' else 'test_size']
      facts = {
        'what': what,
        'batch': batch,
        'image_size': size,
        'compiled': _IS_CUDA,
        'torch': torch.__version__,
      }
      if _IS_CUDA:
        torch.cuda.reset_peak_memory_stats()
      try:
        run = _prepare(what, batch, size)
        seconds = _median_seconds(run, sizes['seconds'])
        facts |= {'fits': True, 'images_per_second': round(batch / seconds, 2)}
        if _IS_CUDA:
          gib = torch.cuda.max_memory_allocated() / 2**30
          facts['gib'] = round(gib, 3)
      except torch.OutOfMemoryError:
        facts['fits'] = False
      print(json.dumps(facts), flush=True)
      run = None  # Its memory is free for the next.


if __name__ == '__main__':
  main()
