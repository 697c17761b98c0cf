"""The programs that a run compiles, with the shapes of what they are called with: nothing is run.

Each is the very function that its stage calls. Tests lower them for accelerators that are not at
hand, `benchmarks.tpu_programs` compiles them for slices, and `plan` reads off what they take.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from glora_jax import mesh as meshes
from glora_jax.data.pipeline import Split
from glora_jax.method.adapted import Adapted
from glora_jax.method.draws import check_budget
from glora_jax.method.presets import preset
from glora_jax.runs.backbone import (
  adapt_spaces,
  on_devices,
  placed,
  placed_halves,
  shapes_before_training,
)
from glora_jax.runs.config import RunSettings
from glora_jax.runs.lifecycle import never
from glora_jax.runs.run import STREAMED_BLOCK, Place, Run, Stream
from glora_jax.runs.sections import GENOME_ENDING, GRADIENT, NO_PRESETS, SEARCH
from glora_jax.runs.stages.many_starts import FullFineTuning, loss_of_finetuning
from glora_jax.runs.stages.structures import head_stage, loss_of, named_genome, shape_of_folds
from glora_jax.runs.stages.training import STEPS_PER_DISPATCH, TrainingStage, learner_of
from glora_jax.search.allocate import passes_of
from glora_jax.search.fold_gradients import Settings
from glora_jax.search.scoring import make_predictor, make_scorer
from glora_jax.training.batches import MOST_STREAMED_STEPS, steps_per_call
from glora_jax.training.loop import LossFn, initial_state, make_steps
from glora_jax.training.recipe import prepare

Shape = jax.ShapeDtypeStruct
KEY = jax.eval_shape(jax.random.key, 0)


class Program(NamedTuple):
  """A compiled function and the shapes that it is called with.

  Attributes:
    name: key of `MAKERS`.
    function: what `jax.jit` returned.
    arguments: arrays' shapes, types and, on a mesh, places.
  """

  name: str
  function: Any
  arguments: tuple[Any, ...]

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


class Workload(NamedTuple):
  """How much a run's programs are given at once.

  Attributes:
    chunk: candidates side by side, on each device of the mesh's candidate axis.
    block: images of a candidate that are evaluated at a time, on all devices together.
    side_by_side: trainings side by side.
    subnet: what is trained alone: a preset's name, a genome's file, or 'gradient' or 'search',
      whose subnet is not known yet and counts as the largest. Of trainings side by side also
      'finetuning', of the whole base, and None, for supernets.
    section: section of the config that it is trained by; None for that of `recipe_alone`.
  """

  chunk: int = 8
  block: int = 256
  side_by_side: int = 2
  subnet: str | None = 'lora'
  section: str | None = None


def shape_of_run(
  settings: RunSettings,
  model: nn.Module,
  image_size: int,
  counts: Mapping[str, int],
  normalization: Any = 'inception',
  mesh: jax.sharding.Mesh | None = None,
) -> Run:
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
  adapted, beside = adapt_spaces(settings, model, image_size, mesh)
  images = Shape((1, image_size, image_size, 3), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), images)['params']
  variables = shapes_before_training(adapted, params, settings, mesh)
  metadata = {'image_size': image_size, 'normalization': normalization}
  no_task: Any = None
  run = Run(settings, '', no_task, adapted, variables, metadata, {}, never, mesh=mesh)
  if beside is not None:
    run.beside = Place(beside, shapes_before_training(beside, params, settings, mesh))
  for split, number in counts.items():
    run.splits[split] = Split(_images(run, number), Shape((number,), jnp.int32))
  return run


def on_mesh(run: Run, mesh: jax.sharding.Mesh | None) -> Run:
  """A run of which only shapes are known, on other devices."""
  adapted = on_devices(run.adapted, run.settings, mesh)
  variables = placed(adapted, run.variables, run.settings, mesh)
  run = dataclasses.replace(run, adapted=adapted, variables=variables, mesh=mesh)
  if run.beside is not None:
    adapted, variables = run.beside
    adapted = on_devices(adapted, run.settings, mesh)
    run.beside = Place(adapted, placed(adapted, variables, run.settings, mesh))
  return run


def program(name: str, run: Run, workload: Workload = Workload()) -> Program:
  """A program of a run.

  Args:
    name: key of `MAKERS`.
    run: the run; of its variables shapes are enough.
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
  return Program(name, *MAKERS[name](run, workload))


