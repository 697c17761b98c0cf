"""Programs by the TPU compiler: bytes of every kind, temporaries, what is sent."""

import tempfile
from collections.abc import Iterator
from typing import Any

from benchmarks.machinery.slices import has_compiler
from benchmarks.tpu_programs.cases import Case, Kept, compiled
from benchmarks.tpu_programs.programs import NAMES

TOPOLOGY, BATCH = 'v5e:2x2', 64
SHARDED = ('supernet', 'subnet', 'scoring')
LARGE = ('supernet', 'subnet', 'scoring')
LEFT_OUT = ('hash', 'seconds', 'cpu_seconds')


def record() -> Iterator[tuple[str, dict[str, Any]]]:
  """Names and entries, one after the other; nothing where the compiler is not installed."""
  if not has_compiler():
    return
  cases = [
    *(Case(name, 'embedded', TOPOLOGY, BATCH) for name in NAMES),
    *(Case(name, 'embedded', TOPOLOGY, BATCH, base='sharded') for name in SHARDED),
    *(Case(name, 'ViT-B/16', TOPOLOGY, BATCH) for name in LARGE),
  ]
  with tempfile.TemporaryDirectory() as folder:
    kept = Kept(f'{folder}/kept.jsonl')
    for case in cases:
      found = compiled(case, kept)
      values = {name: value for name, value in found.items() if name not in LEFT_OUT}
      yield f'{case.backbone}/{case.name}/{case.base}', values
