"""Loss and gradient of a batch: part by part to save memory, and on each device of a mesh.

The functions here wrap a `(trainable, frozen, batch, key) -> ((loss, metrics), gradient)`, as
`jax.value_and_grad` makes it, and return one of the same signature.

Why `by_device` does not leave the split to the compiler: all examples use the same merged kernels.
If the compiler splits the batch, it all-reduces the gradient of every merged kernel over the
devices, which is as large as the base. Under `shard_map` each device first computes the gradient of
its adapter, and only these few numbers are averaged over the devices.
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
  """The mean over the parts of a batch with arrays [part, example, ...], each with its own key.

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
    return jax.tree.map(lambda leaf, part: _narrow(leaf / parts, part.dtype), total, shapes)

  return mean_fn


def by_device(gradient_fn: Gradient, mesh: jax.sharding.Mesh, axis: int = 0) -> Gradient:
  """The mean over the devices of a mesh, each with its own examples.

  Args:
    gradient_fn: the function that every device computes; `trainable`, `frozen` and the key are
      replicated.
    mesh: the devices.
    axis: the axis of the examples in a batch.
  """

  def mean_fn(trainable, frozen, batch, key):
    local = gradient_fn(trainable, frozen, batch, key)
    wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, _wide(jnp.result_type(leaf))), local)
    means = jax.lax.pmean(wide, mesh.axis_names)
    return jax.tree.map(lambda mean, leaf: _narrow(mean, jnp.result_type(leaf)), means, local)

  # check_vma would reject a model that begins a scan with zeros, which do not vary over devices.
  split = meshes.split_over(mesh, axis).spec
  return jax.shard_map(
    mean_fn, mesh=mesh, in_specs=(P(), P(), split, P()), out_specs=P(), check_vma=False
  )


def _wide(dtype: Any) -> Any:
  """The type to sum in: at least float32, as bools have no sum, and 16 bits overflow or round."""
  return jnp.promote_types(dtype, jnp.float32)


def _narrow(mean: jax.Array, dtype: Any) -> jax.Array:
  """A mean in the type of its terms, unless they are integers or bools."""
  return mean.astype(dtype) if jnp.issubdtype(dtype, jnp.inexact) else mean
