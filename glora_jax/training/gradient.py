"""Loss and gradient of a batch: part after part for want of memory, each device's own images.

A function here takes `(trainable, frozen, batch, key)` and gives `((loss, metrics), gradient)`, as
`jax.value_and_grad` makes it. A merged kernel is used by all images: a compiler that splits a batch
over devices by itself sums the gradient by every merged kernel over them, which is as large as the
base. Where every device goes on to the few numbers of the supports first, only those are sent.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from glora_jax import mesh as meshes

Gradient = Callable[[Any, Any, Any, jax.Array], Any]


def part_by_part(gradient_fn: Gradient, parts: int) -> Gradient:
  """The mean over the parts of a batch whose arrays are [part, row of it, ...], each with a key.

  Example:
    >>> mean = part_by_part(lambda trainable, frozen, batch, key: (trainable * batch).mean(), 2)
    >>> float(mean(2.0, None, jnp.arange(4.0).reshape(2, 2), jax.random.key(0)))
    3.0
  """

  def mean_fn(trainable, frozen, batch, key):
    of_part = functools.partial(gradient_fn, trainable, frozen)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(parts))
    shapes = jax.eval_shape(of_part, *jax.tree.map(lambda rows: rows[0], (batch, keys)))
    total, _ = jax.lax.scan(
      lambda total, part: (jax.tree.map(jnp.add, total, of_part(*part)), None),
      jax.tree.map(lambda part: jnp.zeros(part.shape, _wide(part.dtype)), shapes),
      (batch, keys),
    )
    return jax.tree.map(lambda leaf, part: _like_a_part(leaf / parts, part.dtype), total, shapes)

  return mean_fn


def by_device(gradient_fn: Gradient, mesh: jax.sharding.Mesh, axis: int = 0) -> Gradient:
  """The mean over the devices of a mesh, each of which takes its own images.

  Args:
    gradient_fn: what every device does. `trainable`, `frozen` and the key are whole on each.
    mesh: the devices.
    axis: that of the images in a batch.
  """
  axes = mesh.axis_names

  def of_own(trainable, frozen, batch, key):
    found = gradient_fn(trainable, frozen, batch, key)
    wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, _wide(jnp.result_type(leaf))), found)
    return jax.tree.map(
      lambda mean, own: _like_a_part(mean, jnp.result_type(own)), jax.lax.pmean(wide, axes), found
    )

  # What varies over devices is not checked: a model may begin a scan with zeros.
  split = meshes.split_over(mesh, axis).spec
  return jax.shard_map(
    of_own, mesh=mesh, in_specs=(P(), P(), split, P()), out_specs=P(), check_vma=False
  )


def _wide(dtype: Any) -> Any:
  """The type of a sum: bools have none, short numbers would overflow or be rounded."""
  return jnp.promote_types(dtype, jnp.float32)


def _like_a_part(mean: jax.Array, dtype: Any) -> jax.Array:
  """A mean in the type of what it is of, unless that is of whole numbers."""
  return mean.astype(dtype) if jnp.issubdtype(dtype, jnp.inexact) else mean
