"""One path of everything that loses units while it trains (after AdaLoRA, arXiv 2303.10512)."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.structures import laboratory as lab
from benchmarks.structures import methods
from benchmarks.structures.jobs import Job
from benchmarks.structures.units import (
  MAX_RANK,
  Units,
  everything,
  kept_units,
  masks,
  unit_sums,
)
from glora_jax.method.adapted import Adapted
from glora_jax.method.space import FLAT_FORMS
from glora_jax.search.choice import unit_costs
from glora_jax.training.batches import batch_indices
from glora_jax.training.loop import LossFn
from glora_jax.tree import get

SHRINKS_FROM, SHRINKS_TO = 0.1, 0.5  # shares of the steps
STEPS_BETWEEN = 6  # from one decision to the next
DECAY = 0.85  # of the running means of importance


def find(job: Job, setting: methods.Setting) -> methods.Structure:
  """The structure that is left at the end, with its variables, fully trained."""
  adapted = setting.adapted
  trainable, frozen = adapted.split(methods.allocation(setting).variables)
  frozen = {**frozen, 'genome': jnp.asarray(everything(len(adapted.spec)))}
  images, labels = setting.train
  order_key, step_key = jax.random.split(lab.Purposes.from_seed(job.seed).order)
  last = job.epochs * (len(labels) // lab.BATCH_SIZE)
  indices = batch_indices(order_key, 0, last, len(labels), lab.BATCH_SIZE)
  base = lab.backbone(setting.num_classes)
  steps = jax.jit(Shrinking(lab.masked_loss(base), lab.optimizer(job.epochs)).steps)
  supports = trainable['glora']
  zeros = jax.tree.map(jnp.zeros_like, supports)
  ones = jax.tree.map(jnp.ones_like, supports)
  opt_state = lab.start_state(trainable, job.epochs, job.rate)
  state = (trainable, opt_state, zeros, zeros, ones, jnp.int32(0))
  costs = unit_costs(adapted.spec, MAX_RANK)
  first_budget = float(costs.A_vector.sum() + costs.B_lora.sum() + costs.E_vector.sum())
  kept = None
  for first in range(0, last, STEPS_BETWEEN):
    state = steps(state, frozen, images, labels, indices[first : first + STEPS_BETWEEN], step_key)
    done = first + STEPS_BETWEEN
    if SHRINKS_FROM * last < done < SHRINKS_TO * last + STEPS_BETWEEN:
      _, _, mean, deviation, _, _ = state
      importance = unit_sums(adapted, jax.tree.map(jnp.multiply, mean, deviation))
      kept = kept_units(importance, costs, budget_at(done, last, first_budget, job.budget))
      state = (*state[:4], masks(adapted, supports, kept), state[5])
  assert kept is not None
  trained = state[0]
  masked = jax.tree.map(jnp.multiply, trained['glora'], state[4])
  genome, supports = settled(adapted, masked, kept)
  variables = adapted.join({**trained, 'glora': supports}, frozen)
  variables.pop('genome')
  return methods.Structure(genome, variables, {'genome': genome.tolist()}, job.epochs)


@dataclasses.dataclass(frozen=True, eq=False)
class Shrinking:
  """Training steps of masked supports that keep running means of their importance.

  The importance of a number is AdaLoRA's: the running mean of |number * gradient|, times the
  running mean of how far it is off that mean.

  Attributes:
    loss_fn: see `loop.fit`.
    optimizer: what makes updates of gradients.
  """

  loss_fn: LossFn
  optimizer: optax.GradientTransformation

  def steps(self, state, frozen, images, labels, indices, key):
    """The state `(trainable, opt_state, mean, deviation, mask, step)` after further steps."""
    step = functools.partial(self._step, frozen=frozen, images=images, labels=labels, key=key)
    return jax.lax.scan(step, state, indices)[0]

  def _step(self, state, index, *, frozen, images, labels, key):
    trainable, opt_state, mean, deviation, mask, number = state
    step_key = jax.random.fold_in(key, number)
    gradient_fn = jax.grad(self.loss_fn, has_aux=True)
    grads, _ = gradient_fn(trainable, frozen, images[index], labels[index], step_key)
    updates, opt_state = self.optimizer.update(grads, opt_state, trainable)
    trainable = optax.apply_updates(trainable, updates)
    supports = trainable['glora']
    size = jax.tree.map(lambda p, g: jnp.abs(p * g), supports, grads['glora'])
    mean = jax.tree.map(_running, mean, size)
    deviation = jax.tree.map(lambda d, s, m: _running(d, jnp.abs(s - m)), deviation, size, mean)
    trainable = {**trainable, 'glora': jax.tree.map(jnp.multiply, supports, mask)}
    return (trainable, opt_state, mean, deviation, mask, number + 1), None


def _running(mean: jax.Array, new: jax.Array) -> jax.Array:
  return DECAY * mean + (1 - DECAY) * new


def budget_at(step: int, last: int, first_budget: float, budget: float) -> float:
  """The budget of a step: it falls by the cube of what is left of the time for shrinking."""
  start, stop = SHRINKS_FROM * last, SHRINKS_TO * last
  left = np.clip(1 - (step - start) / (stop - start), 0, 1)
  return budget + (first_budget - budget) * left**3


def settled(adapted: Adapted, supports: Any, kept: Units) -> tuple[np.ndarray, Any]:
  """The genome of what is kept, and supports with the kept parts of every LoRA in front."""
  genome = np.zeros((len(adapted.spec), 5), np.int8)
  counts = kept.B_lora.sum(1)
  genome[:, 0] = np.where(kept.A_vector, 2, 0)
  genome[:, 1] = np.where(counts, len(FLAT_FORMS['B']) + counts - 1, 0)
  genome[:, 4] = np.where(kept.E_vector, 2, 0)
  new = jax.tree.map(np.array, supports)
  for group in adapted.groups:
    place = get(new, group.path)
    for index, row in group.slices():
      order = np.argsort(~kept.B_lora[row], kind='stable')
      place['B_down'][index][:, :MAX_RANK] = place['B_down'][index][:, order]
      place['B_up'][index][:MAX_RANK] = place['B_up'][index][order]
  return genome, jax.tree.map(jnp.asarray, new)
