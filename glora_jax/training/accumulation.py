"""Gradients of a batch that is cut into parts, one after the other, for want of memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from glora_jax.training.batches import deal

GradientFn = Callable[[jax.Array, jax.Array, jax.Array], Any]


def accumulated(
  gradient_fn: GradientFn, parts: int, mesh: jax.sharding.Mesh | None = None
) -> GradientFn:
  """The mean of what a gradient function returns for each part of a batch.

  Args:
    gradient_fn: `(images, labels, key) -> tree`; each part gets a key of its own.
    parts: number of parts, of equally many rows.
    mesh: over all devices of which every part is dealt.

  Example:
    >>> mean = accumulated(lambda images, labels, key: (images * labels).mean(), parts=2)
    >>> float(mean(jnp.arange(4.0), jnp.arange(4), jax.random.key(0)))
    3.5
  """

  def cut(rows):
    return deal(mesh, rows.reshape(parts, -1, *rows.shape[1:]), axis=1)

  def mean_fn(images, labels, key):
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(parts))
    return _mean_over(gradient_fn, (*jax.tree.map(cut, (images, labels)), keys), parts)

  return mean_fn


def _mean_over(gradient_fn: GradientFn, rows_of_parts: Any, parts: int) -> Any:
  """The mean of what is returned for arrays [part, rows, ...] and keys [part]."""

  def add_part(total, rows):
    return jax.tree.map(jnp.add, total, gradient_fn(*rows)), None

  shapes = jax.eval_shape(gradient_fn, *jax.tree.map(lambda rows: rows[0], rows_of_parts))
  total, _ = jax.lax.scan(add_part, jax.tree.map(_zeros, shapes), rows_of_parts)
  means = jax.tree.map(lambda leaf: leaf / parts, total)
  return jax.tree.map(_like_a_part, means, shapes)


def _zeros(part: jax.ShapeDtypeStruct) -> jax.Array:
  """Where a sum begins: bools have no sum, and short numbers would overflow or be rounded.

  Whole numbers are added up in float32, too, exactly up to 2^24.
  """
  return jnp.zeros(part.shape, jnp.promote_types(part.dtype, jnp.float32))


def _like_a_part(mean: jax.Array, part: jax.ShapeDtypeStruct) -> jax.Array:
  """A mean in the type of what it is of, unless that is of whole numbers."""
  return mean.astype(part.dtype) if jnp.issubdtype(part.dtype, jnp.inexact) else mean
