"""Arguments of models and public calls: arrays, random keys, and whatever passes through."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from glora_jax.checks import shown


class Sample:
  """Arguments of a call; arrays may be mere shapes.

  Attributes:
    arrays: the arrays among them.
  """

  def __init__(self, inputs: tuple, kwargs: Mapping[str, Any]):
    self._leaves, self._structure = jax.tree.flatten((inputs, dict(kwargs)))
    self.arrays = [leaf for leaf in self._leaves if is_array(leaf)]

  def arguments(self, arrays: Sequence[Any]) -> tuple[tuple, dict[str, Any]]:
    """The positional and keyword arguments, with other arrays instead."""
    remaining = iter(arrays)
    leaves = [next(remaining) if is_array(leaf) else leaf for leaf in self._leaves]
    return self._structure.unflatten(leaves)

  @contextlib.contextmanager
  def explained(self, name: str) -> Generator[None]:
    """Adds to an error what does not run, and on which arrays."""
    try:
      yield
    except Exception as error:
      shapes = ', '.join(f'{array.dtype}{list(array.shape)}' for array in self.arrays)
      error.add_note(f'{name} does not run on the sample inputs ({shapes}).')
      raise


def is_array(leaf: Any) -> bool:
  """Whether a leaf is an array, or the shape of one."""
  return hasattr(leaf, 'shape') and hasattr(leaf, 'dtype')


Preprocess = Callable[[Any, Any], Any]  # (images, key, or None if nothing is random) -> inputs


def unchanged(images: Any, key: jax.Array | None = None) -> Any:
  """The preprocessing of images that are inputs of the model already."""
  del key
  return images


_RAW_KEYS = ((2,), (4,))  # shapes of `jax.random.PRNGKey` in JAX's implementations


def check_key(key: Any) -> None:
  """Raises TypeError unless a value is one random key, of either kind that JAX knows."""
  dtype, shape = getattr(key, 'dtype', None), getattr(key, 'shape', None)
  is_new = dtype is not None and shape == () and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
  if not is_new and not (dtype == np.uint32 and shape in _RAW_KEYS):
    raise TypeError(f'key={shown(key)} must be one random key, jax.random.key(0) for instance.')
