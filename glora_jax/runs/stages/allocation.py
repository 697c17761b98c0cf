"""The stage that reads a structure off one gradient, with a head that is warm.

Training images alone are used, as they are stored, without augmentation; no validation image.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import flax
import jax
import numpy as np

from glora_jax import mesh as meshes
from glora_jax.data.pipeline import Split
from glora_jax.files import damaged, read_arrays, write_arrays, write_json
from glora_jax.method.genomes import check_genome, genome_to_json
from glora_jax.records import Array, mismatch_of_arrays
from glora_jax.runs.run import Place, Run
from glora_jax.search.allocate import Prior, allocate, compile_ahead
from glora_jax.search.allocated import Allocation
from glora_jax.search.allocation import Values
from glora_jax.search.choice import Curve
from glora_jax.search.fold_gradients import Ahead, Loss
from glora_jax.training.batches import in_rows
from glora_jax.training.losses import cross_entropy

log = logging.getLogger(__name__)

ALLOCATION = 'allocation.npz'


def fold_indices(
  key: jax.Array, num_examples: int, folds: int, batch_size: int, devices: int = 1
) -> np.ndarray:
  """Equal batches for cross-fitted gradients; batch i is of fold i % folds.

  Args:
    key: random key of the order.
    num_examples: number of images.
    folds: number of folds.
    batch_size: most images in a batch.
    devices: number of devices that a batch is dealt to.

  Returns:
    Indices, int32 [batches, batch]; none occurs twice, and a few may not occur.

  Raises:
    ValueError: there are too few images.

  Example:
    >>> fold_indices(jax.random.key(0), num_examples=100, folds=4, batch_size=16).shape
    (8, 12)
  """
  rows, size = shape_of_folds(num_examples, folds, batch_size, devices)
  # On the host: a permutation compiles for longer than all batches are read.
  rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
  order = rng.permutation(num_examples).astype(np.int32)
  return order[: rows * size].reshape(rows, size)


def shape_of_folds(
  num_examples: int, folds: int, batch_size: int, devices: int = 1
) -> tuple[int, int]:
  """(batches, images in each) of `fold_indices`.

  Raises:
    ValueError: there are too few images.
  """
  per_fold = num_examples // folds
  if not per_fold:
    raise ValueError(
      f'allocation.folds={folds} is more than the {num_examples} training images; lower it.'
    )
  batches = -(-per_fold // batch_size)
  size = per_fold // batches // devices * devices
  if not size:
    raise ValueError(
      f'The {per_fold} images of a fold cannot be dealt to {devices} devices; lower '
      "allocation.folds, or use fewer devices (mesh.devices='one')."
    )
  return folds * batches, size


def indices_of_run(run: Run, key: jax.Array, split: Split | None = None) -> np.ndarray:
  """`fold_indices` of the run's training images, or of others.

  Raises:
    ValueError: there are too few of them.
  """
  num_images = len((split or run.data(run.train_split)).labels)
  devices = 1 if run.mesh is None else run.mesh.size
  folds, batch_size = run.settings.allocation.folds, run.settings.recipe_alone.batch_size
  return fold_indices(key, num_images, folds, batch_size, devices)


def loss_of(run: Run) -> Loss:
  """What the gradient is taken of."""

  def loss(forward, batch, key):
    del key
    images, labels = batch
    return cross_entropy(forward(run.preprocess(images)), labels)[0]

  return loss


def _batches_of(
  run: Run, key: jax.Array, split: Split | None = None
) -> Callable[[], Iterator[Any]]:
  """The batches that the gradient is taken of, again at every call."""
  indices = indices_of_run(run, key, split)
  return lambda: in_rows(*(split or run.data(run.train_split)), indices, run.mesh)


def start_compiling(run: Run, place: Place) -> Ahead | None:
  """Compiles in the background what `read_off_gradient` will run; None on a mesh.

  Args:
    run: the run.
    place: the model and its variables, with any head.
  """
  if run.mesh is not None:
    return None
  settings = run.settings.allocation
  batches = _batches_of(run, jax.random.key(0))
  sizes = {'folds': settings.folds, 'max_rank': settings.max_rank}
  return compile_ahead(place.adapted, place.variables, loss_of(run), batches, **sizes)


def read_off_gradient(
  run: Run,
  place: Place,
  *,
  budget: int | None,
  key: jax.Array,
  ahead: Ahead | None = None,
  split: Split | None = None,
  prior: Prior | None = None,
) -> Allocation:
  """The structure that the gradient of the training images asks for, or that of others.

  Args:
    run: the run.
    place: the model and its variables, with a warm head.
    budget: most trained parameters; None for the knee of the curve.
    key: random key of folds and directions.
    ahead: what `start_compiling` returned.
    split: images and labels in place of the run's for training.
    prior: see `allocate`.

  Raises:
    ValueError: the budget fits no unit, there are too few images, or a loss is not finite.
  """
  fold_key, sketch_key = jax.random.split(key)
  return allocate(
    place.adapted,
    place.variables,
    loss_of(run),
    _batches_of(run, fold_key, split),
    budget=budget,
    key=sketch_key,
    folds=run.settings.allocation.folds,
    max_rank=run.settings.allocation.max_rank,
    mesh=run.mesh,
    prior=prior,
    progress=meshes.primary(),
    ahead=ahead,
  )


def is_allocated(run: Run, folder: str) -> bool:
  """Whether an earlier `allocate_once` came to its end in a folder of the workdir."""
  return os.path.exists(run.path(folder, ALLOCATION))


def allocate_once(
  run: Run,
  place: Place,
  *,
  budget: int | None,
  key: jax.Array,
  folder: str,
  ahead: Ahead | None = None,
  prior: Prior | None = None,
) -> Allocation:
  """`read_off_gradient`, or what an earlier call left in a folder of the workdir.

  The folder has `allocation.npz`, with genome, starting values, values and curve, and
  `genome.json`, the genome for people.
  """
  path = run.path(folder, ALLOCATION)
  if not is_allocated(run, folder):
    options = {'budget': budget, 'key': key, 'ahead': ahead, 'prior': prior}
    allocation = read_off_gradient(run, place, **options)
    trainable, _ = place.adapted.fix(allocation.genome).split(allocation.variables)
    trainable = meshes.on_host(trainable)
    if meshes.primary():
      os.makedirs(run.path(folder), exist_ok=True)
      described = genome_to_json(place.adapted.spec, allocation.genome)
      write_json(run.path(folder, 'genome.json'), described, 'genome')
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
  """An allocation as arrays by name; of its variables the trainable ones of its subnet."""
  parts = {
    'start': flax.traverse_util.flatten_dict(trainable, sep='/'),
    'values': allocation.values._asdict(),
    'curve': allocation.curve._asdict(),
  }
  return {
    'genome': allocation.genome,
    'budget': np.array(allocation.budget),
    'proposed': np.array(allocation.proposed),
    'unjudged': np.array(allocation.unjudged),
    'borrowed': np.array(allocation.borrowed),
    'signal': np.array(np.nan if allocation.signal is None else allocation.signal),
    **{
      f'{part}/{name}': np.asarray(value)
      for part, content in parts.items()
      for name, value in content.items()
    },
  }


def from_arrays(arrays: dict[str, np.ndarray], place: Place) -> Allocation:
  """The inverse of `to_arrays`.

  Args:
    arrays: the arrays by name.
    place: the model, and the variables that hold all that is not in the arrays.

  Raises:
    ValueError: they are not the allocation of such a model; the reason.
  """
  _check_arrays(arrays, place)
  tree = flax.traverse_util.unflatten_dict(arrays, sep='/')
  adapted, genome = place.adapted, tree['genome']
  _, frozen = adapted.fix(genome).split(place.variables)
  curve = tree['curve']
  return Allocation(
    genome=genome,
    variables=adapted.join(jax.tree.map(jax.numpy.asarray, tree['start']), frozen),
    spec=adapted.spec,
    values=Values(**tree['values']),
    curve=Curve(curve['params'], curve['values'], int(curve['knee'])),
    signal=None if np.isnan(tree['signal']) else float(tree['signal']),
    budget=int(tree['budget']),
    proposed=bool(tree['proposed']),
    unjudged=int(tree['unjudged']),
    borrowed=float(tree['borrowed']),
  )


def _check_arrays(arrays: dict[str, np.ndarray], place: Place) -> None:
  """Raises ValueError unless arrays are what `to_arrays` makes of an allocation."""
  spec = place.adapted.spec
  genome = arrays.get('genome', np.zeros(0, np.int8))
  check_genome(spec, genome)
  trainable, _ = place.adapted.fix(genome).split(place.variables)
  starts: dict[str, Any] = flax.traverse_util.flatten_dict(trainable, sep='/')
  rows, parts = ('folds', len(spec)), ('folds', len(spec), 'rank')
  expected = {
    'genome': Array('i', (len(spec), 5)),
    'budget': Array('i'),
    'proposed': Array('b'),
    'unjudged': Array('i'),
    'borrowed': Array('f'),
    'signal': Array('f', finite=False),
    **{f'start/{name}': Array('f', tuple(start.shape)) for name, start in starts.items()},
    'values/A_vector': Array('f', rows),
    'values/A_lora': Array('f', parts),
    'values/B_lora': Array('f', parts),
    'values/C_vector': Array('f', rows),
    'values/E_vector': Array('f', rows),
    'curve/params': Array('i', ('purchase',)),
    'curve/values': Array('f', ('purchase',)),
    'curve/knee': Array('i'),
  }
  if (reason := mismatch_of_arrays(arrays, expected)) is not None:
    raise ValueError(reason)
  if not 0 <= arrays['curve/knee'] < len(arrays['curve/params']):
    raise ValueError('the knee of its curve lies beyond it')
