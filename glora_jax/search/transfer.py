"""Values of a backbone's units over several tasks, in a file.

Which layers matter depends mostly on the backbone, so these values fill a budget on another task
without a gradient of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import numpy as np

from glora_jax.checks import shown, validate
from glora_jax.files import Path, damaged, read_json, write_json
from glora_jax.method.space import Layer, Spec
from glora_jax.search.allocation import Values, mean_of

_DIGITS = 4  # significant digits that are kept
_KIND = 'transfer'


class Transfer(NamedTuple):
  """Values of a backbone, which `allocate` takes as a prior, too.

  Attributes:
    spec: the layers.
    values: what their units are worth; they add up to 1.
    signal: how clear that is, see `Allocation.signal`: as clear as can be.
  """

  spec: Spec
  values: Values
  signal: float = 1.0


_Lists = TypedDict('_Lists', dict.fromkeys(Values._fields, list))  # pyrefly: ignore


class _Content(TypedDict):
  layers: list[str]
  values: _Lists  # pyrefly: ignore


def describe(layer: Layer) -> str:
  """What a layer must have in common with another for values of one to mean anything in both."""
  bias = '' if layer.bias else ' without bias'
  return f'{layer.name} {layer.in_features} x {layer.out_features}{bias}'


def check_layers(what: str, theirs: Sequence[str], spec: Spec, remedy: str) -> None:
  """Raises ValueError unless values are of the layers of a spec.

  Args:
    what: what has the values.
    theirs: its layers; see `describe`.
    spec: the layers of the model.
    remedy: what to do.
  """
  ours = [describe(layer) for layer in spec]
  if theirs == ours:
    return
  pairs = zip(theirs, ours, strict=False)
  first = next((f' ({there} there, {here} here)' for there, here in pairs if there != here), '')
  raise ValueError(
    f'{what} has values of {len(theirs)} layers that do not match the {len(ours)} of this '
    f'model{first}; {remedy}'
  )


def check_values(values: Values, spec: Spec) -> None:
  """Raises ValueError unless values are finite, at least 0, and those of the layers of a spec."""
  for name, part in values._asdict().items():
    is_number = np.asarray(part).dtype.kind in 'iuf' and np.shape(part)[:1] == (len(spec),)
    if not is_number or not (np.isfinite(part) & (part >= 0)).all():
      raise ValueError(
        f'{name}={shown(part)} must be finite numbers of at least 0 for each of {len(spec)} layers.'
      )


def write(path: Path, spec: Spec, losses: Sequence[Values]) -> None:
  """Writes the mean of values by several losses (`Allocation.values`) on the layers of a spec.

  Raises:
    ValueError: there are no values, or not a finite one of at least 0 for each layer.
    OSError: the file cannot be written.
  """
  if not losses:
    raise ValueError('losses is empty; pass the values of at least one allocation.')
  for values in losses:
    validate(values, Values, 'losses')
    check_values(values, spec)
  rounded = {
    name: np.vectorize(lambda value: float(f'{value:.{_DIGITS}g}'))(part).tolist()
    for name, part in mean_of(losses)._asdict().items()
  }
  write_json(path, {'layers': [describe(layer) for layer in spec], 'values': rounded}, _KIND)


def read(path: Path, spec: Spec) -> Transfer:
  """The values in a file, for the layers of a spec, whatever they have on offer.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is damaged, or of other layers.
  """
  content = read_json(path, _KIND, _Content)
  check_layers(str(path), content['layers'], spec, 'use the file of this backbone.')
  try:
    values = Values(*(np.asarray(content['values'][name], float) for name in Values._fields))
    check_values(values, spec)
  except (TypeError, ValueError) as error:
    raise damaged(path, error) from error
  return Transfer(spec, values)
