"""The programs that a run compiles, with the shapes of what they are called with: nothing is run.

Each is the very function that its stage calls. Tests lower them for accelerators that are not at
hand, `benchmarks.tpu_programs` compiles them for slices, and `plan` reads off what they take.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from glora_jax import mesh as meshes
from glora_jax.data.pipeline import Split
from glora_jax.method.adapted import Adapted
from glora_jax.method.presets import preset
from glora_jax.runs.backbone import (
  Place,
  adapt_spaces,
  on_devices,
  placed,
  placed_halves,
  variables_before_training,
)
from glora_jax.runs.config import RunSettings
from glora_jax.runs.context import STREAMED_BLOCK, Context
from glora_jax.runs.sections import GENOME_ENDING, GRADIENT, NO_PRESETS, SEARCH
from glora_jax.runs.stage import Workload
from glora_jax.runs.stages.allocation import (
  gradient_loss,
  head_learner,
  head_recipe,
  shape_of_folds,
)
from glora_jax.runs.stages.structures import named_genome
from glora_jax.runs.stages.training import MOST_STEPS, FullFineTuning, loss_of
from glora_jax.search.allocate import passes_of
from glora_jax.search.fold_gradients import Settings
from glora_jax.search.scoring import make_predictor, make_scorer
from glora_jax.training.batches import MOST_STREAMED_STEPS, steps_per_call
from glora_jax.training.head_alone import HeadAlone
from glora_jax.training.loop import LossFn, initial_state, make_steps
from glora_jax.training.recipe import Recipe

Shape = jax.ShapeDtypeStruct
KEY = jax.eval_shape(jax.random.key, 0)


class Program(NamedTuple):
  """A compiled function and the shapes that it is called with.

  Attributes:
    name: key of `MAKERS`.
    function: what `jax.jit` returned.
    arguments: arrays' shapes, types and, on a mesh, places.
    images: how many a call goes through, for each candidate.
    streamed: those of the arguments that are read for each call anew.
  """

  name: str
  function: Any
  arguments: tuple[Any, ...]
  images: int
  streamed: Any = ()

  def lowered(self) -> Any:
    """The program for the devices that its arguments are on, lowered."""
    return self.function.lower(*self.arguments)

  def on(self, device: jax.Device) -> Program:
    """The program for one device, which need not be at hand."""
    sharding = jax.sharding.SingleDeviceSharding(device)

    def place(leaf: Any) -> Shape:
      dtype = getattr(leaf, 'dtype', jnp.int32)
      shape = Shape(np.shape(leaf), dtype, sharding=sharding)
      return meshes.laid(shape) if dtype == jnp.uint8 else shape  # images

    return self._replace(arguments=jax.tree.map(place, self.arguments))


def shape_of_run(
  settings: RunSettings,
  model: nn.Module,
  image_size: int,
  counts: Mapping[str, int],
  normalization: Any = 'inception',
  mesh: jax.sharding.Mesh | None = None,
) -> Context:
  """A run of which only shapes are known: a model without weights, no task, no workdir.

  Args:
    settings: the config.
    model: the backbone, with a head for the task; its `dtype` and `remat` are those of the run.
    image_size: side of its images.
    counts: number of images by split, 'train', 'val' and 'test'; 'train+val' where it is used.
    normalization: how pixels become numbers.
    mesh: devices, which may be a slice's that is not at hand; None for one device.

  Returns:
    A run for `program`, whose variables are `jax.ShapeDtypeStruct`.
  """
  images = Shape((1, image_size, image_size, 3), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), images)['params']

  def start(adapted: Adapted) -> Place:
    shapes = functools.partial(variables_before_training, adapted, settings=settings, mesh=None)
    return Place(adapted, jax.eval_shape(shapes, params))

  own, other = adapt_spaces(settings, model, image_size)
  beside = None if other is None else start(other)
  metadata = {'image_size': image_size, 'normalization': normalization}
  no_task: Any = None
  context = Context(settings, '', no_task, *start(own), metadata, counts=counts, beside=beside)
  for split, number in counts.items():
    context.splits[split] = Split(_images(context, number), Shape((number,), jnp.int32))
  return on_mesh(context, mesh)


def on_mesh(context: Context, mesh: jax.sharding.Mesh | None) -> Context:
  """A run of which only shapes are known, on other devices."""

  def moved(adapted: Adapted, variables: Any) -> Place:
    adapted = on_devices(adapted, context.settings, mesh)
    return Place(adapted, placed(adapted, variables, context.settings, mesh))

  adapted, variables = moved(context.adapted, context.variables)
  beside = context.beside and moved(*context.beside)
  return dataclasses.replace(
    context, adapted=adapted, variables=variables, beside=beside, mesh=mesh
  )


def program(name: str, context: Context, workload: Workload = Workload()) -> Program:
  """A program of a context.

  Args:
    name: key of `MAKERS`.
    context: the context; of its variables shapes are enough.
    workload: sizes of what it is given.

  Raises:
    ValueError: there is no such program, or the batches do not fit the images or the mesh.

  Example:
    >>> from glora_jax.models.vit import ViT
    >>> model = ViT(10, patch_size=4, width=16, depth=2, num_heads=2)
    >>> counts = {'train': 128, 'val': 64, 'test': 64}
    >>> run = shape_of_run(RunSettings(), model, 8, counts)
    >>> fold = program('fold', run)
    >>> fold.arguments[1]
    ShapeDtypeStruct(shape=(8, 5), dtype=int8)
  """
  if name not in MAKERS:
    raise ValueError(f'program {name!r} is unknown; the programs are {", ".join(MAKERS)}.')
  return Program(name, *MAKERS[name](context, workload))


_Made = tuple[Any, tuple[Any, ...], int, Any]  # fields of a program but for its name


def training_of(
  context: Context,
  learner: Adapted,
  recipe: Recipe,
  variables: Any,
  loss_fn: LossFn | None = None,
) -> _Made:
  """The steps of a training, as `loop.fit` compiles them.

  Args:
    context: the context.
    learner: what is trained.
    recipe: how.
    variables: shapes of the variables to start from.
    loss_fn: what is minimized; None for the job's loss of the learner.

  Returns:
    (compiled function, what it is called with, images of a call, what of them is streamed).
  """
  number = _number(context, context.train_split)
  trainable, frozen = jax.eval_shape(learner.split, variables)
  if context.mesh is not None:
    trainable, frozen = placed_halves(trainable, frozen, context.settings, context.mesh)
  loss_fn, optimizer = loss_fn or loss_of(context, learner), recipe.optimizer(number)
  state = _replicate(context, jax.eval_shape(optimizer.init, trainable))
  if isinstance(learner, HeadAlone):
    body = learner.body_of(variables)
    images = _images(context, learner.batch_size)
    features = jax.eval_shape(learner.features_program(), body, images)
    shape = Shape((number, *features.shape[1:]), features.dtype)
    data = _resident(context, recipe, shape, recipe.steps_per_epoch(number))
  else:
    data = _data(context, recipe, number)
  whole = meshes.are_whole(frozen)
  steps = make_steps(loss_fn, optimizer, recipe.accumulate, context.mesh, whole)
  images, labels, indices = data
  streamed = (images, labels) if indices is None else ()
  number = math.prod(images.shape[:2] if indices is None else indices.shape)
  return steps, (trainable, state, 0, frozen, *data, KEY, None), number, streamed


def _replicate(context: Context, shapes: Any) -> Any:
  return meshes.replicate(context.mesh, shapes)


def _images(context: Context, *axes: int) -> Shape:
  size = context.metadata['image_size']
  return Shape((*axes, size, size, 3), jnp.uint8)


def _data(context: Context, recipe: Recipe, number: int) -> tuple[Any, Any, Any]:
  """Images, labels and indices of a dispatch: a `batches.Block`."""
  if context.is_resident(number):
    return _resident(context, recipe, _images(context, number))
  size = recipe.batch_size
  steps = min(MOST_STEPS, MOST_STREAMED_STEPS)
  steps = steps_per_call(recipe.steps_per_epoch(number), steps)
  batches: Any = _images(context, steps, size), Shape((steps, size), jnp.int32)
  if context.mesh is not None:
    sharding = meshes.dealt(context.mesh, axis=1)
    batches = tuple(meshes.put(leaf, sharding) for leaf in batches)
  return *batches, None


def _resident(
  context: Context, recipe: Recipe, images: Shape, most: int = MOST_STEPS
) -> tuple[Shape, Shape, Shape]:
  number = images.shape[0]
  steps = steps_per_call(recipe.steps_per_epoch(number), most)
  indices = Shape((steps, recipe.batch_size), jnp.int32)
  labels = Shape((number,), jnp.int32)
  return *meshes.hold(context.mesh, (images, labels)), _replicate(context, indices)


def _supernet(context: Context, workload: Workload) -> _Made:
  return _alone(context, workload._replace(structure=None))


def _learner(context: Context, workload: Workload) -> tuple[Adapted, Recipe, Any]:
  """What a workload trains, how, and shapes of the variables that it starts from."""
  name = workload.structure
  learner, variables = context.place(name or SEARCH)
  if name == 'finetuning':
    learner = FullFineTuning.of(context.adapted)
  elif name is not None and name.endswith(GENOME_ENDING):
    learner = learner.fix(named_genome(learner.spec, name, context.settings.budget))
  elif name is not None:
    learner = learner.fix(preset(learner.spec, 'full' if name in NO_PRESETS else name))
  return learner, workload.recipe or context.settings.training, variables


def _alone(context: Context, workload: Workload) -> _Made:
  return training_of(context, *_learner(context, workload))


def _train_many(context: Context, workload: Workload) -> _Made:
  """The same training several times side by side."""
  learner, recipe, variables = _learner(context, workload)
  number, runs = _number(context, context.train_split), workload.side_by_side
  trainable, frozen = jax.eval_shape(learner.split, variables)
  loss_fn, optimizer = loss_of(context, learner), recipe.optimizer(number)
  many = jax.tree.map(lambda leaf: Shape((runs, *leaf.shape), leaf.dtype), trainable)
  state = jax.eval_shape(lambda trainable: initial_state(trainable, optimizer, runs), many)
  images, labels, indices = _resident(context, recipe, _images(context, number))
  indices = Shape((len(indices), runs, recipe.batch_size), jnp.int32)
  keys, rates = Shape((runs,), KEY.dtype), Shape((runs,), jnp.float32)
  steps = make_steps(loss_fn, optimizer, recipe.accumulate)
  arguments = *state, frozen, images, labels, indices, keys, rates
  return steps, arguments, math.prod(indices.shape), ()


def _number(context: Context, split: str) -> int:
  return len(context.data(split).labels)


def _scored(context: Context, split: str) -> tuple[Shape, Shape]:
  """Images and labels that are scored at once: a split, or a block of a streamed one."""
  number = _number(context, split)
  is_resident = context.is_resident(number)
  number = number if is_resident else min(number, STREAMED_BLOCK)
  place = meshes.hold if is_resident else meshes.replicate
  return place(context.mesh, (_images(context, number), Shape((number,), jnp.int32)))


def _genomes(context: Context, *axes: int) -> Shape:
  return _replicate(context, Shape((*axes, len(context.adapted.spec), 5), jnp.int8))


def _scoring(context: Context, workload: Workload) -> _Made:
  options = {'chunk': workload.chunk, 'block': workload.block}
  scorer: Any = make_scorer(context.adapted, context.preprocess, mesh=context.mesh, **options)
  population = context.settings.search.population
  images, labels = _scored(context, context.search_split)
  arguments = context.variables, _genomes(context, population), images, labels
  return scorer.compiled, arguments, population * len(images), ()


def _allocation(context: Context, workload: Workload) -> _Made:
  place, settings = context.place(GRADIENT), context.settings.allocation
  number, batch = _number(context, context.train_split), context.settings.training.batch_size
  _, size = shape_of_folds(number, settings.folds, batch, context.devices)
  shapes = meshes.deal(context.mesh, (_images(context, size), Shape((size,), jnp.int32)))
  measured = Settings(settings.folds, settings.max_rank, context.mesh)
  passes = passes_of(place.adapted, place.variables, gradient_loss(context), (), measured)
  return *passes.program(shapes), size, ()


def _fold(context: Context, workload: Workload) -> _Made:
  return jax.jit(context.adapted.fold), (context.variables, _genomes(context)), 1, ()


def _head_alone(context: Context) -> tuple[HeadAlone, Recipe, Any]:
  """The head that is warmed before a gradient is taken, its recipe, and where it starts."""
  place = context.place(GRADIENT)
  learner = head_learner(context, place)
  assert isinstance(learner, HeadAlone)
  return learner, head_recipe(context.settings), place.variables


def _features(context: Context, workload: Workload) -> _Made:
  """The frozen body, once for every image, before a head is trained alone."""
  learner, _, variables = _head_alone(context)
  batch = meshes.deal(context.mesh, _images(context, learner.batch_size))
  arguments = learner.body_of(variables), batch
  return learner.features_program(context.mesh), arguments, learner.batch_size, ()


def _head(context: Context, workload: Workload) -> _Made:
  return training_of(context, *_head_alone(context))


def _evaluation(context: Context, workload: Workload) -> _Made:
  predictor = make_predictor(
    context.adapted, context.preprocess, block=workload.block, mesh=context.mesh
  )
  images, _ = _scored(context, 'test')
  return predictor, (context.variables, _genomes(context), images), len(images), ()


MAKERS: Mapping[str, Callable[[Context, Workload], _Made]] = {
  'supernet': _supernet,
  'subnet': _alone,
  'train_many': _train_many,
  'scoring': _scoring,
  'allocation': _allocation,
  'fold': _fold,
  'features': _features,
  'head': _head,
  'evaluation': _evaluation,
}
