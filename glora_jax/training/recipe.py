"""How to train: epochs, batches, and the optimizer with its schedule."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How to train. The defaults are those of the official GLoRA code.

  Attributes:
    epochs: passes over the training images; each drops its last partial batch.
    batch_size: images a step.
    learning_rate: reached after the warm-up, decayed by a cosine to `final_learning_rate` at the last step.
    warmup_epochs: of linear warm-up from `initial_learning_rate`.
    weight_decay: AdamW's, decoupled.
    update_used_only: leave a number alone in a step whose subnet does not use it (its gradient is zero): no decay, no moments. The official
      optimizer decays and moves them all.
    accumulate: equal parts that a batch is taken in, one after the other, which bounds memory; their gradients are averaged. Each part
      draws its own subnet.
  """

  epochs: int = 500
  batch_size: int = 64
  learning_rate: float = 1e-4
  initial_learning_rate: float = 1e-6
  final_learning_rate: float = 1e-5
  warmup_epochs: int = 10
  weight_decay: float = 1e-4
  update_used_only: bool = False
  accumulate: int = 1

  def __post_init__(self):
    if self.epochs < 0 or self.batch_size < 1 or self.warmup_epochs < 0:
      raise ValueError(
        f'{self}: epochs and warmup_epochs cannot be negative, and batch_size is at least 1.'
      )
    if self.accumulate < 1 or self.batch_size % self.accumulate:
      raise ValueError(
        f'accumulate={self.accumulate} must be at least 1 and divide batch_size={self.batch_size}.'
      )
    if self.warmup_epochs > self.epochs:
      raise ValueError(
        f'warmup_epochs={self.warmup_epochs} is more than epochs={self.epochs}; lower it.'
      )
    if not (self.learning_rate > 0 and self.weight_decay >= 0):
      raise ValueError(
        f'learning_rate={self.learning_rate} must be above 0, and weight_decay={self.weight_decay} not below.'
      )

  def steps_per_epoch(self, num_examples: int) -> int:
    steps = num_examples // self.batch_size
    if not steps:
      raise ValueError(
        f'batch_size={self.batch_size} is larger than the {num_examples} training images; lower it.'
      )
    return steps

  def optimizer(self, num_examples: int) -> optax.GradientTransformation:
    """AdamW with linear warm-up and cosine decay over the whole run."""
    per_epoch = self.steps_per_epoch(num_examples)
    schedule = optax.warmup_cosine_decay_schedule(
      self.initial_learning_rate if self.warmup_epochs else self.learning_rate,
      self.learning_rate,
      self.warmup_epochs * per_epoch,
      max(self.epochs, self.warmup_epochs) * per_epoch
      + (self.epochs == self.warmup_epochs),  # optax wants one step of decay
      self.final_learning_rate,
    )
    optimizer = optax.adamw(schedule, weight_decay=self.weight_decay)
    return used_only(optimizer) if self.update_used_only else optimizer


def used_only(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
  """The optimizer, leaving every number alone, with its moments, whose gradient is exactly zero."""

  def update(grads, state, params=None):
    updates, new_state = optimizer.update(grads, state, params)
    used = jax.tree.map(lambda grad: grad != 0, grads)
    # The moments have the parameters' structure within the state's; what else is in there, a count, goes on.
    moved = optax.tree_utils.tree_map_params(
      optimizer, lambda _, used: used, new_state, used, transform_non_params=lambda _: True
    )
    return jax.tree.map(
      lambda update, used: jnp.where(used, update, 0), updates, used
    ), jax.tree.map(jnp.where, moved, new_state, state)

  return optax.GradientTransformation(optimizer.init, update)
