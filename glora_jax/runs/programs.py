"""The programs that a run compiles, with the shapes of their arguments; none is run.

Each is the function that its stage calls. Tests lower them for accelerators that are not here,
`benchmarks.tpu_programs` compiles them for slices, and `plan` asks the compiler what they take.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from glora_jax import mesh as meshes
from glora_jax.method.adapted import Adapted
from glora_jax.runs.backbone import (
  Model,
  adapt_spaces,
  placed_halves,
  shapes_before_training,
)
from glora_jax.runs.config import RunSettings
from glora_jax.runs.context import STREAMED_BLOCK, Context
from glora_jax.runs.sections import GRADIENT, NO_PRESETS, SEARCH
from glora_jax.runs.stage import Workload
from glora_jax.runs.stages.allocation import (
  gradient_loss,
  head_recipe,
  shapes_of_batch,
)
from glora_jax.runs.stages.training import (
  MOST_STEPS,
  FullFineTuning,
  HeadOnFeatures,
  loss_of,
)
from glora_jax.search.allocate import pass_of
from glora_jax.search.scoring import make_predictor, make_scorer
from glora_jax.training.batches import MOST_STREAMED_STEPS, steps_per_call
from glora_jax.training.loop import initial_state, make_steps
from glora_jax.training.recipe import Recipe

Shape = jax.ShapeDtypeStruct
KEY = jax.eval_shape(jax.random.key, 0)
_MOVES = frozenset(
  """
  broadcast_in_dim concatenate convert_element_type copy copy_p dynamic_slice dynamic_update_slice
  expand_dims gather iota pad pvary reduce_precision reshape rev select_n sharding_constraint slice
  split squeeze stop_gradient transpose
  """.split()  # noqa: SIM905, more readable than a list
)


class Operations(NamedTuple):
  """Floating-point operations of a program.

  Attributes:
    products: those of matrix products and convolutions.
    others: all others, one for each number that they produce or, if they reduce, read.
  """

  products: int = 0
  others: int = 0


def count(jaxpr: Jaxpr | ClosedJaxpr) -> Operations:
  """The operations of a jaxpr and of all that it calls.

  A loop of unknown length counts once, a conditional as its most expensive branch; moving data is
  free.

  Example:
    >>> import jax
    >>> def power(x):
    ...   return jax.lax.fori_loop(0, 10, lambda _, y: x @ y, x)
    >>> count(jax.make_jaxpr(power)(jnp.ones((4, 4)))).products
    1280
  """
  products = others = 0
  for equation in jaxpr.eqns:
    found = [count(called) for called in _called_by(equation)] or [_own(equation)]
    name, times = equation.primitive.name, 1
    if name == 'cond':
      found = [max(found, key=sum)]
    elif name == 'scan':
      times = equation.params['length']
    elif name == 'shard_map':
      times = equation.params['mesh'].size
    products += times * sum(each.products for each in found)
    others += times * sum(each.others for each in found)
  return Operations(products, others)


def _called_by(equation: JaxprEqn) -> Iterator[Jaxpr]:
  """The jaxprs that an equation calls, without those of unused derivatives."""
  for name, value in equation.params.items():
    if name in ('fwd_jaxpr_thunk', 'bwd', 'jvp_jaxpr_fun'):
      continue
    for item in value if isinstance(value, tuple | list) else (value,):
      if isinstance(item, ClosedJaxpr):
        yield item.jaxpr
      elif isinstance(item, Jaxpr):
        yield item


def _own(equation: JaxprEqn) -> Operations:
  """The operations of an equation that calls no jaxpr."""
  result, name = equation.outvars[0].aval, equation.primitive.name
  if name == 'dot_general':
    (contracted, _), _ = equation.params['dimension_numbers']
    shape = getattr(equation.invars[0].aval, 'shape', ())
    return Operations(products=2 * _size(result) * math.prod(shape[axis] for axis in contracted))
  if name == 'conv_general_dilated':
    kernel: Any = equation.invars[1].aval
    outputs = kernel.shape[equation.params['dimension_numbers'].rhs_spec[0]]
    return Operations(products=2 * _size(result) * (_size(kernel) // outputs))
  is_float = jnp.issubdtype(getattr(result, 'dtype', jnp.int32), jnp.inexact)
  if name in _MOVES or not is_float:
    return Operations()
  sizes = [_size(value.aval) for value in (*equation.outvars, *equation.invars)]
  return Operations(others=max(sizes) if name.startswith('reduce') else _size(result))


def _size(aval: Any) -> int:
  return math.prod(getattr(aval, 'shape', ()))


class Program(NamedTuple):
  """A compiled function and the shapes that it is called with.

  Attributes:
    function: the result of `jax.jit`.
    arguments: shapes and types of arrays and, on a mesh, their shardings.
    images: images that a call goes through, for each candidate.
  """

  function: Any
  arguments: tuple[Any, ...]
  images: int

  @property
  def operations(self) -> float:
    """Floating-point operations per image, on all devices together."""
    return sum(count(self.function.trace(*self.arguments).jaxpr)) / self.images

  def on(self, device: jax.Device) -> Program:
    """The program for one device, which need not exist here."""
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
  mesh: jax.sharding.Mesh | None = None,
) -> Context:
  """A run with shapes alone: a model without weights, no task, no workdir.

  Args:
    settings: the config.
    model: the backbone, with a head for the task; its `dtype` and `remat` are those of the run.
    image_size: side of its images.
    counts: number of images by split: 'train', 'val', 'test', and 'train+val' if it is used.
    mesh: devices, possibly of a slice that does not exist here; None for one device.

  Returns:
    A run for `MAKERS`, whose variables are `jax.ShapeDtypeStruct`.

  Example:
    >>> from glora_jax.models.vit import ViT
    >>> model = ViT(10, patch_size=4, width=16, depth=2, num_heads=2)
    >>> counts = {'train': 128, 'val': 64, 'test': 64}
    >>> run = shape_of_run(RunSettings(), model, 8, counts)
    >>> fold = MAKERS['fold'](run, Workload())
    >>> fold.arguments[1]
    ShapeDtypeStruct(shape=(8, 5), dtype=int8)
  """
  images = Shape((1, image_size, image_size, 3), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), images)['params']
  own, other = adapt_spaces(settings, model, image_size, mesh)
  variables = shapes_before_training(own, params, settings, mesh)
  beside = None
  if other is not None:
    beside = Model(other, shapes_before_training(other, params, settings, mesh))
  metadata = {'image_size': image_size, 'normalization': 'inception'}
  no_task: Any = None
  return Context(
    settings, '', no_task, own, variables, metadata, counts=counts, beside=beside, mesh=mesh
  )


def training_of(
  context: Context,
  learner: Adapted,
  recipe: Recipe,
  variables: Any,
  runs: int | None = None,
) -> Program:
  """The steps of a training, as `loop.fit` compiles them.

  Args:
    context: the context.
    learner: the model to train.
    recipe: how to train it.
    variables: shapes of the variables to start from.
    runs: number of trainings side by side, on one device; None for a single one.
  """
  number, mesh = context.counts[context.train_split], context.mesh
  trainable, frozen = jax.eval_shape(learner.split, variables)
  if mesh is not None:
    trainable, frozen = placed_halves(trainable, frozen, context.settings, mesh)
  if runs is not None:
    trainable = jax.tree.map(lambda leaf: Shape((runs, *leaf.shape), leaf.dtype), trainable)
  loss_fn, optimizer = loss_of(context, learner), recipe.optimizer(number)
  start = jax.eval_shape(lambda trainable: initial_state(trainable, optimizer, runs), trainable)
  steps = make_steps(loss_fn, optimizer, recipe.accumulate, mesh, meshes.are_whole(frozen))
  images, labels, indices = data = _data(context, learner, recipe, number, variables)
  if runs is None:
    state, given = (meshes.replicate(mesh, start.opt_state), 0), (KEY, None)
  else:
    indices = Shape((len(indices), runs, recipe.batch_size), jnp.int32)
    data = images, labels, indices
    state = start.opt_state, start.step
    given = Shape((runs,), KEY.dtype), Shape((runs,), jnp.float32)
  seen = math.prod(images.shape[:2] if indices is None else indices.shape)
  return Program(steps, (trainable, *state, frozen, *data, *given), seen)


def _images(context: Context, *axes: int) -> Shape:
  size = context.metadata['image_size']
  return Shape((*axes, size, size, 3), jnp.uint8)


def _data(
  context: Context, learner: Adapted, recipe: Recipe, number: int, variables: Any
) -> tuple[Any, Any, Any]:
  """Images (or features, for a head), labels and indices of a dispatch: a `batches.Block`."""
  images, most = _images(context, number), MOST_STEPS
  per_epoch = recipe.steps_per_epoch(number)
  if isinstance(learner, HeadOnFeatures):
    batch = _images(context, recipe.batch_size // recipe.accumulate)
    features = jax.eval_shape(learner.features_program(context.preprocess, None), variables, batch)
    images, most = Shape((number, *features.shape[1:]), features.dtype), per_epoch
  elif not context.is_resident(number):
    steps = steps_per_call(per_epoch, min(MOST_STEPS, MOST_STREAMED_STEPS))
    batches: Any = (
      _images(context, steps, recipe.batch_size),
      Shape((steps, recipe.batch_size), jnp.int32),
    )
    if context.mesh is not None:
      sharding = meshes.split_over(context.mesh, axis=1)
      batches = tuple(meshes.put(leaf, sharding) for leaf in batches)
    return *batches, None
  indices = Shape((steps_per_call(per_epoch, most), recipe.batch_size), jnp.int32)
  held = meshes.hold(context.mesh, (images, Shape((number,), jnp.int32)))
  return *held, meshes.replicate(context.mesh, indices)


def _learner(context: Context, workload: Workload) -> tuple[Adapted, Recipe, Any]:
  """Model and recipe of a workload, and shapes of the variables that it starts from."""
  name = workload.structure
  learner, variables, *_ = context.place(name or SEARCH)
  if name == 'finetuning':
    learner = FullFineTuning.of(context.adapted)
  else:
    learner = learner.fix('full' if name in NO_PRESETS else name)
  return learner, workload.recipe or context.settings.training, variables


def _supernet(context: Context, workload: Workload) -> Program:
  return _alone(context, workload._replace(structure=None))


def _alone(context: Context, workload: Workload) -> Program:
  return training_of(context, *_learner(context, workload))


def _train_many(context: Context, workload: Workload) -> Program:
  """The same training several times side by side."""
  return training_of(context, *_learner(context, workload), workload.side_by_side)


def _scored(context: Context, split: str) -> tuple[Shape, Shape]:
  """Images and labels that are scored at once: a split, or a block of a streamed one."""
  number, place = context.counts[split], meshes.hold
  if not context.is_resident(number):
    number, place = min(number, STREAMED_BLOCK), meshes.replicate
  return place(context.mesh, (_images(context, number), Shape((number,), jnp.int32)))


def _genomes(context: Context, *axes: int) -> Shape:
  return meshes.replicate(context.mesh, Shape((*axes, len(context.adapted.spec), 5), jnp.int8))


def _scoring(context: Context, workload: Workload) -> Program:
  options = {'chunk': workload.chunk, 'block': workload.block}
  scorer: Any = make_scorer(context.adapted, context.preprocess, mesh=context.mesh, **options)
  population = context.settings.search.population
  images, labels = _scored(context, context.search_split)
  arguments = context.variables, _genomes(context, population), images, labels
  return Program(scorer, arguments, population * len(images))


def _allocation(context: Context, workload: Workload) -> Program:
  place, batch = context.place(GRADIENT), meshes.split_rows(context.mesh, shapes_of_batch(context))
  parts, loss = context.settings.allocation.max_rank, gradient_loss(context)
  key = jax.random.key(0)  # probes are drawn from it
  gradient = pass_of(place.adapted, place.variables, loss, parts, key, context.mesh)
  return Program(*gradient.program(batch), len(batch[1]))


def _fold(context: Context, workload: Workload) -> Program:
  return Program(jax.jit(context.adapted.fold), (context.variables, _genomes(context)), 1)


def _head_alone(context: Context) -> tuple[HeadOnFeatures, Recipe, Any]:
  """The head that is warmed before a gradient is taken, its recipe and its first variables."""
  place = context.place(GRADIENT)
  return HeadOnFeatures.of(place.adapted), head_recipe(context.settings), place.variables


def _features(context: Context, workload: Workload) -> Program:
  """The frozen body, applied once to every image before the head is trained alone."""
  learner, recipe, variables = _head_alone(context)
  size = recipe.batch_size // recipe.accumulate
  batch = meshes.split_rows(context.mesh, _images(context, size))
  program = learner.features_program(context.preprocess, context.mesh)
  return Program(program, (variables, batch), size)


def _head(context: Context, workload: Workload) -> Program:
  return training_of(context, *_head_alone(context))


def _evaluation(context: Context, workload: Workload) -> Program:
  predictor = make_predictor(
    context.adapted, context.preprocess, block=workload.block, mesh=context.mesh
  )
  images, _ = _scored(context, 'test')
  return Program(predictor, (context.variables, _genomes(context), images), len(images))


MAKERS: Mapping[str, Callable[[Context, Workload], Program]] = {
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
