"""Whether a file holds the tensors of its model, and sentences that name those that are wrong."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from glora_jax.models.containers.tensors import Tensors, TensorSpec

Shape = tuple[int, ...]


def grouped(names: Iterable[str]) -> str:
  """Names in one line; those that differ in one block number are written once, with all numbers.

  >>> grouped(['blocks.0.norm1.bias', 'blocks.1.norm1.bias', 'cls_token'])
  'blocks.{0-1}.norm1.bias, cls_token'
  """
  numbers: dict[str, list[int]] = {}
  for name in names:
    number = re.search(r'(?<=[._/])(\d+)(?=[./])', name)
    if number is None:
      numbers.setdefault(name, [])
    else:
      pattern = f'{name[: number.start()]}{{}}{name[number.end() :]}'
      numbers.setdefault(pattern, []).append(int(number.group()))
  return ', '.join(_numbered(pattern, sorted(numbers[pattern])) for pattern in sorted(numbers))


def _numbered(pattern: str, numbers: list[int]) -> str:
  if not numbers:
    return pattern
  first, last = numbers[0], numbers[-1]
  if len(numbers) > 1 and numbers == list(range(first, last + 1)):
    return pattern.replace('{}', f'{{{first}-{last}}}', 1)
  return pattern.replace('{}', ','.join(map(str, numbers)), 1)


def require_shapes(path: str, given: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
  """Compares the shapes of a file's tensors with those of its model.

  Args:
    path: path of the file.
    given: shapes of the tensors that the file holds, by name.
    expected: shapes of the tensors that the model needs, by name.

  Raises:
    ValueError: names every tensor that is missing, unexpected or misshaped.
  """
  misshaped = [
    f'{name} is {given[name]} and should be {expected[name]}'
    for name in sorted(expected.keys() & given.keys())
    if given[name] != expected[name]
  ]
  names_by_problem = {
    'missing': expected.keys() - given.keys(),
    'unexpected': given.keys() - expected.keys(),
    'misshaped': misshaped,
  }
  problems = [
    f'{problem}: {grouped(names)}' for problem, names in names_by_problem.items() if names
  ]
  if problems:
    raise ValueError(
      f'{path} does not hold the tensors of its model. {"; ".join(problems)}. '
      'Check that the file is whole and of the model that is asked for.'
    )


def require_floats(path: str, specs: Mapping[str, TensorSpec]) -> None:
  """Raises ValueError where tensors hold something else than floating-point numbers."""
  if odd := [name for name, spec in specs.items() if spec.dtype is None]:
    raise ValueError(f'{path}: {grouped(odd)} hold no floating-point numbers.')


def finite(path: str, name: str, array: np.ndarray) -> np.ndarray:
  """The array itself; ValueError where a number in it is, in float32, infinite or not a number."""
  is_finite = np.isfinite(np.sum(array, dtype=np.float64)) or np.isfinite(array).all()
  is_wide = array.dtype == np.float64
  if not is_finite or (is_wide and np.abs(array).max(initial=0) > np.finfo(np.float32).max):
    raise ValueError(
      f'{path}: the tensor {name} is not finite; the checkpoint comes from a run that diverged, '
      'or is damaged.'
    )
  return array


def read_finite(tensors: Tensors, name: str) -> np.ndarray:
  """A tensor of a file, checked to be finite."""
  return finite(tensors.path, name, tensors.read(name))
