"""Scores of a backbone's units from several tasks, in a file.

Which layers matter depends mostly on the backbone, so these scores fill a budget on another task
without a gradient of that task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import numpy as np

from glora_jax.checks import shown, validate
from glora_jax.files import Path, read_json, reading, write_json
from glora_jax.method.space import Layer, Spec
from glora_jax.search.unit_scores import UnitScores, mean_scores

_DIGITS = 4  # significant digits that a file has
_KIND = 'transfer'


class Transfer(NamedTuple):
  """Scores of a backbone's units from other tasks, which can also be a prior of `allocate`.

  Attributes:
    spec: the layers.
    scores: scores of their units; they add up to 1.
    signal: as `Allocation.signal`; 1, since a mean over tasks is as clear as a prior can be.
  """

  spec: Spec
  scores: UnitScores
  signal: float = 1.0


_Lists = TypedDict('_Lists', dict.fromkeys(UnitScores._fields, list))  # pyrefly: ignore


class _Content(TypedDict):
  layers: list[str]
  scores: _Lists  # pyrefly: ignore


def write(path: Path, spec: Spec, losses: Sequence[UnitScores]) -> None:
  """Writes the mean of several losses' scores of one backbone.

  Args:
    path: path of the JSON file.
    spec: the layers.
    losses: scores of their units from each loss (`Allocation.scores`).

  Raises:
    ValueError: there are no scores, or not a finite one of at least 0 for each layer.
    OSError: the file cannot be written.

  Example:
    >>> import os, tempfile
    >>> spec = Spec((Layer('hidden', 4, 2),))
    >>> scores = UnitScores(*map(np.ones, (1, (1, 2), (1, 2), 1, 1)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   path = os.path.join(folder, 'backbone.json')
    ...   write(path, spec, [scores, scores])
    ...   read(path, spec).scores.E_vector.tolist()
    [0.1429]
  """
  if not losses:
    raise ValueError('losses is empty; pass the scores of at least one allocation.')
  for scores in losses:
    validate(scores, UnitScores, 'losses')
    check_scores(scores, spec)
  rounded = {
    name: np.vectorize(lambda score: float(f'{score:.{_DIGITS}g}'))(field).tolist()
    for name, field in mean_scores(losses)._asdict().items()
  }
  write_json(path, {'layers': [describe(layer) for layer in spec], 'scores': rounded}, _KIND)


def read(path: Path, spec: Spec) -> Transfer:
  """The scores that `write` wrote, which `allocate` accepts as `prior`.

  Args:
    path: path of the file.
    spec: the layers, which must have the names and sizes of those in the file; the forms in their
      search spaces may be others.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is damaged, or of other layers.
  """
  content = read_json(path, _KIND, _Content)
  check_layers(str(path), content['layers'], spec, 'use the file of this backbone.')
  with reading(path):
    fields = (np.asarray(content['scores'][name], float) for name in UnitScores._fields)
    scores = UnitScores(*fields)
    check_scores(scores, spec)
  return Transfer(spec, scores)


def describe(layer: Layer) -> str:
  """Name and sizes of a layer, which are equal in two models if scores can be transferred."""
  bias = '' if layer.bias else ' without bias'
  return f'{layer.name} {layer.in_features} x {layer.out_features}{bias}'


def check_layers(what: str, theirs: Sequence[str], spec: Spec, remedy: str) -> None:
  """Raises ValueError unless scores are of the layers of a spec.

  Args:
    what: the holder of the scores, for the message.
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
    f'{what} has scores of {len(theirs)} layers that do not match the {len(ours)} of this '
    f'model{first}; {remedy}'
  )


def check_scores(scores: UnitScores, spec: Spec) -> None:
  """Raises ValueError unless scores are finite, at least 0, and those of the layers of a spec."""
  for name, field in scores._asdict().items():
    is_number = np.asarray(field).dtype.kind in 'iuf' and np.shape(field)[:1] == (len(spec),)
    if not is_number or not (np.isfinite(field) & (field >= 0)).all():
      raise ValueError(
        f'{name}={shown(field)} must be finite numbers of at least 0 for each of {len(spec)} '
        'layers.'
      )
