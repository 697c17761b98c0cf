"""Many runs in one program: seeds, learning rates and fixed subnets trained side by side by `vmap`, equal to running them apart."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm.auto import tqdm

from glora_jax.training import LossFn, Recipe, TrainState, batch_indices, make_step, steps_per_call

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
    runs: Sequence[Training], images: jax.Array, labels: jax.Array, recipe: Recipe, *, steps_per_dispatch: int = 50, progress: bool = True,
) -> list[TrainState]:
  """Trains several runs on the same images by the same recipe.

  Runs that have the same loss function (the very same object) and trainable parameters of the same structure and shapes become one
  compiled program, `vmap`ped over them; such groups follow one another. Frozen parameters are taken from the first run of each group. Every
  run has its own key, so its own order of images. On an accelerator a group costs little more than one of its runs, where these are
  small; on CPU nothing is gained.

  Args:
    runs: see `Training`.
    images, labels: resident on the device, as in `training.fit`.
    recipe: of all.
    steps_per_dispatch: most steps per compiled call.
    progress: whether to show a bar for each group.

  Returns:
    The final state of every run, in their order. A run whose loss was not finite stops there, at its last good state, whose `step`
    says where, and is named in a warning; the others go on.

  Example:
    >>> subnet = adapted.fix(glora_jax.preset(adapted.spec, 'lora'))   # doctest: +SKIP
    >>> loss = glora_jax.subnet_loss(subnet, preprocess, train=True)
    >>> trainable, frozen = subnet.split(variables)
    >>> runs = [Training(loss, trainable, frozen, jax.random.key(seed)) for seed in range(5)]
    >>> states = train_many(runs, images, labels, Recipe(epochs=100))
  """
  groups: dict[Any, list[int]] = {}
  for number, run in enumerate(runs):
    shapes = tuple((leaf.shape, jnp.result_type(leaf)) for leaf in jax.tree.leaves(run.trainable))
    groups.setdefault((run.loss_fn, jax.tree.structure(run.trainable), shapes), []).append(number)
  states: dict[int, TrainState] = {}
  for title, members in enumerate(groups.values(), 1):
    group = [runs[number] for number in members]
    bar = functools.partial(tqdm, desc=f'group {title} of {len(groups)}, {len(group)} runs', unit='step', disable=not progress)
    states |= zip(members, _train_group(group, images, labels, recipe, steps_per_dispatch, bar), strict=True)
  last = recipe.epochs * recipe.steps_per_epoch(len(labels))
  if stopped := {number: state.step for number, state in states.items() if state.step < last}:
    log.warning('The loss was not finite, and training stopped, in %s.', ', '.join(f'run {n} at step {step}' for n, step in stopped.items()))
  return [states[number] for number in range(len(runs))]


def _train_group(runs, images, labels, recipe, steps_per_dispatch, bar) -> list[TrainState]:
  per_epoch = recipe.steps_per_epoch(len(labels))
  last, chunk = recipe.epochs * per_epoch, steps_per_call(per_epoch, steps_per_dispatch)
  optimizer = recipe.optimizer(len(labels))
  stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
  order_keys, step_keys = zip(*(jax.random.split(run.key) for run in runs), strict=True)
  rates, number = jnp.array([run.rate for run in runs], jnp.float32), len(runs)
  trainable = stack([run.trainable for run in runs])
  carry = trainable, jax.vmap(optimizer.init)(trainable), jnp.zeros(number, jnp.int32), jnp.ones(number, bool)
  steps = _make_steps(runs[0].loss_fn, optimizer, recipe.accumulate)
  with bar(total=last) as shown:
    for first in range(0, last, chunk):
      stop = min(first + chunk, last)
      order = [batch_indices(key, first, stop, len(labels), recipe.batch_size) for key in order_keys]
      carry, metrics = steps(carry, runs[0].frozen, images, labels, np.stack(order, 1), jnp.stack(step_keys), rates)
      shown.set_postfix({name: f'{float(np.nanmean(values)):.3f}' for name, values in metrics.items()})
      shown.update(stop - first)
  trainable, opt_state, done, _ = carry
  take = lambda tree, index: jax.tree.map(lambda leaf: leaf[index], tree)
  return [TrainState(take(trainable, index), take(opt_state, index), int(done[index])) for index in range(number)]


def _make_steps(loss_fn: LossFn, optimizer: optax.GradientTransformation, accumulate: int) -> Callable:
  """Compiled `(carry [run, ...], frozen, images, labels, indices [steps, run, batch], keys [run], rates [run]) -> (carry, metrics)`."""

  def one_run(carry, frozen, images, labels, index, key, rate):
    def update(grads, state, params):
      updates, state = optimizer.update(grads, state, params)
      return jax.tree.map(lambda update: rate.astype(update.dtype) * update, updates), state  # AdamW's update is linear in the learning rate

    step_once = make_step(loss_fn, optax.GradientTransformation(optimizer.init, update), accumulate)
    return step_once(carry, frozen, images[index], labels[index], key)

  all_runs = jax.vmap(one_run, in_axes=(0, None, None, None, 0, 0, 0))

  @functools.partial(jax.jit, donate_argnums=0)
  def steps(carry, frozen, images, labels, indices, keys, rates):
    return jax.lax.scan(lambda carry, index: all_runs(carry, frozen, images, labels, index, keys, rates), carry, indices)

  return steps
