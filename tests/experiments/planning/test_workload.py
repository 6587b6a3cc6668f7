"""Tests of what the devices of a planned run do."""

import pytest

from experiments import configs
from experiments.planning import workload
from nfnets.data import dataset
from nfnets.errors import UserError


def _config(name='digits', **settings):
  config = configs.load(name)
  config.experiment_kwargs.config.update(fake_data=True, **settings)
  return config


def test_the_published_run_of_f0():
  work = workload.build(configs.load('f0'), None, None)
  assert (work.devices, work.batch, work.eval_batch) == (128, 32, 8)
  assert work.num_steps == 360 * 1_281_167 // 4096
  assert work.depths == (1, 2, 6, 3)
  params = 4 * 71_489_284
  assert work.bytes['parameters'] == work.bytes['averages'] == params
  # Momentum, and the counters of steps and of clipped layers.
  assert work.bytes['optimizer'] == pytest.approx(params, abs=16)
  # At 256 px the paper has 12.38 B multiply-adds.
  assert work.macs == pytest.approx(12.38e9 * (192 / 256) ** 2, rel=5e-3)
  assert work.flops_per_image == 6 * work.macs


def test_sam_costs_as_much_more_as_its_part_of_the_batch():
  work = workload.build(_config(sam_rho=0.05), 1, 8)
  assert work.flops_per_image == pytest.approx(1.2 * 6 * work.macs)


def test_recomputing_blocks_keeps_less_of_them():
  kept = [
    workload.build(_config(image_size=16, remat=remat), 1, 8).activations
    for remat in (False, 2, True)
  ]
  assert kept[0] > 1.1 * kept[1] > 1.1**2 * kept[2] > 0
  # In two parts, half of the images at a time, and all of the kernels.
  parts = workload.build(_config(image_size=16, accumulate_steps=2), 1, 8)
  assert 0.5 * kept[0] < parts.activations < 0.9 * kept[0]


@pytest.mark.parametrize(
  'devices, batch, expected, total',
  [
    (None, None, (2, 32), 64),
    (4, None, (4, 16), 64),
    (None, 8, (8, 8), 64),
    (3, 5, (3, 5), 15),
  ],
)
def test_devices_and_batch_follow_from_each_other(
  devices, batch, expected, total
):
  config = _config()
  work = workload.build(config, devices, batch)
  assert (work.devices, work.batch) == expected
  assert config.experiment_kwargs.config.train_batch_size == total


@pytest.mark.parametrize(
  'settings, devices, batch, message',
  [
    ({}, None, 7, 'train_batch_size is 64, which --batch=7 does not divide'),
    ({}, 5, None, 'which --devices=5 does not divide; give both'),
    ({'accumulate_steps': 3}, None, 32, 'does not divide the 32 images of eac'),
    ({'remat': -2}, None, None, 'remat is -2'),
  ],
)
def test_what_does_not_go_together_is_refused(
  settings, devices, batch, message
):
  with pytest.raises(UserError, match=message):
    workload.build(_config(**settings), devices, batch)


@pytest.mark.parametrize(
  'settings',
  [
    {},
    {'augment_name': 'cutmix_mixup_randaugment_405'},
    {'augment_name': 'mixup', 'transpose': True},
    {'augmentation_multiplicity': 2},
  ],
)
def test_programs_take_what_the_pipeline_gives(settings):
  config = _config(image_size=16, eval_image_size=16, **settings)
  work = workload.build(config, 2, 4)
  ours = config.experiment_kwargs.config
  options = dataset.Options(
    image_size=16,
    batch_size=4,
    augment_name=ours.augment_name,
    augmentation_multiplicity=ours.augmentation_multiplicity,
    transpose=ours.transpose,
  )
  train = dataset.fake_batches(options, 10)
  options = dataset.Options(16, work.eval_batch, transpose=ours.transpose)
  evaluation = dataset.fake_batches(options, 10, num_batches=1)
  for program, batches in (
    (work.update(), train),
    (work.evaluation(), evaluation),
  ):
    [place] = [i for i, is_split in enumerate(program.split) if is_split]
    planned = {
      k: (x.shape, x.dtype) for k, x in program.arguments[place].items()
    }
    given = {k: (x.shape, x.dtype) for k, x in next(batches).items()}
    assert planned == given
