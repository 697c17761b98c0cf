"""Checks of arguments of the public functions; each error is one sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.checks import listed, shown, validate
from glora_jax.method.adapter import COLLECTION
from glora_jax.method.space import SearchSpace, Spec

# Largest rank, relative to a layer's longer side; so rank 4, the default, is valid for size 1.
_MOST_RANK_TO_SIDE = 4


def check_ranks(spec: Spec) -> None:
  """Checks that the largest rank of every search space is useful in some layer.

  Raises:
    ValueError: the rank is far above the sizes of all layers of the space.
  """
  longest: dict[SearchSpace, int] = {}
  for layer in spec:
    side = max(layer.in_features, layer.out_features)
    longest[layer.space] = max(side, longest.get(layer.space, 0))
  for space, side in longest.items():
    if space.ranks[-1] > _MOST_RANK_TO_SIDE * side:
      raise ValueError(
        f'ranks={shown(space.ranks)} has rank {space.ranks[-1]}, but no layer with it has more '
        f'than {side} inputs or outputs, so none can use more than rank {side}; lower it.'
      )


def check_collections(variables: Any, names: Sequence[str] = ('params', COLLECTION)) -> None:
  """Raises TypeError or ValueError unless variables have the collections that are named."""
  validate(variables, Mapping, 'variables')
  for name in names:
    if name not in variables:
      raise ValueError(
        f"The variables have no '{name}' (they have {listed(map(str, variables)) or 'nothing'}); "
        'pass variables from init.'
      )


def as_numbers(name: str, value: Any) -> Any:
  """Returns arrays of numbers, traced ones too, unchanged, and lists of numbers as an array.

  Raises:
    TypeError: it is something else.
  """
  try:
    array = value if hasattr(value, 'dtype') else np.asarray(value)
  except (ValueError, TypeError):  # a list of lists of different lengths
    array = None
  if array is None or not _is_of(array.dtype, np.number, np.bool_):
    raise TypeError(f'The {name} are {shown(value)}; they must be an array of numbers.')
  return array


def _is_of(dtype: Any, *kinds: Any) -> bool:
  return any(jax.dtypes.issubdtype(dtype, kind) for kind in kinds)


def check_whole_numbers(labels: Any) -> None:
  """Raises TypeError unless labels, which may be traced, have an integer type."""
  dtype = jax.dtypes.result_type(labels)
  if not jax.dtypes.issubdtype(dtype, np.integer):
    raise TypeError(f'The labels are {dtype}; they must be integers, the numbers of classes.')


def right_answers(logits: jax.Array, labels: jax.Array, losses: jax.Array) -> jax.Array:
  """Which answers are right, bool [...]; an answer whose loss is not finite is wrong.

  Args:
    logits: [..., class].
    labels: int [...].
    losses: cross-entropies of the answers, [...].
  """
  return (logits.argmax(-1) == labels) & jnp.isfinite(losses)


def check_only_arrays(name: str, tree: Any) -> None:
  """Checks that a compiled function accepts a tree.

  Args:
    name: its name in an error's sentence.
    tree: any pytree; parameters, for instance, among which there may be functions.

  Raises:
    TypeError: a leaf is not a number or an array of numbers.
  """
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    dtype = getattr(leaf, 'dtype', type(leaf))
    if not _is_of(dtype, np.number, np.bool_, bool, int, float, complex, jax.dtypes.extended):
      place = jax.tree_util.keystr(path, simple=True, separator='/') or 'the top'
      raise TypeError(
        f'The {name} hold {shown(leaf)} at {place}, but compiled functions accept only arrays of '
        'numbers; leave it out, or let the function close over it (in Equinox '
        'eqx.partition(model, eqx.is_array), and adapt_function with the arrays).'
      )


def is_data(value: Any) -> bool:
  """Whether a value is a data set: an array, or a tuple or dictionary of arrays."""
  return isinstance(value, Mapping | tuple) or hasattr(value, 'dtype')


def as_data(data: Any) -> Any:
  """A data set of NumPy or JAX arrays.

  Args:
    data: an array, or a tuple or dictionary of arrays or lists [n, ...]; may be traced.

  Raises:
    TypeError: it is something else, or has leaves that are not arrays of numbers.
    ValueError: the arrays have different lengths, or there are no examples.
  """
  if not is_data(data):
    raise TypeError(f'data={shown(data)} must be an array, or a tuple or dictionary of arrays.')
  data = to_arrays(data, is_array=lambda node: isinstance(node, list))
  size_of(data)
  return data


def as_batch(batch: Any) -> Any:
  """A batch of NumPy or JAX arrays.

  Args:
    batch: tree of arrays [batch, ...]; a list of numbers in it counts as an array.

  Raises:
    TypeError: it has leaves that are not arrays of numbers.
    ValueError: the arrays have different lengths, or there are no examples.
  """
  arrays = to_arrays(batch, _are_numbers)
  size_of(arrays)
  return arrays


def _are_numbers(node: Any) -> bool:
  """Whether a node is a list of numbers, or a list of lists of numbers."""
  return isinstance(node, list) and all(
    isinstance(leaf, bool | int | float) for leaf in jax.tree.leaves(node)
  )


def check_list_of_batches(batches: Any) -> None:
  """Raises ValueError for a list that looks like a data set."""
  is_list = isinstance(batches, list)
  if is_list and len({np.ndim(batch) for batch in batches if hasattr(batch, 'dtype')}) > 1:
    raise ValueError(
      'The arrays of the list of batches differ in their number of axes; if they are a data set, '
      'pass them as a tuple.'
    )


def to_arrays(tree: Any, is_array: Callable[[Any], bool]) -> Any:
  """A tree whose leaves are NumPy or JAX arrays; tensors of other libraries become NumPy's.

  Args:
    tree: a data set or a batch.
    is_array: whether a node, a list for instance, becomes an array instead of a part of the tree.

  Raises:
    TypeError: a leaf is not a number or an array of numbers.
  """
  tree = dict(tree) if isinstance(tree, Mapping) else tree
  tree = jax.tree.map(
    lambda leaf: np.asarray(leaf) if _is_foreign(leaf) or is_array(leaf) else leaf,
    tree,
    is_leaf=is_array,
  )
  check_only_arrays('data', tree)
  return tree


def _is_foreign(leaf: Any) -> bool:
  """Whether a leaf is an array of another library, PyTorch's for instance."""
  return hasattr(leaf, '__array__') and not isinstance(leaf, jax.Array | np.ndarray | np.generic)


