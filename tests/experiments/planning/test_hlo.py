"""Tests of what is read from a compiled program."""

import pytest

from experiments.planning import hlo

# As the TPU compiler writes programs, but for most of the lines: an update that
# accumulates the gradients of three parts of its batch.
_TEXT = """\
HloModule jit_f, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias), {1, 2}: (1, {}, must-alias) }, entry_computation_layout={()->()}

%fused_computation.1 (param_0.1: bf16[8,4,4,16], param_1.1: bf16[3,3,16,32]) -> bf16[8,4,4,32] {
  %param_0.1 = bf16[8,4,4,16]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %param_1.1 = bf16[3,3,16,32]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = f32[8,4,4,32]{3,2,1,0:T(8,128)} convolution(%param_0.1, %param_1.1), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f
}

%fused_computation.2 (param_0.2: f32[8,4,4,32], param_1.2: bf16[1,1,32,32]) -> f32[8,4,4,32] {
  %param_0.2 = f32[8,4,4,32]{3,2,1,0:T(8,128)} parameter(0)
  %param_1.2 = bf16[1,1,32,32]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.2 = f32[8,4,4,32]{3,2,1,0:T(8,128)} convolution(%param_0.2, %param_1.2), window={size=1x1}, dim_labels=b01f_01io->b01f
}

%body.1 (loop.1: (s32[], f32[16])) -> (s32[], f32[16]) {
  %loop.1 = (s32[]{:T(256)}, f32[16]{0:T(256)}) parameter(0)
  %fusion.1 = bf16[8,4,4,32]{3,2,1,0:T(8,128)(2,1)} fusion(%loop.1), kind=kOutput, calls=%fused_computation.1, metadata={op_name="jit(f)/shard_map/while/body/jvp(NFNet)/nf_block_1/conv1/add" stack_frame_id=1}, backend_config={"window_config":{"estimated_cycles":"100"}}
  %copy.1 = bf16[8,4,4,32]{2,3,1,0:T(8,128)(2,1)} copy(%fusion.1), backend_config={"window_config":{"estimated_cycles":"7"}}
  ROOT %tuple.1 = (s32[]{:T(256)}, f32[16]{0:T(256)}) tuple(%loop.1, %copy.1)
}

%condition.1 (loop.2: (s32[], f32[16])) -> pred[] {
  %constant.3 = s32[]{:T(256)} constant(3)
  %loop.2 = (s32[]{:T(256)}, f32[16]{0:T(256)}) parameter(0)
  %counter.1 = s32[]{:T(256)} get-tuple-element(%loop.2), index=0
  ROOT %lt.1 = pred[]{:T(1024)} compare(%counter.1, %constant.3), direction=LT, metadata={op_name="jit(f)/shard_map/while/cond/lt"}
}

ENTRY %main.1_spmd (param.0: f32[16], param.1: f32[2,8]) -> (f32[16], f32[2,8]) {
  %param.0 = f32[16]{0:T(256)} parameter(0)
  %param.1 = f32[2,8]{1,0:T(2,128)} parameter(1)
  %while.1 = (s32[]{:T(256)}, /*index=1*/f32[16]{0:T(256)}) while(%param.0), condition=%condition.1, body=%body.1, metadata={op_name="jit(f)/shard_map/while"}
  %fusion.2 = f32[8,4,4,32]{3,2,1,0:T(8,128)} fusion(%while.1), kind=kOutput, calls=%fused_computation.2, metadata={op_name="jit(f)/shard_map/transpose(jvp(NFNet))/stem_conv0/conv_general_dilated"}, backend_config={"window_config":{"estimated_cycles":"40"}}
  %all-reduce.1 = (f32[16]{0:T(256)}, f32[2,8]{1,0:T(2,128)}) all-reduce(%fusion.2, %param.1), channel_id=1, to_apply=%region_1, metadata={op_name="jit(f)/shard_map/psum"}
  %multiply_add.1 = f32[16]{0:T(256)} fusion(%all-reduce.1), kind=kLoop, calls=%fused_computation.3, metadata={op_name="jit(f)/shard_map/sub"}, backend_config={"window_config":{"estimated_cycles":"5"}}
  ROOT %tuple.2 = (f32[16]{0:T(256)}, f32[2,8]{1,0:T(2,128)}) tuple(%multiply_add.1, %param.1)
}
"""  # noqa: E501


@pytest.fixture(scope='module')
def compiled():
  return hlo.HloText(_TEXT)


def test_a_loop_counts_as_often_as_it_runs(compiled):
  # Block 1 is the first of the second stage; the copy has no name of its own.
  assert compiled.cycles((1, 2)) == {
    'stage 2': 3 * (100 + 7),
    'stem': 40,
    'optimizer': 5,
  }


def test_trips_may_be_known_to_the_compiler():
  known = 'body=%body.1, backend_config={"known_trip_count":{"n":"5"}}'
  compiled = hlo.HloText(_TEXT.replace('body=%body.1', known))
  assert compiled.cycles((1, 2))['stage 2'] == 5 * 107


def test_branches_are_walked():
  text = _TEXT.replace(
    'while(%param.0), condition=%condition.1, body=%body.1',
    'conditional(%param.0), branch_computations={%body.1, %condition.1}',
  )
  assert hlo.HloText(text).cycles((1, 2))['stage 2'] == 107


def test_what_devices_average_is_counted(compiled):
  assert compiled.reduced_bytes() == 4 * (16 + 2 * 8)


_STEP = 'jit(f)/shard_map'


@pytest.mark.parametrize(
  'op_name, part',
  [
    (f'{_STEP}/jvp(NFNet)/stem_conv2/conv_general_dilated', 'stem'),
    (f'{_STEP}/transpose(jvp(NFNet))/nf_block/conv1/add', 'stage 1'),
    (f'{_STEP}/transpose(jvp(NFNet))/nf_block_2/conv1b/add', 'stage 2'),
    (f'{_STEP}/while/body/jvp(NFNet)/nf_block_3/se/linear/dot', 'stage 3'),
    (
      f'{_STEP}/transpose(jvp(NFNet))/jvp(NFNet)/checkpoint/'
      'rematted_computation/nf_block_1/mul',
      'stage 2',
    ),
    (f'{_STEP}/jvp(ResNet)/res_block_v2_6/conv0/add', 'stage 3'),
    (f'{_STEP}/jvp(NFNet)/final_conv/dot_general', 'head'),
    (f'{_STEP}/transpose(jvp(NFNet))/linear/dot_general', 'head'),
    (f'{_STEP}/jvp(NFNet)/reduce_sum', 'head'),
    (f'{_STEP}/jvp()/convert_element_type', 'images, casts, loss'),
    (f'{_STEP}/jvp(jit(log_softmax))/reduce_max', 'images, casts, loss'),
    (f'{_STEP}/reduce_sum', 'optimizer'),
    ('', 'other'),
  ],
)
def test_names_tell_the_part(op_name, part):
  assert hlo.part_of(op_name, (1, 2, 6, 3)) == part
