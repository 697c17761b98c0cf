"""Many runs in one program, equal to running them apart.

Seeds, learning rates and fixed subnets are trained side by side by `vmap`.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import operator
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from glora_jax import mesh as meshes
from glora_jax.limits import Domain, Limits, check_callable, check_type, shown
from glora_jax.method.adapted import Adapted
from glora_jax.method.sample import Preprocess, check_key
from glora_jax.method.supports import COLLECTION
from glora_jax.method.validation import as_numbers, check_labelled, check_only_arrays
from glora_jax.training.batches import ImageStream, batch_indices, steps_per_call
from glora_jax.training.loop import DISPATCHED, Carry, LossFn, Progress, TrainState, make_step
from glora_jax.training.losses import make_loss
from glora_jax.training.recipe import Recipe, check_targets, prepare

log = logging.getLogger(__name__)

_RATE = Domain.of_annotation(float, Limits(above=0, at_most=float(np.finfo(np.float32).max)))


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
  """One of the runs of `train_many`.

  Attributes:
    loss_fn: what is minimized; see `fit`.
    trainable: tree of arrays to start from; these alone are trained.
    frozen: tree of arrays.
    key: random key of the run.
    rate: factor on the recipe's whole schedule of learning rates, for comparing several.

  Example:
    >>> import dataclasses
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from glora_jax.training.side_by_side import Training
    >>> def loss_fn(trainable, frozen, images, labels, key):
    ...   return jnp.mean((images @ trainable['slope'] - labels) ** 2), {}
    >>> run = Training(loss_fn, {'slope': jnp.zeros(1)}, {}, jax.random.key(0))
    >>> faster = dataclasses.replace(run, rate=2.0)
  """

  loss_fn: LossFn
  trainable: Any
  frozen: Any
  key: jax.Array
  rate: float = 1.0


def train_many(
  runs: Sequence[Training],
  images: jax.Array,
  labels: jax.Array,
  recipe: Recipe,
  *,
  steps_per_dispatch: int = 50,
  progress: bool = True,
) -> list[TrainState]:
  """Trains several runs on the same images by the same recipe.

  Runs that have the same loss function, the same frozen arrays (the very same objects), and
  trainable parameters of the same structure and shapes are a group: one compiled program, mapped
  over them by `vmap`. The groups follow one another. Every run has its own key, so its own order of
  images. On an accelerator a group costs little more than one of its runs, where these are small;
  on CPU nothing is gained.

  Args:
    runs: the runs.
    images: the whole training set on the device, [n, ...].
    labels: int [n].
    recipe: recipe of all runs.
    steps_per_dispatch: most steps per compiled call.
    progress: whether to show a bar for each group.

  Returns:
    The final state of every run, in their order. A run whose loss or gradient was not finite stops
    at its last good state, whose `step` says where, and is named in a warning; the others go on.

  Raises:
    ValueError: the images are a stream, there is not one label for each or one that is no class, an
      argument is of another type, a rate is not above 0, the batches are larger than the training
      set, or the recipe asks of a loss what it does not know (`recipe.prepare`).

  Example:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from glora_jax import Recipe
    >>> from glora_jax.training.side_by_side import Training, train_many
    >>> def loss_fn(trainable, frozen, images, labels, key):
    ...   return jnp.mean((images @ trainable['slope'] - labels) ** 2), {}
    >>> runs = [
    ...   Training(loss_fn, {'slope': jnp.zeros(1)}, {}, jax.random.key(0), rate=rate)
    ...   for rate in (1.0, 0.001)
    ... ]
    >>> images = jnp.linspace(-1, 1, 8)[:, None]
    >>> recipe = Recipe(epochs=100, batch_size=4, learning_rate=0.1, weight_decay=0.0)
    >>> good, slow = train_many(runs, images, 3 * images[:, 0], recipe, progress=False)
    >>> print(good.trainable['slope'].round(1), slow.trainable['slope'].round(1))
    [3.] [0.]
  """
  if isinstance(images, ImageStream):
    raise ValueError(
      'train_many takes resident images, since every run has an order of its own; '
      'train on a stream with fit, run by run.'
    )
  check_type(recipe, Recipe, 'recipe')
  images, labels = as_numbers('images', images), as_numbers('labels', labels)
  check_labelled(images, labels)
  steps_per_dispatch = DISPATCHED.check(steps_per_dispatch, 'steps_per_dispatch')
  if not isinstance(runs, Sequence):
    raise ValueError(f'runs={shown(runs)} must be a list of Trainings.')
  for number, run in enumerate(runs):
    check_type(run, Training, f'runs[{number}]')
    check_callable(run.loss_fn, f'runs[{number}].loss_fn')
    check_key(run.key)
    check_only_arrays(f'arrays of runs[{number}]', (run.trainable, run.frozen))
    check_targets(run.loss_fn, labels)
    _RATE.check(run.rate, f'runs[{number}].rate')
  images, labels = meshes.hold(None, (images, labels))
  last = recipe.epochs * recipe.steps_per_epoch(len(labels))
  groups = _grouped(runs)
  states: dict[int, TrainState] = {}
  for group_number, members in enumerate(groups, 1):
    group = [runs[number] for number in members]
    title = f'group {group_number} of {len(groups)}, {len(group)} runs'
    bar = Progress(title, 0, last, len(group) * recipe.batch_size, progress)
    group_states = _train_group(group, images, labels, recipe, steps_per_dispatch, bar)
    states |= zip(members, group_states, strict=True)
  stopped = [
    f'run {number} at step {state.step}'
    for number, state in sorted(states.items())
    if state.step < last
  ]
  if stopped:
    log.warning(
      'The loss or its gradient was not finite, and training stopped, in %s.', ', '.join(stopped)
    )
  return [states[number] for number in range(len(runs))]


def subnet_runs(
  adapted: Adapted,
  genomes: Iterable[Any],
  starts: Sequence[Any],
  keys: Sequence[jax.Array],
  preprocess: Preprocess | None = None,
  **options: Any,
) -> list[Training]:
  """The runs of fixed subnets for `train_many`: every genome from every start.

  Args:
    adapted: what `glora_jax.adapt` returned.
    genomes: genomes of the subnets, each int [layer, 5].
    starts: variables to start from, all on the same base arrays: what `adapted.init` returned for
      several keys, say.
    keys: random key of the training from each start.
    preprocess: see `make_loss`.
    **options: further arguments of `make_loss`.

  Returns:
    The runs, genome by genome; those of one genome are one group. A state that comes of a run is
    `adapted.join(state.trainable, run.frozen)` as variables; supports that the genome does not use
    are zero there. `dataclasses.replace(run, rate=2.0)` is a run at another learning rate.

  Raises:
    ValueError: there is not one key for each start, or a genome does not fit.

  Example:
    >>> import flax.linen as nn
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import glora_jax
    >>> from glora_jax.training.side_by_side import subnet_runs, train_many
    >>> model = nn.Dense(2)
    >>> images = jnp.eye(4)
    >>> labels = jnp.array([0, 1, 0, 1])
    >>> adapted = glora_jax.adapt(model, images)
    >>> params = model.init(jax.random.key(0), images)['params']
    >>> keys = [jax.random.key(seed) for seed in range(2)]
    >>> starts = [adapted.init(key, params) for key in keys]
    >>> genomes = [glora_jax.preset(adapted.spec, 'bitfit')]
    >>> runs = subnet_runs(adapted, genomes, starts, keys)
    >>> recipe = glora_jax.Recipe(epochs=1, batch_size=2, warmup_epochs=0)
    >>> states = train_many(runs, images, labels, recipe, progress=False)
    >>> variables = adapted.join(states[0].trainable, runs[0].frozen)
    >>> adapted.apply(variables, images, genome=genomes[0]).shape
    (4, 2)
  """
  if len(starts) != len(keys):
    raise ValueError(
      f'There are {len(starts)} starts and {len(keys)} keys; give one key for each start.'
    )
  runs = []
  for genome in genomes:
    fixed = adapted.fix(genome)
    loss_fn = make_loss(fixed, preprocess, **options)
    unused = None
    for variables, key in zip(starts, keys, strict=True):
      trainable, frozen = fixed.split(variables)
      if unused is None:  # the same zeros for all starts, which makes them one group
        unused = jax.tree.map(jnp.zeros_like, frozen[COLLECTION])
      runs.append(Training(loss_fn, trainable, {**frozen, COLLECTION: unused}, key))
  return runs


def _grouped(runs: Sequence[Training]) -> list[list[int]]:
  """The numbers of the runs of each group, by what those of one compiled program share."""
  groups: dict[Hashable, list[int]] = {}
  for number, run in enumerate(runs):
    trainable, trainable_structure = jax.tree.flatten(run.trainable)
    frozen, frozen_structure = jax.tree.flatten(run.frozen)
    shapes = tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in trainable)
    of_trainable, of_frozen = (trainable_structure, shapes), (frozen_structure, *map(id, frozen))
    shared = run.loss_fn, run.key.dtype, of_trainable, of_frozen
    groups.setdefault(shared, []).append(number)
  return list(groups.values())


def _train_group(
  runs: Sequence[Training],
  images: jax.Array,
  labels: jax.Array,
  recipe: Recipe,
  steps_per_dispatch: int,
  bar: Progress,
) -> list[TrainState]:
  """The final states of the runs of one group."""
  steps_per_epoch = recipe.steps_per_epoch(len(labels))
  last = recipe.epochs * steps_per_epoch
  block_size = steps_per_call(steps_per_epoch, steps_per_dispatch)
  loss_fn, optimizer = prepare(runs[0].loss_fn, recipe, runs[0].trainable, len(labels))
  order_keys, step_keys = zip(*(jax.random.split(run.key) for run in runs), strict=True)
  rates = jnp.array([run.rate for run in runs], jnp.float32)
  trainable = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[run.trainable for run in runs])
  carry = start_of_runs(trainable, optimizer, len(runs))
  steps = make_steps_of_runs(loss_fn, optimizer, recipe.accumulate)
  with bar:
    for first in range(0, last, block_size):
      stop = min(first + block_size, last)
      orders = [
        batch_indices(key, first, stop, len(labels), recipe.batch_size) for key in order_keys
      ]
      indices = np.stack(orders, axis=1)
      carry, metrics = steps(
        carry, runs[0].frozen, images, labels, indices, jnp.stack(step_keys), rates
      )
      bar.reach(stop, {name: float(np.nanmean(values)) for name, values in metrics.items()})
  states = []
  for number in range(len(runs)):
    take = operator.itemgetter(number)
    trainable, opt_state, step = jax.tree.map(take, tuple(carry)[:3])
    states.append(TrainState(trainable, opt_state, int(step)))
  return states


def start_of_runs(trainable: Any, optimizer: optax.GradientTransformation, number: int) -> Carry:
  """What the first step of so many runs is given, by what they train, [run, ...], be it nothing."""
  return Carry(
    trainable,
    jax.vmap(optimizer.init, axis_size=number)(trainable),
    step=jnp.zeros(number, jnp.int32),
    finite=jnp.ones(number, bool),
  )


def _scaled(inner: optax.GradientTransformation, rate: jax.Array) -> optax.GradientTransformation:
  """Multiplies updates, in which AdamW's learning rate is linear; `optax.chain` nests the state."""

  def update_fn(updates, state, params=None):
    updates, state = inner.update(updates, state, params)
    return jax.tree.map(lambda leaf: rate.astype(leaf.dtype) * leaf, updates), state

  return optax.GradientTransformation(inner.init, update_fn)


def make_steps_of_runs(
  loss_fn: LossFn, optimizer: optax.GradientTransformation, accumulate: int
) -> Callable:
  """Makes many steps of several runs as one compiled function.

  Returns:
    `steps(carry, frozen, images, labels, indices, keys, rates) -> (carry, metrics)`, with a run's
    axis first in carry, keys and rates, indices int32 [step, run, batch], and metrics [step, run].
  """

  def step_of_run(carry, frozen, images, labels, index, key, rate):
    step_fn = make_step(loss_fn, _scaled(optimizer, rate), accumulate)
    return step_fn(carry, frozen, images[index], labels[index], key)

  step_of_runs = jax.vmap(step_of_run, in_axes=(0, None, None, None, 0, 0, 0))

  @functools.partial(jax.jit, donate_argnums=0)
  def steps(carry, frozen, images, labels, indices, keys, rates):
    return jax.lax.scan(
      lambda carry, index: step_of_runs(carry, frozen, images, labels, index, keys, rates),
      carry,
      indices,
    )

  return steps