def size_of(batch: Any) -> int:
  """The number of examples in a tree of arrays [n, ...].

  Raises:
    ValueError: the arrays have different lengths, or there are no examples.
  """
  sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
  if len(sizes) != 1 or not (size := sizes.pop()) or not size[0]:
    shapes = [list(np.shape(leaf)) for leaf in jax.tree.leaves(batch)]
    raise ValueError(
      f'The arrays of the data are {shown(shapes)}; each must have one row for each example, and '
      'there must be at least one.'
    )
  return size[0]


def check_classes(labels: Any, number: int | None) -> None:
  """Checks that labels are classes; not if they are traced or on other hosts.

  Args:
    labels: int [example].
    number: number of classes; None if it is not known yet.

  Raises:
    ValueError: one is not a class.
  """
  if not is_known(labels):
    return
  numbers = np.asarray(labels)
  wrong = np.flatnonzero((numbers < 0) | (number is not None and numbers >= number))
  if len(wrong):
    classes = 'of at least 0' if number is None else f'from 0 to {number - 1}'
    raise ValueError(
      f'The label {numbers[wrong[0]]} of example {wrong[0]} is not a class; labels are integers '
      f'{classes}.'
    )


def is_known(value: Any) -> bool:
  """Whether an array's values are available: it is not traced, and this process has all of it."""
  if isinstance(value, jax.core.Tracer):
    return False
  return not isinstance(value, jax.Array) or value.is_fully_addressable or value.is_fully_replicated


def check_loss(loss: Any) -> None:
  """Raises ValueError unless a loss is one floating-point number, the mean over a batch."""
  is_number = isinstance(loss, jax.Array | np.ndarray | np.generic | float)
  given = f'{jnp.result_type(loss)} {list(jnp.shape(loss))}' if is_number else shown(loss)
  if not is_number or jnp.shape(loss) or not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
    raise ValueError(
      f'The loss is {given}; it must be one floating-point number, the mean over a batch.'
    )
