"""Allocation in a run: the warm head, the batches of the gradient, the prior, and the file.

The gradient is taken with a warm head on the training images as they are stored: no augmentation,
no validation images. A noisy gradient may borrow from a prior. `allocate_transfer` needs no
gradient: it uses other tasks' scores of the backbone.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Callable
from typing import Any

import flax
import jax
import numpy as np

from glora_jax import mesh as meshes
from glora_jax.files import damaged
from glora_jax.method.draws import check_budget
from glora_jax.method.genomes import check_genome, genome_to_json
from glora_jax.search import transfer
from glora_jax.search.allocate import Prior, allocate
from glora_jax.search.allocation import Allocation
from glora_jax.search.choice import choose, require_something, trace_curve
from glora_jax.search.sketch import Loss
from glora_jax.search.transfer import Transfer
from glora_jax.search.unit_scores import UnitScores
from glora_jax.training import batches
from glora_jax.training.fit import linear_probe
from glora_jax.training.losses import classification, cross_entropy
from glora_jax.training.recipe import Recipe
from glora_jax.tree import on_host
from glora_jax.vision.data.pipeline import Split, in_rows
from glora_jax.vision.data.shifts import shifted
from glora_jax.vision.files import Array, check_arrays, read_arrays, write_arrays, write_json
from glora_jax.vision.runs.backbone import Model, Stream
from glora_jax.vision.runs.config import RunSettings
from glora_jax.vision.runs.context import Context
from glora_jax.vision.runs.sections import GRADIENT, TRANSFER
from glora_jax.vision.runs.stages.training import HeadOnFeatures, Training, train

HEAD_RATE = 2.0  # learning rate of a head alone, over that of the training that follows
ALLOCATION = 'allocation.npz'
_NUMBERS = {'budget': 'i', 'proposed': 'b', 'borrowed': 'f'}  # of an allocation
MOST_IMAGES = 4096  # for shifts; with more images a task's own gradient is clear
_FEWEST_BATCHES = 8  # to tell how much of a gradient is noise, if there are enough images

log = logging.getLogger(__name__)


def check_gradient(context: Context) -> None:
  """Raises ValueError or FileNotFoundError if the budget buys nothing, or the prior is missing."""
  settings = context.settings
  require_something(context.place(GRADIENT).adapted.spec, settings.budget)
  if settings.allocation.prior == 'transfer':
    transfer_of(context)


def head_recipe(settings: RunSettings) -> Recipe:
  """How a head is warmed before a structure is allocated from a gradient.

  The head alone gets twice the learning rate (the tuned rates of BitFit and the linear probe are
  twice LoRA's, `configs/compare_rates.json`).
  """
  recipe, epochs = settings.training, settings.allocation.head_epochs
  return dataclasses.replace(
    recipe,
    epochs=epochs,
    warmup_epochs=min(1, epochs - 1),
    learning_rate=HEAD_RATE * recipe.learning_rate,
  )


def train_head(context: Context, place: Model) -> Model:
  """The model with a head that was trained alone.

  The body sees the images as the gradient does: as they are stored, and whole.
  """
  learner, recipe = HeadOnFeatures.of(place.adapted), head_recipe(context.settings)
  starts, keys = [place.variables], [context.key(Stream.HEAD)]
  training = Training('head', learner, recipe, context.train_split, starts, keys)
  [trained] = train(context, training)
  return Model(place.adapted, {**place.variables, 'params': trained.variables['params']})


def equal_batches(
  key: jax.Array, num_examples: int, batch_size: int, devices: int = 1
) -> np.ndarray:
  """Random batches of one size: no image occurs twice, and less than a batch is left out.

  Args:
    key: random key of the order.
    num_examples: number of images, one for each device at least.
    batch_size: most images in a batch; if there are enough images, there are at least 8 batches.
    devices: number of devices that a batch is split over.

  Returns:
    Indices, int32 [batches, batch].

  Example:
    >>> equal_batches(jax.random.key(0), num_examples=100, batch_size=16).shape
    (8, 12)
  """
  most = min(batch_size, num_examples // _FEWEST_BATCHES)
  size = max(1, most // devices) * devices
  # On the host: compiling a permutation takes longer than reading all batches.
  rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
  order = rng.permutation(num_examples).astype(np.int32)
  return order[: num_examples // size * size].reshape(-1, size)


def gradient_loss(context: Context) -> Loss:
  """The loss whose gradient is taken."""

  def loss(forward, batch, key):
    del key
    images, labels = batch
    return cross_entropy(forward(context.preprocess(images)), labels)[0]

  return loss


def read_off_gradient(
  context: Context,
  place: Model,
  *,
  budget: int | None,
  key: jax.Array,
  split: Split | None = None,
  prior: Prior | None = None,
) -> Allocation:
  """Allocates a structure from the gradient of the training images, or of others.

  Args:
    context: the context.
    place: the model and its variables, with a warm head.
    budget: most trained parameters; None for the knee of the curve.
    key: random key of batches and directions.
    split: images and labels instead of the run's training images.
    prior: see `allocate`.

  Raises:
    ValueError: the budget is too small for any unit, or a loss is not finite.
  """
  batch_key, sketch_key = jax.random.split(key)
  images, labels = split or context.data(context.train_split)
  batch_size = context.settings.training.batch_size
  indices = equal_batches(batch_key, len(labels), batch_size, context.devices)
  return allocate(
    place.adapted,
    place.variables,
    gradient_loss(context),
    in_rows(images, labels, indices, context.mesh),
    budget=budget,
    key=sketch_key,
    max_rank=context.settings.allocation.max_rank,
    mesh=context.mesh,
    prior=prior,
    progress=meshes.primary(),
  )


def allocate_once(
  context: Context,
  place: Model,
  *,
  budget: int | None,
  key: jax.Array,
  folder: str,
  prior: Prior | None = None,
) -> Allocation:
  """`read_off_gradient`, or the result of an earlier call in a folder of the workdir.

  The folder has `allocation.npz`, with genome, starting values and scores, and a readable
  `genome.json`.
  """
  path = context.path(folder, ALLOCATION)
  if not os.path.exists(path):
    allocation = read_off_gradient(context, place, budget=budget, key=key, prior=prior)
    trainable, _ = place.adapted.split(allocation.variables)
    trainable = jax.tree.map(on_host, trainable)
    if meshes.primary():
      os.makedirs(context.path(folder), exist_ok=True)
      described = genome_to_json(place.adapted.spec, allocation.genome)
      write_json(context.path(folder, 'genome.json'), described, 'genome')
      write_arrays(path, to_arrays(allocation, trainable), 'allocation')
    meshes.barrier(f'{folder}/allocation')
  else:
    log.info('%s: read from %s', folder, path)
  arrays = read_arrays(path, 'allocation')
  try:
    return from_arrays(arrays, place)
  except ValueError as error:
    raise damaged(path, error) from error


def to_arrays(allocation: Allocation, trainable: Any) -> dict[str, np.ndarray]:
  """An allocation as arrays by name, with the trainable part of its variables."""
  content = {
    'genome': allocation.genome,
    **{name: getattr(allocation, name) for name in _NUMBERS},
    'signal': np.nan if allocation.signal is None else allocation.signal,
    'start': trainable,
    'scores': allocation.scores._asdict(),
  }
  flat: dict[str, Any] = flax.traverse_util.flatten_dict(content, sep='/')
  return {name: np.asarray(value) for name, value in flat.items()}


def from_arrays(arrays: dict[str, np.ndarray], place: Model) -> Allocation:
  """The inverse of `to_arrays`.

  Args:
    arrays: the arrays by name.
    place: the model, and variables with everything that is not in the arrays.

  Raises:
    ValueError: they are not an allocation for this model; the message is the reason.
  """
  adapted, spec = place.adapted, place.adapted.spec
  genome = arrays.get('genome', np.zeros(0, np.int8))
  check_genome(spec, genome)
  trainable, frozen = adapted.split(place.variables)
  layers, parts = (len(spec),), (len(spec), 'rank')
  expected = {
    'genome': Array('i', (len(spec), 5)),
    **{name: Array(kind) for name, kind in _NUMBERS.items()},
    'signal': Array('f', finite=False),
    'start': jax.tree.map(lambda start: Array('f', tuple(start.shape)), trainable),
    'scores': {
      name: Array('f', parts if name.endswith('lora') else layers) for name in UnitScores._fields
    },
  }
  flat: dict[str, Any] = flax.traverse_util.flatten_dict(expected, sep='/')
  check_arrays(arrays, flat)
  tree = flax.traverse_util.unflatten_dict(arrays, sep='/')
  scores = UnitScores(**tree['scores'])
  return Allocation(
    genome=genome,
    variables=adapted.join(jax.tree.map(jax.numpy.asarray, tree['start']), frozen),
    spec=spec,
    scores=scores,
    curve=trace_curve(spec, scores),
    signal=None if np.isnan(tree['signal']) else float(tree['signal']),
    **{name: tree[name].item() for name in _NUMBERS},
  )


def allocate_shifts(
  context: Context, place: Model, *, budget: int | None, key: jax.Array
) -> Allocation | None:
  """An allocation from shifted training images, with a head that tells the shifts apart.

  Which layers pay off depends mostly on the backbone. Any images can be asked which way they were
  shifted, and the gradient of that is clear when a hard task's gradient is noise.

  Args:
    context: the context.
    place: the model and its variables before any training.
    budget: budget of the structure, which does not change what a prior gives.
    key: random key.

  Returns:
    The allocation, which `glora_jax.allocate` takes as prior; None if the images are streamed.
  """
  images, labels = context.data(context.train_split)
  if isinstance(images, batches.Stream):
    log.info('The training images are streamed; the gradient is used without a prior.')
    return None
  head_key, shift_key, key = jax.random.split(key, 3)
  rng = np.random.default_rng(np.asarray(jax.random.key_data(shift_key)))
  most = max(MOST_IMAGES, context.settings.training.batch_size)
  chosen = np.sort(rng.permutation(len(labels))[:most])
  found = shifted(np.asarray(images)[chosen], rng, context.task.num_classes)
  split = Split(*meshes.hold(context.mesh, tuple(found)))
  learner, recipe = HeadOnFeatures.of(place.adapted), head_recipe(context.settings)
  size, mesh = recipe.batch_size // recipe.accumulate, context.mesh
  features = learner.features(place.variables, context.preprocess, *split, size, mesh)
  variables = linear_probe(
    learner,
    place.variables,
    classification(),
    (features, split.labels),
    recipe,
    key=head_key,
    mesh=mesh,
    progress=meshes.primary(),
  )
  warm = Model(place.adapted, variables)
  return read_off_gradient(context, warm, budget=budget, key=key, split=split)


def prior_of(
  context: Context, place: Model, **options: Any
) -> Callable[[], Allocation | Transfer | None] | None:
  """The prior for `allocate` that the config asks for; see `allocate_shifts` and `transfer_of`."""
  prior = context.settings.allocation.prior
  if prior is None:
    return None
  if prior == 'transfer':
    return functools.partial(transfer_of, context)
  return functools.partial(allocate_shifts, context, place, **options)


def transfer_of(context: Context) -> Transfer:
  """Other tasks' scores of the backbone, cut to the largest rank that is considered.

  Raises:
    FileNotFoundError: the file does not exist.
    ValueError: the file is damaged, or for another backbone.
  """
  spec = context.place(TRANSFER).adapted.spec
  path = context.settings.transfer
  assert path is not None
  found = transfer.read(path, spec)
  number = min(context.settings.allocation.max_rank, max(spec.layers[0].space.ranks))
  scores = [field if field.ndim == 1 else _cut(field, number) for field in found.scores]
  return found._replace(scores=UnitScores(*scores))


def _cut(scores: np.ndarray, number: int) -> np.ndarray:
  """Scores [layer, rank] with a number of ranks; unknown scores are zero."""
  return np.pad(scores, ((0, 0), (0, number)))[:, :number]


def allocate_transfer(context: Context, budget: float | None) -> Allocation:
  """The structure with the highest score within a budget, by other tasks' scores of the backbone.

  Raises:
    FileNotFoundError, ValueError: see `transfer_of`; the budget is too small for any unit.
  """
  number, (spec, scores, _) = check_budget(budget), transfer_of(context)
  assert number is not None
  genome, curve = choose(spec, scores, number), trace_curve(spec, scores)
  variables = context.place(TRANSFER).variables
  return Allocation(genome, variables, spec, scores, curve, number, proposed=False)
