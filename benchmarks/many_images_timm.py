"""What `many_images.py` measures of timm, in an environment that has it.

python benchmarks/many_images_timm.py FOLDER --precision=bfloat16 --batch=16

Classifies the images of a folder with timm's NFNet-F0, as timm's own script for
inference does: its transforms in a DataLoader with processes, channels last,
and autocast for bfloat16. The last line of standard output is JSON.
"""

import argparse
import json
import time

import timm.data
import torch


def main() -> None:
  """Classifies, and tells how fast."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('folder')
  parser.add_argument('--precision', default='float32')
  parser.add_argument('--batch', type=int, default=8)
  parser.add_argument('--workers', type=int, default=1)
  parser.add_argument('--image_size', type=int, default=256)
  args = parser.parse_args()

  torch.manual_seed(0)
  model = timm.create_model('dm_nfnet_f0').eval()
  model = model.to(memory_format=torch.channels_last)
  config = timm.data.resolve_model_data_config(model)
  config['input_size'] = (3, args.image_size, args.image_size)
  transform = timm.data.create_transform(**config, is_training=False)
  loader = torch.utils.data.DataLoader(
    timm.data.ImageDataset(args.folder, transform=transform),
    batch_size=args.batch,
    num_workers=args.workers,
  )
  is_bfloat16 = args.precision == 'bfloat16'
  start, count, found = None, 0, 0
  with (
    torch.inference_mode(),
    torch.autocast('cpu', torch.bfloat16, enabled=is_bfloat16),
  ):
    for images, _ in loader:
      images = images.to(memory_format=torch.channels_last)
      values, _ = model(images).float().softmax(-1).topk(5)
      found += len(values.tolist())
      if start is None:  # The first batch is not counted.
        start = time.perf_counter()
      else:
        count += len(images)
  rate = count / (time.perf_counter() - start)
  print(json.dumps({'images': found, 'images_per_second': rate}))


if __name__ == '__main__':
  main()
