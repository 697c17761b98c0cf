"""Many runs in one program: seeds, learning rates and fixed subnets trained side by side by `vmap`, equal to running them apart."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm.auto import tqdm

from glora_jax.method.adapted import COLLECTION, Adapted
from glora_jax.training.loop import LossFn, TrainState, batch_indices, make_step, steps_per_call
from glora_jax.training.losses import subnet_loss
from glora_jax.training.recipe import Recipe

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
  """One of the runs of `train_many`: what `fit` takes, and a factor.

  Attributes:
    loss_fn, trainable, frozen, key: see `training.fit`.
    rate: factor on the recipe's whole schedule of learning rates, for comparing several.
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

  Runs that have the same loss function and the same frozen arrays (the very same objects), and trainable parameters of the same
  structure and shapes, become one compiled program, `vmap`ped over them; such groups follow one another. Every run has its own key, so its
  own order of images. On an accelerator a group costs little more than one of its runs, where these are small; on CPU nothing is gained.

  Args:
    runs: see `Training`.
    images, labels: resident on the device, as in `training.fit`.
    recipe: of all.
    steps_per_dispatch: most steps per compiled call.
    progress: whether to show a bar for each group.

  Returns:
    The final state of every run, in their order. A run whose loss was not finite stops there, at its last good state, whose `step`
    says where, and is named in a warning; the others go on.

  Raises:
    ValueError: `images` is a stream, a rate is not above 0, or a batch is larger than the images are many.

  Example:
    >>> keys = [jax.random.key(seed) for seed in range(5)]   # doctest: +SKIP
    >>> starts = [adapted.init(key, params) for key in keys]
    >>> runs = subnet_runs(adapted, glora_jax.presets(adapted.spec).values(), starts, keys, preprocess, train=True)
    >>> for run, state in zip(runs, train_many(runs, images, labels, Recipe(epochs=100))):
    ...   variables = adapted.join(state.trainable, run.frozen)
  """
  if hasattr(images, 'batches'):
    raise ValueError(
      'train_many takes resident images, since every run has an order of its own; train on a stream with fit, run by run.'
    )
  groups: dict[Any, list[int]] = {}
  for number, run in enumerate(runs):
    if not run.rate > 0:
      raise ValueError(f'rate={run.rate} of run {number} must be above 0.')
    leaves, structure = jax.tree.flatten(run.trainable)
    shapes = tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    frozen, frozen_structure = jax.tree.flatten(run.frozen)
    groups.setdefault(
      (run.loss_fn, structure, shapes, frozen_structure, tuple(map(id, frozen))), []
    ).append(number)
  states: dict[int, TrainState] = {}
  for title, members in enumerate(groups.values(), 1):
    group = [runs[number] for number in members]
    bar = functools.partial(
      tqdm,
      desc=f'group {title} of {len(groups)}, {len(group)} runs',
      unit='step',
      disable=not progress,
    )
    states |= zip(
      members, _train_group(group, images, labels, recipe, steps_per_dispatch, bar), strict=True
    )
  last = recipe.epochs * recipe.steps_per_epoch(len(labels))
  if stopped := {number: state.step for number, state in states.items() if state.step < last}:
    log.warning(
      'The loss was not finite, and training stopped, in %s.',
      ', '.join(f'run {n} at step {step}' for n, step in stopped.items()),
    )
  return [states[number] for number in range(len(runs))]


def subnet_runs(
  adapted: Adapted,
  genomes: Iterable[Any],
  starts: Sequence[Any],
  keys: Sequence[jax.Array],
  preprocess: Callable,
  **options: Any,
) -> list[Training]:
  """The runs of fixed subnets for `train_many`: every genome from every start, genome by genome; those of one genome are one group.

  Args:
    adapted: what `glora_jax.adapt` returned.
    genomes: of the subnets, each [rows, 5].
    starts: variables to start from, all on the same base arrays: of `adapted.init` with several keys, say.
    keys: of the training from each start.
    preprocess, **options: see `supernet.subnet_loss`.

  Returns:
    The runs. `adapted.join(state.trainable, run.frozen)` is what a state amounts to; supports that the genome does not use are zero
    there. `dataclasses.replace(run, rate=2.0)` is the same run at another learning rate.
  """
  runs = []
  for genome in genomes:
    subnet = adapted.fix(genome)
    loss_fn, unused = subnet_loss(subnet, preprocess, **options), None
    for variables, key in zip(starts, keys, strict=True):
      trainable, frozen = subnet.split(variables)
      if unused is None:  # one for all starts, which then share what is frozen
        unused = jax.tree.map(jnp.zeros_like, frozen[COLLECTION])
      runs.append(Training(loss_fn, trainable, {**frozen, COLLECTION: unused}, key))
  return runs


def _train_group(runs, images, labels, recipe, steps_per_dispatch, bar) -> list[TrainState]:
  per_epoch = recipe.steps_per_epoch(len(labels))
  last, chunk = recipe.epochs * per_epoch, steps_per_call(per_epoch, steps_per_dispatch)
  optimizer = recipe.optimizer(len(labels))
  stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
  order_keys, step_keys = zip(*(jax.random.split(run.key) for run in runs), strict=True)
  rates, number = jnp.array([run.rate for run in runs], jnp.float32), len(runs)
  trainable = stack([run.trainable for run in runs])
  carry = (
    trainable,
    jax.vmap(optimizer.init)(trainable),
    jnp.zeros(number, jnp.int32),
    jnp.ones(number, bool),
  )
  steps = _make_steps(runs[0].loss_fn, optimizer, recipe.accumulate)
  with bar(total=last) as shown:
    for first in range(0, last, chunk):
      stop = min(first + chunk, last)
      order = [
        batch_indices(key, first, stop, len(labels), recipe.batch_size) for key in order_keys
      ]
      carry, metrics = steps(
        carry, runs[0].frozen, images, labels, np.stack(order, 1), jnp.stack(step_keys), rates
      )
      shown.set_postfix(
        {name: f'{float(np.nanmean(values)):.3f}' for name, values in metrics.items()}
      )
      shown.update(stop - first)
  trainable, opt_state, done, _ = carry
  take = lambda tree, index: jax.tree.map(lambda leaf: leaf[index], tree)
  return [
    TrainState(take(trainable, index), take(opt_state, index), int(done[index]))
    for index in range(number)
  ]


def _make_steps(
  loss_fn: LossFn, optimizer: optax.GradientTransformation, accumulate: int
) -> Callable:
  """Compiled `(carry [run, ...], frozen, images, labels, indices [steps, run, batch], keys [run], rates [run]) -> (carry, metrics)`."""

  def one_run(carry, frozen, images, labels, index, key, rate):
    def update(grads, state, params):
      updates, state = optimizer.update(grads, state, params)
      return jax.tree.map(
        lambda update: rate.astype(update.dtype) * update, updates
      ), state  # AdamW's update is linear in the learning rate

    step_once = make_step(loss_fn, optax.GradientTransformation(optimizer.init, update), accumulate)
    return step_once(carry, frozen, images[index], labels[index], key)

  all_runs = jax.vmap(one_run, in_axes=(0, None, None, None, 0, 0, 0))

  @functools.partial(jax.jit, donate_argnums=0)
  def steps(carry, frozen, images, labels, indices, keys, rates):
    return jax.lax.scan(
      lambda carry, index: all_runs(carry, frozen, images, labels, index, keys, rates),
      carry,
      indices,
    )

  return steps
