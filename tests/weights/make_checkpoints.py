"""Writes tests/golden/checkpoints.zip: what training with PyTorch leaves.

Runs in an environment of its own: Python 3.11, NumPy 2.4.6, torch 2.13.0, timm
1.0.31 and lightning 2.6.6 wrote the archive. timm's own CheckpointSaver and
Lightning's own Trainer write the files. Every parameter holds its own number,
so that the archive is small; the averaged weights are half of the others.
"""

import argparse
import pathlib
import tempfile
import zipfile

import lightning
from lightning.pytorch import callbacks
import numpy as np
import timm
import timm.utils
import torch

ARCHIVE = pathlib.Path(__file__).parents[1] / 'golden' / 'checkpoints.zip'


def _network():
  network = timm.create_model('test_nfnet', num_classes=3)
  with torch.no_grad():
    for i, parameter in enumerate(network.parameters()):
      parameter.fill_(i)
  return network


def _timm(folder):
  """Writes model_best.pth.tar with averaged weights, last.pth.tar without."""
  network = _network()
  averaged = timm.utils.ModelEmaV3(network)
  with torch.no_grad():
    for parameter in averaged.parameters():
      parameter.mul_(0.5)
  optimizer = torch.optim.SGD(network.parameters(), np.float64(0.1))
  saver = timm.utils.CheckpointSaver(
    network,
    optimizer,
    args=argparse.Namespace(
      model='test_nfnet',
      mean=(0.5, 0.5, 0.5),
      output=pathlib.PurePosixPath('/output'),
      classes={1, 2},
      seed=np.int64(3),
    ),
    model_ema=averaged,
    checkpoint_dir=folder,
    recovery_dir=folder,
  )
  saver.save_checkpoint(0, metric=np.float64(61.5))
  saver.model_ema = None
  saver.save_checkpoint(1, metric=np.float64(60.5))


class _Module(lightning.LightningModule):
  """Has the network as an attribute, whose name is before those of tensors."""

  def __init__(self, attribute, is_compiled, options):
    super().__init__()
    self.save_hyperparameters()
    network = _network()
    if is_compiled:
      network = torch.compile(network, backend='eager')
    setattr(self, attribute, network)

  def training_step(self, batch, index):
    return 0 * getattr(self, self.hparams.attribute)(batch).sum()

  def configure_optimizers(self):
    optimizer = torch.optim.SGD(self.parameters(), lr=0.0)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])
    return [optimizer], [schedule]


def _lightning(folder):
  options = argparse.Namespace(weight=np.float32(2))
  for attribute, is_compiled in (
    ('model', False),
    ('net', True),
    ('backbone', False),
  ):
    module = _Module(attribute, is_compiled, options)
    trainer = lightning.Trainer(
      max_epochs=1,
      accelerator='cpu',
      logger=False,
      callbacks=[callbacks.ModelCheckpoint(dirpath=folder)],
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.zeros(1, 3, 32, 32)))
    trainer.save_checkpoint(pathlib.Path(folder, f'{attribute}.ckpt'))


def main():
  with (
    tempfile.TemporaryDirectory() as folder,
    zipfile.ZipFile(ARCHIVE, 'w', zipfile.ZIP_DEFLATED, compresslevel=9) as out,
  ):
    _timm(folder)
    _lightning(folder)
    for name in (
      'model_best.pth.tar',
      'last.pth.tar',
      'model.ckpt',
      'net.ckpt',
      'backbone.ckpt',
    ):
      info = zipfile.ZipInfo(name)  # Without the time.
      info.compress_type = zipfile.ZIP_DEFLATED
      out.writestr(info, pathlib.Path(folder, name).read_bytes())


if __name__ == '__main__':
  main()
