"""What a recipe asks of a loss that knows the supports."""

from __future__ import annotations

import abc
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from glora_jax.limits import listed
from glora_jax.method.validation import check_whole_numbers, is_known
from glora_jax.training.recipe import Recipe

log = logging.getLogger(__name__)


class AdapterLoss(abc.ABC):
  """A loss function that knows which of the trained numbers are supports.

  `subnet_loss` and `supernet_loss` return one.
  """

  @abc.abstractmethod
  def with_component_dropout(self, probability: float) -> AdapterLoss:
    """The loss with `Recipe.component_dropout`."""


def check_targets(loss_fn: Any, labels: Any) -> None:
  """Checks labels of a loss that takes them for classes.

  How many classes there are is known once the model is traced; a label above them makes the loss
  NaN, and one below 0 would be counted from the last class.

  Args:
    loss_fn: see `fit`.
    labels: [n].

  Raises:
    ValueError: they are no whole numbers of 0 or more.
  """
  if not isinstance(loss_fn, AdapterLoss) or np.ndim(labels) != 1:
    return
  check_whole_numbers(labels)
  if not is_known(labels):
    return
  below = np.flatnonzero(np.asarray(labels) < 0)
  if len(below):
    raise ValueError(
      f'The label {labels[below[0]]} of image {below[0]} is no class; labels are whole numbers '
      'from 0 on.'
    )


def prepare(
  loss_fn: Any, recipe: Recipe, trainable: Any, num_examples: int
) -> tuple[Any, optax.GradientTransformation]:
  """The loss and the optimizer of a training by a recipe.

  Args:
    loss_fn: see `fit`.
    recipe: how to train.
    trainable: tree of arrays that are trained.
    num_examples: number of training images.

  Returns:
    (loss function, optimizer).

  Raises:
    ValueError: the recipe drops components, and the loss has none.

  Example:
    >>> prepare(lambda *_: (0.0, {}), Recipe(component_dropout=0.5), {}, num_examples=100)
    Traceback (most recent call last):
    ValueError: component_dropout=0.5 needs a loss that knows the supports; take one of ...
  """
  _warn_of_rounding(trainable)
  optimizer = recipe.optimizer(num_examples)
  if not recipe.component_dropout:
    return loss_fn, optimizer
  if not isinstance(loss_fn, AdapterLoss):
    raise ValueError(
      f'component_dropout={recipe.component_dropout} needs a loss that knows the supports; take '
      'one of subnet_loss or supernet_loss, or leave it at 0.'
    )
  return loss_fn.with_component_dropout(recipe.component_dropout), optimizer


def _warn_of_rounding(trainable: Any) -> None:
  """Says which trained arrays are so short that most of an optimizer's steps are rounded away."""
  leaves = jax.tree_util.tree_leaves_with_path(trainable)
  short = [
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, leaf in leaves
    if jnp.issubdtype(dtype := jnp.result_type(leaf), jnp.floating) and dtype.itemsize < 4
  ]
  if short:
    log.warning(
      'Trained in 16 bits, where most steps are rounded away, and float16 may end in NaN: %s. Give '
      'these in float32, heads that were made with param_dtype for instance.',
      listed(short),
    )
