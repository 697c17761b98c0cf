"""What the benchmark of TPU programs reads off compilations."""

import functools
import importlib.util

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from benchmarks.tpu_programs.cases import Case, Kept, compiled
from benchmarks.tpu_programs.collectives import collectives
from glora_jax import mesh as meshes
from glora_jax.runs.plan import devices_of

HLO = """HloModule jit_steps, is_scheduled=true

%add.1 (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body.2 (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %gathered = bf16[8,4]{1,0:T(8,128)} all-gather(%x), dimensions={0}, replica_groups={{0,1}}
  %started = (bf16[2,4]{1,0}, bf16[8,4]{1,0}) all-gather-start(%y), dimensions={0}
}

%condition.4 (p: (s32[], bf16[8,4])) -> pred[] {
  %bound = s32[]{:T(128)} constant(12)
  ROOT %lt.5 = pred[]{:T(512)} compare(%counter, %bound), direction=LT, metadata={}
}

%known (p: s32[]) -> s32[] {
  %r = (f32[4]{0}, f32[4]{0}, f32[4]{0}) all-reduce-start(%a, %b, %c), to_apply=%add.1
}

%first (p: f32[2]) -> f32[4] {
  %part = f32[4]{0} reduce-scatter(%x), channel_id=4, dimensions={0}
}

%second (p: f32[2]) -> f32[4] {
  %part = f32[4]{0} reduce-scatter(%x), channel_id=4, dimensions={0}
}

ENTRY %main.3 (Arg_0: f32[4]) -> f32[4] {
  %loop = (s32[], bf16[8,4]) while(%t), condition=%condition.4, body=%body.2, metadata={}
  %five = s32[] while(%t), condition=%c, body=%known, backend_config={"known_trip_count":{"n":"5"}}
  %begun = f32[4] fusion(%a), kind=kCustom, calls=%first
  %ended = f32[4] fusion(%begun), kind=kCustom, calls=%second
  ROOT %all = (f32[4]{0}, f32[2,2]{1,0}) all-reduce(%g, %h), to_apply=%add.1
}
"""
needs_compiler = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason='the TPU compiler is not there: libtpu'
)


def test_collectives_are_counted_with_the_rounds_of_their_loops_and_by_channel_once():
  assert collectives(HLO) == {
    'all-reduce': {'calls': 1 + 5, 'bytes': 32 + 5 * 48},
    'all-gather': {'calls': 24, 'bytes': 24 * 64},
    'reduce-scatter': {'calls': 1, 'bytes': 16},
  }


@pytest.mark.slow
@needs_compiler
def test_the_tpu_compiler_takes_a_program_and_is_asked_once(tmp_path):
  kept = Kept(str(tmp_path / 'kept.jsonl'))
  case = Case('fold', 'embedded', 'v5e:1x1', 8)
  found = compiled(case, kept)
  assert found['code'] > 0
  assert not found['collectives']
  assert compiled(case, Kept(str(tmp_path / 'kept.jsonl'))) == found


@pytest.mark.slow
@needs_compiler
def test_a_tpu_takes_batches_of_resident_images_without_a_copy_of_all():
  one_chip = jax.sharding.SingleDeviceSharding(devices_of('v5e:1x1')[0])
  shape = functools.partial(jax.ShapeDtypeStruct, sharding=one_chip)
  images, rows = shape((2048, 224, 224, 3), jnp.uint8), shape((48, 64), jnp.int32)
  embed = nn.Conv(768, (16, 16), (16, 16), padding='VALID', dtype=jnp.bfloat16)
  params = jax.eval_shape(embed.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
  params = jax.tree.map(lambda leaf: shape(leaf.shape, leaf.dtype), params)

  @jax.jit
  def sums(params, images, rows):
    return jax.lax.map(lambda row: embed.apply(params, images[row]).sum(), rows)

  def temporaries(images):
    program = sums.lower(params, images, rows).compile()
    return program.memory_analysis().temp_size_in_bytes

  assert temporaries(meshes.laid(images)) < images.size / 8
  assert temporaries(images) > images.size / 2  # what there was before
