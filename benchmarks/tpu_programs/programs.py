"""The programs of a run on a mesh that need not exist: compiled functions, and shapes to call them.

A ViT in bfloat16 as a run would adapt it, with all images on the devices.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from glora_jax import mesh as meshes
from glora_jax.method.adapted import Adapted
from glora_jax.method.sharding import shard_arrays
from glora_jax.search.scoring import make_scorer
from glora_jax.search.sketch import Pass
from glora_jax.training.batches import steps_per_call
from glora_jax.training.loop import initial_state, make_steps
from glora_jax.training.losses import classification
from glora_jax.vision.data.pipeline import Images, Split
from glora_jax.vision.runs.backbone import (
  Model,
  adapt_spaces,
  variables_before_training,
)
from glora_jax.vision.runs.context import Context
from glora_jax.vision.runs.evaluation import BATCH, make_predictor
from glora_jax.vision.runs.settings import (
  GRADIENT,
  MeshSettings,
  ModelSettings,
  RunSettings,
  SpaceSettings,
  TrainingSettings,
)
from glora_jax.vision.runs.stages.training import FullFineTuning, loss_of

Program = tuple[Any, tuple[Any, ...]]  # a compiled function and its arguments
Shape = jax.ShapeDtypeStruct
KEY = jax.eval_shape(jax.random.key, 0)
COUNTS = {'train': 800, 'val': 200, 'test': 1000}
FINETUNING = 'finetuning'  # of all weights, in float32: what the supernet is measured by
NAMES = ('supernet', 'subnet', 'scoring', 'allocation', 'evaluation', FINETUNING)


def make_run(
  model: nn.Module, size: int, rank: int, batch: int, base: Any, mesh: jax.sharding.Mesh
) -> Context:
  """A run whose variables are shapes on a mesh.

  Args:
    model: the backbone, with a head for the task.
    size: side of its images.
    rank: of its LoRAs.
    batch: images of a step, on all devices together.
    base: 'replicated' or 'sharded', as `config.mesh.base`.
    mesh: the devices.
  """
  settings = RunSettings(
    presets=(GRADIENT,),
    training=TrainingSettings(batch_size=batch),
    space=SpaceSettings(ranks=(rank,)),
    model=ModelSettings(dtype='bfloat16', base_dtype='bfloat16'),
    mesh=MeshSettings(base=base),
  )
  images = Shape((1, size, size, 3), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), images)['params']
  searched, other = adapt_spaces(settings, model, size, mesh)
  assert other is not None, 'the space of a gradient'

  def variables(adapted: Adapted) -> Any:
    start = functools.partial(variables_before_training, adapted, settings=settings, mesh=None)
    shapes = jax.eval_shape(start, params)
    return adapted.join(*_placed(settings, mesh, *adapted.split(shapes)))

  counts = {**COUNTS, 'train': max(COUNTS['train'], 8 * batch)}  # enough for a gradient's batches
  resident = {
    split: Split(Shape((number, size, size, 3), jnp.uint8), Shape((number,), jnp.int32))
    for split, number in counts.items()
  }
  metadata = {'image_size': size, 'normalization': 'inception'}
  no_task: Any = None
  return Context(
    settings,
    '',
    Images(no_task, size, resident=meshes.hold(mesh, resident)),
    searched,
    variables(searched),
    metadata,
    beside=Model(other, variables(other)),
    mesh=mesh,
  )


def _placed(
  settings: RunSettings, mesh: jax.sharding.Mesh, trainable: Any, frozen: Any
) -> tuple[Any, Any]:
  """Shapes of trained and frozen arrays on the devices of a run."""
  place = shard_arrays if settings.mesh.base == 'sharded' else meshes.replicate
  return meshes.replicate(mesh, trainable), place(mesh, frozen)


def training(run: Context, learner: Adapted) -> Program:
  """Training steps of a learner, as `fit` compiles them."""
  assert run.mesh is not None
  recipe, split = run.settings.training, run.images.split('train')
  number = len(split.labels)
  halves = jax.eval_shape(learner.split, run.variables)
  trainable, frozen = _placed(run.settings, run.mesh, *halves)
  optimizer = recipe.optimizer(recipe.steps_per_epoch(number))
  start = jax.eval_shape(functools.partial(initial_state, optimizer=optimizer), trainable)
  whole = meshes.are_replicated(frozen)
  steps = make_steps(
    loss_of(run, learner, split.labels), optimizer, recipe.accumulate, run.mesh, whole
  )
  per_call = steps_per_call(recipe.steps_per_epoch(number))
  indices = Shape((per_call, recipe.batch_size), jnp.int32)
  state, indices = meshes.replicate(run.mesh, (start.opt_state, indices))
  return steps, (trainable, state, 0, frozen, split, indices, KEY, None)


def scoring(run: Context, chunk: int) -> Program:
  """The scores of a population on the validation images."""
  loss = classification(run.preprocess)
  score = make_scorer(run.adapted, loss, chunk=chunk, mesh=run.mesh)
  shape = run.settings.search.population, len(run.adapted.spec), 5
  genomes = meshes.replicate(run.mesh, Shape(shape, jnp.int8))
  return score, (run.variables, genomes, run.images.split('val'))


def allocation(run: Context) -> Program:
  """What `allocate` does with a batch."""
  (adapted, variables, *_), batch_size = run.place(GRADIENT), run.settings.training.batch_size
  ranks = max(max(layer.space.ranks) for layer in adapted.spec)
  parts, size = min(run.settings.allocation.max_rank, ranks), run.metadata['image_size']
  found = Pass(
    adapted, variables, classification(run.preprocess), parts, jax.random.key(0), run.mesh
  )
  images = Shape((batch_size, size, size, 3), jnp.uint8)
  batch = meshes.split_rows(run.mesh, (images, Shape((batch_size,), jnp.int32)))
  return found.gradient.program, (*found.start(), batch, KEY)


def evaluation(run: Context) -> Program:
  """A structure's answers on test images."""
  predict = make_predictor(run.adapted, run.preprocess, mesh=run.mesh)
  size = run.metadata['image_size']
  images = meshes.split_rows(run.mesh, Shape((BATCH, size, size, 3), jnp.uint8))
  return predict, (run.variables, images)


def program_of(name: str, run: Context, chunk: int) -> Program:
  """The program of a name in `NAMES`; `chunk` candidates are scored side by side on each device."""
  if name == 'scoring':
    return scoring(run, chunk)
  if name == 'allocation':
    return allocation(run)
  if name == 'evaluation':
    return evaluation(run)
  learners = {
    'supernet': run.adapted,
    'subnet': run.adapted.fix('lora'),
    FINETUNING: FullFineTuning.of(run.adapted),
  }
  return training(run, learners[name])
