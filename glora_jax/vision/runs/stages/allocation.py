"""Allocation in a run: the linear probe, the gradient, the prior, and the choice within a budget.

The gradient is computed after a linear probe, on the training images as they are stored: no
augmentation, no validation images. The scores of a noisy gradient may be mixed with a prior.
Neither probe nor gradient depends on the budget, so that runs with several budgets share both.
`allocate_transfer` needs no gradient: it uses scores from other tasks of the backbone.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from typing import Any

import flax
import jax
import numpy as np

from glora_jax import mesh as meshes
from glora_jax.files import read_tensors, reading, write_tensors
from glora_jax.method.genomes import count_params, largest_genome
from glora_jax.search import transfer
from glora_jax.search.allocate import Prior, allocate
from glora_jax.search.allocation import Allocation
from glora_jax.search.choice import choose, trace_curve
from glora_jax.search.transfer import Transfer
from glora_jax.search.unit_scores import UnitScores
from glora_jax.training.fit import linear_probe
from glora_jax.training.losses import classification
from glora_jax.training.recipe import Recipe
from glora_jax.tree import on_host
from glora_jax.vision.data.pipeline import Split, in_rows
from glora_jax.vision.data.shifts import shifted
from glora_jax.vision.files import Array, check_arrays
from glora_jax.vision.runs.backbone import Model, Stream
from glora_jax.vision.runs.context import Context, train_split_of
from glora_jax.vision.runs.settings import GRADIENT, TRANSFER, RunSettings
from glora_jax.vision.runs.stage import Stage
from glora_jax.vision.runs.stages.training import HeadOnFeatures, mix_of, train

_HEAD_RATE = 2.0  # learning rate of the linear probe, over that of the training that follows
ALLOCATION = 'allocation.safetensors'
MOST_IMAGES = 4096  # for shifts; with more images the gradient of the task has little noise
_FEWEST_BATCHES = 8  # to estimate the noise of a gradient, if there are enough images

log = logging.getLogger(__name__)


def stages_of_gradient(settings: RunSettings) -> tuple[Stage, Stage]:
  """The stages that train a linear probe and score all units by the gradient after it."""
  reads = (
    'allocation.head_epochs',
    'allocation.head_rate',
    'training.accumulate',
    'training.batch_size',
    'training.label_smoothing',
    'training.max_grad_norm',
    'training.update_used_only',
    'training.weight_decay',
  )
  if settings.allocation.head_rate is None:
    reads = (*reads, 'training.learning_rate')
  split = train_split_of(settings)
  head = Stage('head', _train_head, reads=reads, splits=(split,), images=(), shared=True)
  gradient = Stage(
    'gradient',
    _score,
    reads=(*reads, 'allocation.'),
    after=('head',),
    check=_check_prior,
    images=(split,),
    shared=True,
  )
  return head, gradient


def head_recipe(settings: RunSettings) -> Recipe:
  """The recipe of the linear probe before the gradient.

  By default it has twice the learning rate (the tuned rates of BitFit and the linear probe are
  twice LoRA's, `configs/compare_rates.json`).
  """
  training, allocation = settings.training, settings.allocation
  rate = allocation.head_rate
  return Recipe(
    epochs=allocation.head_epochs,
    batch_size=training.batch_size,
    learning_rate=_HEAD_RATE * training.learning_rate if rate is None else rate,
    initial_learning_rate=1e-6,
    final_learning_rate=1e-5,
    warmup=min(1, allocation.head_epochs - 1) / allocation.head_epochs,
    weight_decay=training.weight_decay,
    update_used_only=training.update_used_only,
    accumulate=training.accumulate,
    max_grad_norm=training.max_grad_norm,
  )


def _train_head(context: Context) -> Model:
  """The gradient's space, after a linear probe.

  The body sees the same images as the gradient: as they are stored, without augmentation.
  """
  place, recipe = context.place(GRADIENT), head_recipe(context.settings)
  head, key = place._replace(adapted=HeadOnFeatures.of(place.adapted)), context.key(Stream.HEAD)
  params = train(context, 'head', head, recipe, context.train_split, key).variables['params']
  return Model(place.adapted, {**place.variables, 'params': params})


def _check_prior(context: Context) -> None:
  """Raises ValueError or FileNotFoundError if the prior of the config is missing."""
  if context.settings.allocation.prior == 'transfer':
    transfer_of(context)


def equal_batches(
  key: jax.Array, num_examples: int, batch_size: int, devices: int = 1
) -> np.ndarray:
  """Random batches of one size: no image occurs twice, and fewer than a batch are left out.

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
  # On the host: compiling a permutation is slower than reading all batches.
  rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
  order = rng.permutation(num_examples).astype(np.int32)
  return order[: num_examples // size * size].reshape(-1, size)


def _score(context: Context, warm: Model) -> Allocation:
  """All units' scores and starting values, with the structure at the knee of the curve.

  They are computed from the gradient and written, unless an earlier start has written them.

  Args:
    context: the context.
    warm: the model and its variables, after the linear probe.

  Raises:
    ValueError: a loss is not finite, or the file is damaged.
  """
  path = context.path('gradient', ALLOCATION)
  if meshes.on_any(not os.path.exists(path)):
    priors = {
      None: None,
      'shifts': functools.partial(allocate_shifts, context),
      'transfer': functools.partial(transfer_of, context),
    }
    split, key = context.images.split(context.train_split), context.key(Stream.STRUCTURE)
    prior = priors[context.settings.allocation.prior]
    allocation = _read_off_gradient(context, warm, split, key, prior)
    trainable, _ = warm.adapted.split(allocation.variables)
    content = {
      'borrowed': allocation.borrowed,
      'signal': np.nan if allocation.signal is None else allocation.signal,
      'start': jax.tree.map(on_host, trainable),
      'scores': allocation.scores._asdict(),
    }
    arrays: dict[str, Any] = flax.traverse_util.flatten_dict(content, sep='/')
    if meshes.primary():
      write_tensors(path, arrays, 'allocation', {})
    meshes.barrier('gradient')  # the primary process has written
  return _read_scores(path, warm)


def _read_scores(path: str, warm: Model) -> Allocation:
  """The scores that `_score` wrote, with the structure at the knee of the curve.

  Raises:
    ValueError: the file is damaged, or of a later version.
  """
  spec = warm.adapted.spec
  arrays, _ = read_tensors(path, 'allocation')
  trainable, frozen = warm.adapted.split(warm.variables)
  layers, parts = (len(spec),), (len(spec), 'rank')
  expected = {
    'borrowed': Array('f'),
    'signal': Array('f', finite=False),
    'start': jax.tree.map(lambda start: Array('f', tuple(start.shape)), trainable),
    'scores': {
      name: Array('f', parts if name.endswith('lora') else layers) for name in UnitScores._fields
    },
  }
  flat: dict[str, Any] = flax.traverse_util.flatten_dict(expected, sep='/')
  with reading(path):
    check_arrays(arrays, flat)
    content = flax.traverse_util.unflatten_dict(arrays, sep='/')
    scores = UnitScores(**content['scores'])
    curve = trace_curve(spec, scores)
    knee = int(curve.params[curve.knee])
    return Allocation(
      genome=choose(spec, scores, knee),
      variables=warm.adapted.join(jax.tree.map(jax.numpy.asarray, content['start']), frozen),
      spec=spec,
      scores=scores,
      curve=curve,
      budget=knee,
      proposed=True,
      signal=None if np.isnan(content['signal']) else float(content['signal']),
      borrowed=content['borrowed'].item(),
    )


def _read_off_gradient(
  context: Context, place: Model, split: Split, key: jax.Array, prior: Prior | None = None
) -> Allocation:
  """The allocation from the gradient of some images, for all budgets.

  Images are weighed even with data.balance='sample': each is seen once, and the expected gradient
  is that of drawing all classes equally often.
  """
  batch_key, sketch_key = jax.random.split(key)
  batch_size, spec = context.settings.training.batch_size, place.adapted.spec
  mix = mix_of(context, split.labels, weighed=('sample', 'loss'))
  indices = equal_batches(batch_key, len(split.labels), batch_size, context.devices)
  return allocate(
    place.adapted,
    place.variables,
    classification(context.preprocess, mix=mix),
    in_rows(split, indices, context.mesh),
    budget=count_params(spec, largest_genome(spec)),  # `choose_within` chooses a part of it
    key=sketch_key,
    max_rank=context.settings.allocation.max_rank,
    mesh=context.mesh,
    prior=prior,
    progress=meshes.primary(),
  )


def choose_within(budget: int | None, found: Allocation) -> Allocation:
  """The structure with the highest score within a budget.

  Args:
    budget: most trained parameters; None for the knee of the curve.
    found: scores and starting values, at the knee.
  """
  if budget is None:
    return found
  genome = choose(found.spec, found.scores, budget)
  return dataclasses.replace(found, genome=genome, budget=budget, proposed=False)


def allocate_shifts(context: Context) -> Allocation:
  """An allocation from shifted training images, with a head that classifies the shifts.

  Which layers score high depends mostly on the backbone. The direction of a shift is a label that
  any images can have, and its gradient has little noise even if that of a hard task is mostly
  noise. All shifts are equally frequent, so their head is trained without `data.balance`. The
  shifted images, `MOST_IMAGES` or a batch, stay on the device even if those of the task are
  streamed.

  Returns:
    The allocation, a prior for `glora_jax.allocate`.
  """
  number = len(context.images.split(context.train_split).labels)
  place = context.place(GRADIENT)
  head_key, shift_key, key = jax.random.split(context.key(Stream.PRIOR), 3)
  rng = np.random.default_rng(np.asarray(jax.random.key_data(shift_key)))
  most = max(MOST_IMAGES, context.settings.training.batch_size)
  chosen = np.sort(rng.permutation(number)[:most])
  images = context.images.pixels(context.train_split, chosen)
  found = shifted(images, rng, context.task.num_classes)
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
  return _read_off_gradient(context, Model(place.adapted, variables), split, key)


def transfer_of(context: Context) -> Transfer:
  """Scores from other tasks of the backbone, up to the largest rank of the config.

  Raises:
    FileNotFoundError: the file does not exist.
    ValueError: the file is damaged, or for another backbone.
  """
  spec = context.place(TRANSFER).adapted.spec
  path = context.settings.transfer
  assert path is not None
  found = transfer.read(path, spec)
  number = min(context.settings.allocation.max_rank, max(spec.layers[0].space.ranks))
  scores = [
    # Of a LoRA [layer, rank]; ranks without a score get zero.
    field if field.ndim == 1 else np.pad(field, ((0, 0), (0, number)))[:, :number]
    for field in found.scores
  ]
  return found._replace(scores=UnitScores(*scores))


def allocate_transfer(context: Context) -> Allocation:
  """The structure with the highest score within the budget, with scores from other tasks.

  Raises:
    FileNotFoundError, ValueError: see `transfer_of`; the budget is too small for any unit.
  """
  budget = context.settings.budget
  assert budget is not None  # as the settings require
  spec, scores, _ = transfer_of(context)
  genome, curve = choose(spec, scores, budget), trace_curve(spec, scores)
  variables = context.place(TRANSFER).variables
  return Allocation(genome, variables, spec, scores, curve, budget, proposed=False)
