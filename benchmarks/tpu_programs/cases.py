"""What is compiled: a program of a run, a model, a slice, and how much of it at once."""

from typing import Literal, NamedTuple

from benchmarks.machinery.embedded_task import EMBEDDED_VIT, IMAGE_SIZE
from benchmarks.tpu_programs import decoder
from glora_jax import mesh as meshes
from glora_jax.models.vit import ViT, vit
from glora_jax.runs.config import RunSettings
from glora_jax.runs.planning.machine import find_slice
from glora_jax.runs.programs import MAKERS, Program, Workload, program, shape_of_run, training_of
from glora_jax.runs.run import Run, Stream
from glora_jax.runs.sections import MeshSettings, ModelSettings, SpaceSettings
from glora_jax.runs.stages.many_starts import FullFineTuning, loss_of_finetuning
from glora_jax.runs.stages.training import TrainingStage
from glora_jax.training.recipe import Recipe

COUNTS = {'train': 800, 'val': 200, 'test': 1000}
FINETUNING = 'finetuning'  # of all weights, in float32: what the supernet is measured by
NAMES = (*MAKERS, FINETUNING)
ALONE = 'train_many'  # a run has it on one device only
OF_DECODERS = ('supernet', 'subnet')
FIXED = ('fold', 'head', 'evaluation')  # what grows with neither batch nor candidates


class Backbone(NamedTuple):
  """A model, the side of its images, and the ranks of its supports."""

  model: ViT
  size: int
  ranks: tuple[int, ...]


BACKBONES = {
  'embedded': Backbone(EMBEDDED_VIT.clone(dtype='bfloat16', drop_path=0.1), IMAGE_SIZE, (4,)),
  **{
    f'ViT-{size}/16': Backbone(vit(size, 100, dtype='bfloat16', drop_path=0.1), 224, (8,))
    for size in ('S', 'B', 'L')
  },
}


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
  devices = find_slice(case.topology).devices()
  mesh = None if case.name == ALONE else meshes.over(devices)
  chips = 1 if mesh is None else mesh.size
  if mesh is not None and case.backbone in decoder.SIZES:
    size = decoder.SIZES[case.backbone]
    return decoder.training(case.name, size, case.batch * chips, mesh, case.base)
  backbone = BACKBONES[case.backbone]
  recipe = Recipe(batch_size=case.batch * chips)
  settings = RunSettings(
    merge='lazy',
    presets=('gradient',),
    supernet=recipe,
    space=SpaceSettings(ranks=backbone.ranks),
    model=ModelSettings(dtype='bfloat16', base_dtype='bfloat16'),
    mesh=MeshSettings(base=case.base),
  )
  # Enough images for a batch, and for the folds of a gradient.
  counts = {**COUNTS, 'train': max(COUNTS['train'], 8 * case.batch * chips)}
  run = shape_of_run(settings, backbone.model, backbone.size, counts, mesh=mesh)
  if case.name == FINETUNING:
    made = finetuning(run)
  else:
    made = program(case.name, run, Workload(chunk=case.chunk))
  if mesh is not None:
    return made
  return made.on(devices[0])


def finetuning(run: Run) -> Program:
  """All weights trained by the supernet's recipe, with its augmentation and drop path."""
  stage = TrainingStage(FINETUNING, run.settings.supernet, Stream.SUPERNET, run.train_split)
  learner = FullFineTuning(run.adapted)
  loss_fn = loss_of_finetuning(run, learner)
  return Program(FINETUNING, *training_of(run, stage, run.variables, learner, loss_fn))
