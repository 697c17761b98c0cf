"""Gradients by parts of a batch: one for each device, or one after the other for want of memory.

A merged kernel is used by all images, and XLA sums a gradient over devices as soon as the images
are summed over: it would send the gradient by every merged kernel, as large as the base model, of
which the few numbers of the supports' gradients are made afterwards. Here every device makes those
of its own images, and they alone are sent.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl

from glora_jax import mesh as meshes
from glora_jax.training.batches import deal


class Part(NamedTuple):
  """One of the equal parts of a batch.

  Attributes:
    index: which one, int32 [].
    number: how many there are.
    rows: images in each.
  """

  index: jax.Array
  number: int
  rows: int

  def key(self, key: jax.Array) -> jax.Array:
    """A random key by which a model draws for the part what it draws by `key` for the whole batch.

    Of an array [images, ...], or [images * tokens, ...], it draws the part's rows. Any other it
    draws as `key` does. All of an array is computed for some of its rows.

    Args:
      key: random key, a single one.

    Example:
      >>> key = jax.random.key(0)
      >>> whole = jax.random.normal(key, (6, 2))
      >>> second = Part(jnp.int32(1), number=3, rows=2)
      >>> bool((jax.random.normal(second.key(key), (2, 2)) == whole[2:4]).all())
      True
    """
    words = jax.random.key_data(key)
    words = jnp.append(words, jnp.asarray(self.index, words.dtype))
    implementation = _keys_of_parts(jax.random.key_impl(key), self.number, self.rows)
    return jax.random.wrap_key_data(words, impl=implementation)


@functools.cache
def _keys_of_parts(base: Hashable, number: int, rows: int) -> Hashable:
  """A kind of keys: those of another, and after their words the index of a part."""

  def key_of(words):
    return jax.random.wrap_key_data(words[:-1], impl=base)

  def with_index(keys, words):
    found = jax.random.key_data(keys)
    index = jnp.broadcast_to(words[-1:], (*found.shape[:-1], 1))
    return jnp.concatenate([found, index], axis=-1)

  def seed(number):
    return jnp.append(jax.random.key_data(jax.random.key(number, impl=base)), jnp.uint32(0))

  def split(words, shape):
    return with_index(jax.random.split(key_of(words), shape), words)

  def fold_in(words, data):
    return with_index(jax.random.fold_in(key_of(words), data), words)

  def random_bits(words, width, shape):
    dtype = jnp.dtype(f'uint{width}')
    if not shape or shape[0] % rows:
      return jax.random.bits(key_of(words), shape, dtype)
    whole = jax.random.bits(key_of(words), (number * shape[0], *shape[1:]), dtype)
    return whole.reshape(number, *shape)[words[-1]]

  return define_prng_impl(
    key_shape=(len(jax.random.key_data(jax.random.key(0, impl=base))) + 1,),
    seed=seed,
    split=split,
    random_bits=random_bits,
    fold_in=fold_in,
    name=f'{base} of one of {number} parts of {rows} rows',
    tag='part',
  )


class PartedLoss(abc.ABC):
  """A loss that can be had as the mean of those of equal parts of a batch.

  What is drawn for the whole batch, or takes several images together, comes before: `draw`.
  """

  @property
  @abc.abstractmethod
  def has_parts(self) -> bool:
    """Whether this one can."""

  @abc.abstractmethod
  def draw(
    self, trainable: Any, frozen: Any, images: jax.Array, labels: jax.Array, key: jax.Array
  ) -> tuple[Any, Any]:
    """What is done with a batch before any gradient is taken; arguments as of a `loop.LossFn`.

    Returns:
      (arrays with a row for each image, what all images have in common).
    """

  @abc.abstractmethod
  def of_part(
    self, trainable: Any, frozen: Any, rows: Any, common: Any, part: Part | None
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean loss of some rows of what `draw` returns, and its metrics, by what is in common.

    The part is None where it is all of the batch.
    """


GradientFn = Callable[[Any, Any, jax.Array, jax.Array, jax.Array], Any]


def make_gradient(loss_fn: Any, mesh: jax.sharding.Mesh | None) -> GradientFn:
  """`jax.value_and_grad` of a loss for a batch that is dealt to devices.

  Args:
    loss_fn: see `loop.fit`. A `PartedLoss` is taken by parts; any other as a whole, since it may
      be anything of the batch.
    mesh: the devices; None for one.

  Returns:
    `(trainable, frozen, images, labels, key) -> ((loss, metrics), gradient)`.
  """
  if mesh is None or not (isinstance(loss_fn, PartedLoss) and loss_fn.has_parts):
    return jax.value_and_grad(loss_fn, has_aux=True)
  constrain = functools.partial(jax.lax.with_sharding_constraint, shardings=meshes.dealt(mesh))
  return GradientByParts(loss_fn, mesh.size, constrain)


@dataclasses.dataclass(frozen=True)
class GradientByParts:
  """The same, as the mean over equal parts of a batch.

  Attributes:
    loss_fn: the loss.
    number: how many parts.
    deal: puts each part of arrays [part, ...] on a device of its own.
  """

  loss_fn: PartedLoss
  number: int
  deal: Callable[[Any], Any]

  def __call__(
    self, trainable: Any, frozen: Any, images: jax.Array, labels: jax.Array, key: jax.Array
  ) -> Any:
    """What `make_gradient` says."""
    rows, common = self.loss_fn.draw(trainable, frozen, images, labels, key)
    parts = self.deal(jax.tree.map(self._cut, rows))

    def of_part(trainable, rows, index):
      part = Part(index, self.number, len(images) // self.number)
      return self.loss_fn.of_part(trainable, frozen, rows, common, part)

    gradient_fn = jax.vmap(jax.value_and_grad(of_part, has_aux=True), in_axes=(None, 0, 0))
    found = self.deal(gradient_fn(trainable, parts, jnp.arange(self.number)))
    return jax.tree.map(lambda leaf: leaf.mean(0), found)

  def _cut(self, rows: jax.Array) -> jax.Array:
    """[image, ...] as [part, image of it, ...]."""
    return rows.reshape(self.number, -1, *rows.shape[1:])


def accumulated(
  gradient_fn: Callable[[jax.Array, jax.Array, jax.Array], Any],
  parts: int,
  mesh: jax.sharding.Mesh | None = None,
) -> Callable[[jax.Array, jax.Array, jax.Array], Any]:
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

  def add_part(total, rows):
    return jax.tree.map(jnp.add, total, gradient_fn(*rows)), None

  def mean_fn(images, labels, key):
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(parts))
    rows_of_parts = (*jax.tree.map(cut, (images, labels)), keys)
    shapes = jax.eval_shape(gradient_fn, *jax.tree.map(lambda rows: rows[0], rows_of_parts))
    total, _ = jax.lax.scan(add_part, jax.tree.map(_zeros, shapes), rows_of_parts)
    means = jax.tree.map(lambda leaf: leaf / parts, total)
    return jax.tree.map(_like_a_part, means, shapes)

  return mean_fn


def _zeros(part: jax.ShapeDtypeStruct) -> jax.Array:
  """Where a sum begins: bools have no sum, short numbers would overflow or be rounded."""
  return jnp.zeros(part.shape, jnp.promote_types(part.dtype, jnp.float32))


def _like_a_part(mean: jax.Array, part: jax.ShapeDtypeStruct) -> jax.Array:
  """A mean in the type of what it is of, unless that is of whole numbers."""
  return mean.astype(part.dtype) if jnp.issubdtype(part.dtype, jnp.inexact) else mean
