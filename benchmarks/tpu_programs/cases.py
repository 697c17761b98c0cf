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
from benchmarks.tpu_programs import decoder
from benchmarks.tpu_programs.collectives import collectives
from glora_jax import mesh as meshes
from glora_jax.models.vit import vit
from glora_jax.runs.config import RunSettings
from glora_jax.runs.plan import bytes_by_kind, devices_of, most_that_fit
from glora_jax.runs.programs import MAKERS, Program, count, shape_of_run, training_of
from glora_jax.runs.sections import MeshSettings, ModelSettings, SpaceSettings, TrainingSettings
from glora_jax.runs.stage import Workload
from glora_jax.runs.stages.training import FullFineTuning
from glora_jax.search.scoring import made_for

COUNTS = {'train': 800, 'val': 200, 'test': 1000}
FINETUNING = 'finetuning'  # of all weights, in float32: what the supernet is measured by
NAMES = (*MAKERS, FINETUNING)
ALONE = 'train_many'  # a run has it on one device only
OF_DECODERS = ('supernet', 'subnet')
FIXED = ('fold', 'head', 'evaluation')  # what grows with neither batch nor candidates


BACKBONES = {  # a model, the side of its images, and the rank of its supports
  'embedded': (EMBEDDED_VIT, IMAGE_SIZE, 4),
  **{f'ViT-{size}/16': (vit(size, 100), 224, 8) for size in ('S', 'B', 'L')},
}


Record = dict[str, Any]
KINDS = ('arguments', 'temporaries', 'outputs', 'code')  # of bytes


class Case(NamedTuple):
  """One compilation.

  Attributes:
    name: one of `NAMES`.
    backbone: key of `BACKBONES`, or of `decoder.SIZES`.
    topology: name of a slice.
    batch: images, or texts, of a step for each chip.
    chunk: candidates side by side on each chip.
    base: 'replicated', or 'sharded' for frozen weights of which each chip has a part.
  """

  name: str
  backbone: str
  topology: str
  batch: int
  chunk: int = 16
  base: Literal['replicated', 'sharded'] = 'replicated'

  def half(self) -> 'Case | None':
    """The same with half as much at once; None where nothing grows."""
    if self.name in FIXED:
      return None
    if self.name == 'scoring':
      return self._replace(chunk=self.chunk // 2)
    return self._replace(batch=self.batch // 2)

  @property
  def amount(self) -> int:
    """How much there is at once: candidates, or images for each chip."""
    return self.chunk if self.name == 'scoring' else self.batch


def build(case: Case) -> Program:
  """The program of a case, for devices of its slice."""
  devices = devices_of(case.topology)
  mesh = None if case.name == ALONE else meshes.over(devices)
  chips = 1 if mesh is None else mesh.size
  if mesh is not None and case.backbone in decoder.SIZES:
    size = decoder.SIZES[case.backbone]
    return decoder.training(case.name, size, case.batch * chips, mesh, case.base)
  model, image_size, rank = BACKBONES[case.backbone]
  recipe = TrainingSettings(batch_size=case.batch * chips)
  settings = RunSettings(
    presets=('gradient',),
    training=recipe,
    space=SpaceSettings(ranks=(rank,)),
    model=ModelSettings(dtype='bfloat16', base_dtype='bfloat16'),
    mesh=MeshSettings(base=case.base),
  )
  # Enough images for a batch, and for those of a gradient.
  counts = {**COUNTS, 'train': max(COUNTS['train'], 8 * case.batch * chips)}
  model = model.clone(dtype='bfloat16', drop_path=0.1)
  run = shape_of_run(settings, model, image_size, counts, mesh=mesh)
  if case.name == FINETUNING:
    # All weights by the supernet's recipe, with its augmentation and drop path.
    learner = FullFineTuning.of(run.adapted)
    made = training_of(run, learner, recipe, run.variables)
  else:
    made = MAKERS[case.name](run, Workload(chunk=case.chunk))
  return made.on(devices[0]) if mesh is None else made


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
    The case, bytes by kind, collectives by kind, operations, seconds by the clock and of all cores
    (`cpu_seconds`). A program that the compiler
    refuses, as it does where memory is short, has its sentence as 'error' instead.
  """
  with made_for('tpu'):
    program = build(case)
    traced = program.function.trace(*program.arguments)
    lowered = traced.lower()
  versions = [jax.__version__, importlib.metadata.version('libtpu')]
  text = '\n'.join([*versions, case.topology, lowered.as_text()])
  key = hashlib.sha256(text.encode()).hexdigest()
  if key in kept:
    return {**kept[key], **case._asdict()}
  operations = count(traced.jaxpr)
  record = {
    'hash': key,
    **case._asdict(),
    'products': operations.products,
    'operations': sum(operations),
  }
  start, cpu_start = time.perf_counter(), time.process_time()
  try:
    executable = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    return kept.add({**record, 'error': str(error).splitlines()[0][:300]})
  record |= {
    'seconds': round(time.perf_counter() - start, 1),
    'cpu_seconds': round(time.process_time() - cpu_start, 1),
    **bytes_by_kind(executable),
  }
  return kept.add({**record, 'collectives': collectives(executable.as_text())})


def held(record: Record) -> int:
  """Bytes of a chip, all kinds together."""
  return sum(record[kind] for kind in KINDS)


def largest(record: Record, half: Record | None, memory: int) -> int | None:
  """How much fits into a chip's memory at once, by a line through two compilations.

  Args:
    record: of a case.
    half: of the same with half as much.
    memory: bytes of a chip.

  Returns:
    Candidates, or images for each chip; None where nothing grows, or a compilation failed.
  """
  if half is None or 'error' in record or 'error' in half:
    return None
  amount = Case(*(record[name] for name in Case._fields)).amount
  if held(half) >= held(record):
    return None
  return most_that_fit(memory, (amount // 2, held(half)), (amount, held(record)))