_Made = tuple[Any, tuple[Any, ...]]


def _training(run: Run, stage: TrainingStage, place: Place) -> _Made:
  return training_of(run, stage, place.variables, *learner_of(run, stage))


def training_of(
  run: Run, stage: TrainingStage, variables: Any, learner: Adapted, loss_fn: LossFn
) -> tuple[Any, tuple[Any, ...]]:
  """The steps of a training stage, as `loop.fit` compiles them.

  Args:
    run: the run.
    stage: what to train on, and how.
    variables: shapes of the variables to start from.
    learner: what is trained.
    loss_fn: its loss.

  Returns:
    (compiled function, what it is called with).
  """
  number = _number(run, stage.split)
  trainable, frozen = jax.eval_shape(learner.split, variables)
  if run.mesh is not None:
    trainable, frozen = placed_halves(trainable, frozen, run.settings, run.mesh)
  loss_fn, optimizer = prepare(loss_fn, stage.recipe, trainable, number)
  state = _replicate(run, jax.eval_shape(optimizer.init, trainable))
  if stage.head is None:
    data = _data(run, stage, number)
  else:
    body = stage.head.body_of(variables)
    images = _images(run, stage.head.batch_size)
    features = jax.eval_shape(stage.head.features_program(), body, images)
    data = _resident(run, stage, Shape((number, *features.shape[1:]), features.dtype), number)
  steps = make_steps(loss_fn, optimizer, stage.recipe.accumulate, run.mesh)
  return steps, (trainable, state, 0, frozen, *data, KEY, None)


def _replicate(run: Run, shapes: Any) -> Any:
  return meshes.replicate(run.mesh, shapes)


def _images(run: Run, *axes: int) -> Shape:
  size = run.metadata['image_size']
  return Shape((*axes, size, size, 3), jnp.uint8)


def _data(run: Run, stage: TrainingStage, number: int) -> tuple[Any, Any, Any]:
  """Images, labels and indices of a dispatch: a `batches.Block`."""
  if run.is_resident(number):
    return _resident(run, stage, _images(run, number), number)
  size = stage.recipe.batch_size
  steps = min(STEPS_PER_DISPATCH, MOST_STREAMED_STEPS)
  steps = steps_per_call(stage.recipe.steps_per_epoch(number), steps)
  batches: Any = _images(run, steps, size), Shape((steps, size), jnp.int32)
  if run.mesh is not None:
    sharding = meshes.dealt(run.mesh, axis=1)
    batches = tuple(meshes.put(leaf, sharding) for leaf in batches)
  return *batches, None


def _resident(
  run: Run, stage: TrainingStage, images: Shape, number: int
) -> tuple[Shape, Shape, Shape]:
  per_epoch = stage.recipe.steps_per_epoch(number)
  most = STEPS_PER_DISPATCH if stage.head is None else per_epoch
  indices = Shape((steps_per_call(per_epoch, most), stage.recipe.batch_size), jnp.int32)
  return *_held(run, images, number), _replicate(run, indices)


def _supernet(run: Run, workload: Workload) -> _Made:
  stage = TrainingStage('supernet', run.settings.supernet, Stream.SUPERNET, run.train_split)
  return _training(run, stage, run.place(SEARCH))


def _stage_alone(run: Run, workload: Workload) -> tuple[TrainingStage, Place]:
  """The training of `Workload.subnet`, and the space that it is in."""
  place = run.place(workload.subnet or SEARCH)
  genome = _genome(run, place, workload)
  recipe = getattr(run.settings, workload.section or run.settings.section_alone)
  key, split = Stream.BASELINE, run.train_split
  return TrainingStage('subnet', recipe, key, split, genome, adapted=place.adapted), place


def _genome(run: Run, place: Place, workload: Workload) -> np.ndarray | None:
  """What `Workload.subnet` names; None for a supernet."""
  name, spec = workload.subnet, place.adapted.spec
  if name is None:
    return None
  if name.endswith(GENOME_ENDING):
    return named_genome(spec, name, check_budget(run.settings.budget))
  return preset(spec, 'full' if name in NO_PRESETS else name)


def _subnet(run: Run, workload: Workload) -> _Made:
  return _training(run, *_stage_alone(run, workload))


