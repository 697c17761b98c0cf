"""New words: more rows in an embedding table, and in the head that it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from glora_jax.checks import shown, validate
from glora_jax.method.quantized import has_quantized
from glora_jax.method.selection import matches
from glora_jax.tree import by_name, flatten, grouped, map_with_path, path_name


def extend(
  params: Any,
  tables: Mapping[str, int],
  new: int | Sequence[Sequence[int]],
  *,
  multiple: int | None = None,
) -> Any:
  """Adds words at the end of a vocabulary: rows of an embedding table and of its head.

  A new word starts as the mean of all words, or of those that you name, in the table and in the
  kernel and the bias of a head. With the mean of all, its logit is the mean of the old ones, so it
  is no more likely than an old word is on average. Old words keep their numbers.

  Extend the base before you adapt or quantize it. The new arrays keep dtypes and Flax's boxes, and
  their sharding if the devices divide the new size, to which `multiple` can help. For PyTorch
  models there is `glora_jax.torch.extend`.

  Args:
    params: parameters of a function or a Linen model, an NNX state, or any other pytree.
    tables: regular expressions for the names of the parameters that have numbers for each word, and
      whether the words are their first axis (0) or the last (-1): `{'embed': 0, 'head': -1}` for a
      table [word, feature] and a head with a kernel [feature, word] and a bias [word].
    new: the number of words; or, for each word, the ids of those whose mean it starts as: [7] for a
      copy, [] for the mean of all.
    multiple: adds words, with the mean of all, until the vocabulary is a multiple of this.

  Returns:
    The parameters with larger arrays. The first new word has the old size for its id.

  Raises:
    TypeError: an argument has another type.
    ValueError: a name matches nothing, the arrays are of vocabularies of different sizes or are
      quantized, an id is outside the vocabulary, or a number is below 1.

  Example:
    >>> from glora_jax import extend
    >>> table, kernel = jnp.arange(6.0).reshape(3, 2), jnp.ones((2, 3))
    >>> params = {'embed': {'embedding': table}, 'head': {'kernel': kernel, 'bias': jnp.zeros(3)}}
    >>> larger = extend(params, {'embed': 0, 'head': -1}, [[0, 1], []])
    >>> larger['embed']['embedding'].tolist()
    [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [1.0, 2.0], [2.0, 3.0]]
    >>> larger['head']['kernel'].shape, larger['head']['bias'].shape
    ((2, 5), (5,))
  """
  if hasattr(params, 'named_parameters'):
    raise TypeError(f'{type(params).__name__} is a PyTorch module; use glora_jax.torch.extend.')
  validate(tables, dict[str, Literal[0, -1]], 'tables')
  words = validate(new, int | list, 'new', least=1)
  validate(multiple, int | None, 'multiple', least=1)
  if has_quantized(params):
    raise ValueError('The params are quantized; extend them first, and quantize them then.')
  arrays, axes = by_name(flatten(params)), {}
  for pattern, axis in tables.items():
    found = [name for name in arrays if matches(pattern, name)]
    if not found:
      raise ValueError(f'{shown(pattern)} in tables matches none of {grouped(arrays)}.')
    axes |= dict.fromkeys(found, axis)
  sizes = {name: arrays[name].shape[axis] for name, axis in axes.items()}
  if len({*sizes.values()}) != 1:
    raise ValueError(
      f'tables must choose arrays of one vocabulary, with the axis of the words; sizes={sizes}.'
    )
  size = min(sizes.values())
  words = [()] * words if isinstance(words, int) else words
  words = validate(words, list[tuple[int, ...]], 'new', least=0, most=size - 1)
  words += [()] * (-(size + len(words)) % (multiple or 1))
  larger = {name: _append(arrays[name], axis, words) for name, axis in axes.items()}
  return map_with_path(lambda path, leaf: larger.get(path_name(path), leaf), params)


def _append(array: jax.Array, axis: int, words: Sequence[Sequence[int]]) -> jax.Array:
  """An array with the means of its entries for some ids, or of all, at the end of an axis."""
  means = {
    ids: jnp.mean(jnp.take(array, jnp.array(ids), axis) if ids else array, axis, keepdims=True)
    for ids in set(words)
  }
  return jnp.concatenate([array, *(means[ids] for ids in words)], axis)
