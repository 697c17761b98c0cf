"""How to train: epochs, batches, and the optimizer with its schedule."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import jax
import jax.numpy as jnp
import optax

from glora_jax.checks import field, listed, validate, validate_fields
from glora_jax.tree import by_name, flatten

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How to train. The defaults are for a LoRA; the official GLoRA code's are in `configs/`.

  Attributes:
    epochs: passes over the data; those over a data set drop the last partial batch.
    batch_size: number of examples in a step, for a data set.
    steps: number of steps, in place of `epochs`; needed if the number of batches is unknown.
    learning_rate: peak of the schedule, reached after the warm-up; from there a cosine leads down
      to `final_learning_rate` at the last step.
    initial_learning_rate: learning rate at the start of the warm-up.
    final_learning_rate: learning rate at the end of the cosine.
    warmup: share of all steps in which the learning rate rises linearly, from 0 to 1.
    weight_decay: AdamW's decoupled weight decay.
    update_used_only: in each step, update only the numbers that the step's structure uses (whose
      gradient is not zero), see `used_only`. The official optimizer updates all of them.
    accumulate: number of equal parts that a batch is split into to save memory. They are computed
      one after the other, their gradients are averaged, and each draws its own structure.
    max_grad_norm: largest global norm of a step's gradient; larger gradients are scaled down to it
      before the optimizer. 0 turns clipping off, as in the official code.
    lora_dropout: probability of dropping each input of a LoRA of B, like PEFT's; see
      `Forward.dropping_inputs`. Every step draws anew, and evaluation drops nothing.

  Raises:
    TypeError: a field has the wrong type.
    ValueError: a number is not finite or out of range, or `accumulate` does not divide
      `batch_size`.

  Example:
    >>> recipe = Recipe(epochs=5, batch_size=8)
    >>> recipe.steps_per_epoch(num_examples=50)
    6
  """

  epochs: int = field(10, least=0)
  batch_size: int = field(64, least=1)
  steps: int | None = field(None, least=0)
  learning_rate: float = field(1e-3, above=0)
  initial_learning_rate: float = field(0.0, least=0)
  final_learning_rate: float = field(0.0, least=0)
  warmup: float = field(0.1, least=0, most=1)
  weight_decay: float = field(1e-4, least=0)
  update_used_only: bool = False
  accumulate: int = field(1, least=1)
  max_grad_norm: float = field(0.0, least=0)
  lora_dropout: float = field(0.0, least=0, below=1)

  def __post_init__(self):
    validate_fields(self)
    if self.batch_size % self.accumulate:
      raise ValueError(
        f'accumulate={self.accumulate} must divide batch_size={self.batch_size}; use a divisor.'
      )

  def with_rate(self, learning_rate: float) -> Recipe:
    """Returns this recipe with another learning rate; its schedule's ends change in proportion."""
    learning_rate = validate(learning_rate, float, 'learning_rate', above=0)
    factor = learning_rate / self.learning_rate
    return dataclasses.replace(
      self,
      learning_rate=learning_rate,
      initial_learning_rate=factor * self.initial_learning_rate,
      final_learning_rate=factor * self.final_learning_rate,
    )

  def steps_per_epoch(self, num_examples: int) -> int:
    """Returns the number of full batches in a data set.

    Raises:
      ValueError: there is none.
    """
    steps = num_examples // self.batch_size
    if not steps:
      raise ValueError(
        f'batch_size={self.batch_size} is larger than the {num_examples} training examples; lower '
        'it.'
      )
    return steps

  def num_steps(self, per_epoch: int | None) -> int:
    """Returns the number of steps of the training.

    Args:
      per_epoch: steps of an epoch; None if their number is unknown.

    Raises:
      ValueError: `per_epoch` is unknown, and the recipe has no `steps`.
    """
    if self.steps is not None:
      return self.steps
    if per_epoch is None:
      raise ValueError(
        'The number of batches is unknown; give a number of steps, Recipe(steps=...).'
      )
    return self.epochs * per_epoch

  def optimizer(self, per_epoch: int | None) -> optax.GradientTransformation:
    """Returns AdamW with linear warm-up and cosine decay over all steps; see `num_steps`."""
    num_steps = self.num_steps(per_epoch)
    warmup_steps = round(num_steps * self.warmup)
    schedule = optax.warmup_cosine_decay_schedule(
      init_value=self.initial_learning_rate if warmup_steps else self.learning_rate,
      peak_value=self.learning_rate,
      warmup_steps=warmup_steps,
      # optax needs at least one step of decay.
      decay_steps=max(num_steps, warmup_steps + 1),
      end_value=self.final_learning_rate,
    )
    optimizer = optax.adamw(schedule, weight_decay=self.weight_decay)
    if self.max_grad_norm:
      optimizer = optax.chain(optax.clip_by_global_norm(self.max_grad_norm), optimizer)
    return used_only(optimizer) if self.update_used_only else optimizer


def used_only(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """Wraps an optimizer so that it updates only the numbers whose gradient is not exactly zero.

  If a structure does not use a tensor, its gradient is exactly zero. AdamW would still move it, by
  weight decay and by the momentum of earlier steps. The wrapper leaves these numbers and their
  moments unchanged; the rest of the state, a count of steps for instance, advances.

  Args:
    inner: the optimizer.

  Returns:
    An optimizer with the state of `inner`.

  See `optax.conditionally_mask` for a wrapper that skips complete steps.
  """

  def update_fn(updates, state, params=None):
    is_used = jax.tree.map(lambda gradient: gradient != 0, updates)
    new_updates, new_state = inner.update(updates, state, params)
    # Moments are trees of the parameters' structure within the state. Optax marks them by running
    # `inner.init` on placeholders, so the mask can follow them into any nested state.
    is_updated = optax.tree_utils.tree_map_params(
      inner.init,
      lambda _, used: used,
      new_state,
      is_used,
      transform_non_params=lambda _: True,
    )
    new_updates = jax.tree.map(
      lambda update, used: jnp.where(used, update, 0), new_updates, is_used
    )
    new_state = jax.tree.map(jnp.where, is_updated, new_state, state)
    return new_updates, new_state

  return optax.GradientTransformation(inner.init, update_fn)


def warn_of_rounding(trainable: Any) -> None:
  """Warns of trained arrays of 16 bits, in which most updates of an optimizer are rounded away."""
  short = [
    name
    for name, leaf in by_name(flatten(trainable)).items()
    if jnp.issubdtype(dtype := jnp.result_type(leaf), jnp.floating) and dtype.itemsize < 4
  ]
  if short:
    log.warning(
      'Trained in 16 bits, where rounding loses most steps and float16 may end in NaN: %s. Pass '
      'these in float32: param_dtype of a head in Flax, module.lm_head.float() in PyTorch.',
      listed(short),
    )
