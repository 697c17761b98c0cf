"""What is compiled: a program of a run, a model, a slice, and how much of it at once.

Compilations are kept by their program's hash, so that none is done twice.
"""

import hashlib
import importlib.metadata
import time
from typing import Any, Literal, NamedTuple

import jax

from benchmarks.machinery.embedded_task import EMBEDDED_VIT, IMAGE_SIZE
from benchmarks.machinery.measuring import append_line, read_lines
from benchmarks.machinery.slices import mesh_of
from benchmarks.machinery.vits import vit
from benchmarks.tpu_programs import decoder
from benchmarks.tpu_programs.collectives import collectives
from benchmarks.tpu_programs.programs import Program, make_run, program_of
from glora_jax.compiling import memory_of

OF_DECODERS = ('supernet', 'subnet')
BACKBONES = {  # a model, the side of its images, and the rank of its supports
  'embedded': (EMBEDDED_VIT, IMAGE_SIZE, 4),
  **{f'ViT-{size}/16': (vit(size, 100), 224, 8) for size in ('S', 'B', 'L')},
}

Record = dict[str, Any]


class Case(NamedTuple):
  """One compilation.

  Attributes:
    name: one of `programs.NAMES`.
    backbone: key of `BACKBONES`, or of `decoder.SIZES`.
    topology: name of a slice.
    batch: images, or texts, of a step for each chip.
    chunk: candidates side by side on each chip.
    base: 'replicated', or 'sharded' for frozen weights of which each chip has a part.
    weights: type of a decoder's frozen kernels, 'bfloat16' or one of qwix.
  """

  name: str
  backbone: str
  topology: str
  batch: int
  chunk: int = 16
  base: Literal['replicated', 'sharded'] = 'replicated'
  weights: str = 'bfloat16'


def build(case: Case) -> Program:
  """The program of a case, for devices of its slice."""
  mesh = mesh_of(case.topology)
  batch = case.batch * mesh.size
  if case.backbone in decoder.SIZES:
    size = decoder.SIZES[case.backbone]
    return decoder.training(case.name, size, batch, mesh, case.base, case.weights)
  model, image_size, rank = BACKBONES[case.backbone]
  model = model.clone(dtype='bfloat16', drop_path=0.1)
  run = make_run(model, image_size, rank, batch, case.base, mesh)
  return program_of(case.name, run, case.chunk)


class Kept(dict[str, Record]):
  """Records of compilations by hash, in a file of JSON lines."""

  def __init__(self, path: str):
    super().__init__({record['hash']: record for record in read_lines(path)})
    self._path = path

  def add(self, record: Record) -> Record:
    """Keeps a record, and returns it."""
    append_line(self._path, record)
    self[record['hash']] = record
    return record


def compiled(case: Case, kept: Kept) -> Record:
  """What the compiler says of a case, now or from an earlier time.

  Returns:
    The case, bytes by kind, collectives by kind, seconds by the clock and of all cores
    (`cpu_seconds`). A program that the compiler refuses, as it does where memory is short, has its
    sentence as 'error' instead.
  """
  function, arguments = build(case)
  lowered = function.lower(*arguments)
  versions = [jax.__version__, importlib.metadata.version('libtpu')]
  text = '\n'.join([*versions, case.topology, lowered.as_text()])
  key = hashlib.sha256(text.encode()).hexdigest()
  if key in kept:
    return {**kept[key], **case._asdict()}
  record = {'hash': key, **case._asdict()}
  start, cpu_start = time.perf_counter(), time.process_time()
  try:
    executable = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    return kept.add({**record, 'error': str(error).splitlines()[0][:300]})
  record |= {
    'seconds': round(time.perf_counter() - start, 1),
    'cpu_seconds': round(time.process_time() - cpu_start, 1),
    **memory_of(executable),
  }
  return kept.add({**record, 'collectives': collectives(executable.as_text())})