def _train_many(run: Run, workload: Workload) -> _Made:
  """The same training several times side by side, as `loop.fit` compiles it."""
  stage, place = _stage_alone(run, workload)
  if workload.subnet == 'finetuning':
    learner = FullFineTuning.of(run.adapted)
    loss_fn = loss_of_finetuning(run, learner)
  else:
    learner, loss_fn = learner_of(run, stage)
  number, runs = _number(run, stage.split), workload.side_by_side
  trainable, frozen = jax.eval_shape(learner.split, place.variables)
  loss_fn, optimizer = prepare(loss_fn, stage.recipe, trainable, number)
  many = jax.tree.map(lambda leaf: Shape((runs, *leaf.shape), leaf.dtype), trainable)
  state = jax.eval_shape(lambda trainable: initial_state(trainable, optimizer, runs), many)
  images, labels, indices = _resident(run, stage, _images(run, number), number)
  indices = Shape((len(indices), runs, stage.recipe.batch_size), jnp.int32)
  keys, rates = Shape((runs,), KEY.dtype), Shape((runs,), jnp.float32)
  steps = make_steps(loss_fn, optimizer, stage.recipe.accumulate)
  return steps, (*state, frozen, images, labels, indices, keys, rates)


def _number(run: Run, split: str) -> int:
  return len(run.data(split).labels)


def _scored(run: Run, split: str) -> tuple[Shape, Shape]:
  """Images and labels that are scored at once: a split, or a block of a streamed one."""
  number = _number(run, split)
  if run.is_resident(number):
    return _held(run, _images(run, number), number)
  number = min(number, STREAMED_BLOCK)
  return _replicate(run, (_images(run, number), Shape((number,), jnp.int32)))


def _held(run: Run, images: Shape, number: int) -> tuple[Shape, Shape]:
  """So many images that stay on the devices, and their labels."""
  return meshes.hold(run.mesh, (images, Shape((number,), jnp.int32)))


def _genomes(run: Run, *axes: int) -> Shape:
  return _replicate(run, Shape((*axes, len(run.adapted.spec), 5), jnp.int8))


def _scoring(run: Run, workload: Workload) -> _Made:
  options = {'chunk': workload.chunk, 'block': workload.block}
  scorer: Any = make_scorer(run.adapted, run.preprocess, mesh=run.mesh, **options)
  genomes = _genomes(run, run.settings.search.population)
  return scorer.compiled, (run.variables, genomes, *_scored(run, run.search_split))


def _allocation(run: Run, workload: Workload) -> _Made:
  place, settings = run.place(GRADIENT), run.settings.allocation
  devices = 1 if run.mesh is None else run.mesh.size
  number, batch = _number(run, run.train_split), run.settings.recipe_alone.batch_size
  _, size = shape_of_folds(number, settings.folds, batch, devices)
  shapes = meshes.deal(run.mesh, (_images(run, size), Shape((size,), jnp.int32)))
  measured = Settings(settings.folds, settings.max_rank, run.mesh)
  return passes_of(place.adapted, place.variables, loss_of(run), (), measured).program(shapes)


def _fold(run: Run, workload: Workload) -> _Made:
  return jax.jit(run.adapted.fold), (run.variables, _genomes(run))


def _features(run: Run, workload: Workload) -> _Made:
  """The frozen body, once for every image, before a head is trained alone."""
  place = run.place(GRADIENT)
  stage = head_stage(run, place)
  assert stage.head is not None
  batch = meshes.deal(run.mesh, _images(run, stage.head.batch_size))
  return stage.head.features_program(run.mesh), (stage.head.body_of(place.variables), batch)


def _head(run: Run, workload: Workload) -> _Made:
  place = run.place(GRADIENT)
  return _training(run, head_stage(run, place), place)


def _evaluation(run: Run, workload: Workload) -> _Made:
  predictor = make_predictor(run.adapted, run.preprocess, block=workload.block, mesh=run.mesh)
  images, _ = _scored(run, 'test')
  return predictor, (run.variables, _genomes(run), images)


MAKERS: Mapping[str, Callable[[Run, Workload], _Made]] = {
  'supernet': _supernet,
  'subnet': _subnet,
  'train_many': _train_many,
  'scoring': _scoring,
  'allocation': _allocation,
  'fold': _fold,
  'features': _features,
  'head': _head,
  'evaluation': _evaluation,
}
