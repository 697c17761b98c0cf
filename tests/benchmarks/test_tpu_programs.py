"""What the benchmark of TPU programs reads off compilations."""

from importlib.util import find_spec

import pytest

from benchmarks.tpu_programs.cases import Case, Kept, compiled
from benchmarks.tpu_programs.collectives import collectives

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


def test_collectives_are_counted_with_the_rounds_of_their_loops_and_by_channel_once():
  assert collectives(HLO) == {
    'all-reduce': {'calls': 1 + 5, 'bytes': 32 + 5 * 48},
    'all-gather': {'calls': 24, 'bytes': 24 * 64},
    'reduce-scatter': {'calls': 1, 'bytes': 16},
  }


@pytest.mark.slow
@pytest.mark.skipif(find_spec('libtpu') is None, reason='the TPU compiler is not there: libtpu')
def test_the_tpu_compiler_takes_a_program_and_is_asked_once(tmp_path):
  kept = Kept(str(tmp_path / 'kept.jsonl'))
  case = Case('evaluation', 'embedded', 'v5e:2x2', 8)
  found = compiled(case, kept)
  assert found['arguments'] > 0
  assert 'all-gather' in found['collectives']
  assert compiled(case, Kept(str(tmp_path / 'kept.jsonl'))) == found
