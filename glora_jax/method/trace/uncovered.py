"""The matrices among a function's parameters that are in no linear layer, and why."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from glora_jax.method.reasons import UNUSED
from glora_jax.method.site import Site
from glora_jax.method.trace.events import Event, Note, Scaled, Sum, Use
from glora_jax.tree import Path, path_name


class Uncovered(NamedTuple):
  """A parameter with two or more axes, stacks not counted, that is in no linear layer.

  Attributes:
    path: path of the parameter.
    shape: its shape.
    reason: why it is in none, in a few words.
  """

  path: Path
  shape: tuple[int, ...]
  reason: str


def named_reasons(matrices: Iterable[Uncovered]) -> str:
  """Names and shapes, with the reasons in brackets."""
  return ', '.join(
    f'{path_name(path)} {"x".join(map(str, shape))} ({reason})' for path, shape, reason in matrices
  )


def uncovered_matrices(
  sites: Sequence[Site],
  events: Sequence[Event],
  arrays: Mapping[Path, Any],
  reasons: Mapping[Path, str],
) -> tuple[Uncovered, ...]:
  """The matrices that are in no linear layer, in the order of the parameters.

  Args:
    sites: the linear layers.
    events: how the parameters are used.
    arrays: all parameters, by path.
    reasons: why some of them can be no kernel, by path.
  """
  covered = {path for site in sites for path in (site.kernel_path, site.bias_path)}
  stacked: dict[Path, set[int]] = defaultdict(set)
  as_used: dict[Path, bool] = {}
  reasons = dict(reasons)
  for event in events:
    if isinstance(event, Note):
      stacked[event.path] |= event.stacked
      reasons.setdefault(event.path, event.reason)
    elif isinstance(event, Use):
      stacked[event.view.path] |= event.view.stacked
      as_used[event.view.path] = _is_matrix(event.view.shape)
  return tuple(
    Uncovered(path, array.shape, reasons.get(path, UNUSED))
    for path, array in arrays.items()
    if path not in covered and (as_used.get(path) or _is_matrix(array.shape, stacked[path]))
  )


def _is_matrix(shape: Sequence[int], stacked: Container[int] = ()) -> bool:
  """Whether an array has two axes or more, without stacks and leading axes of size one."""
  axes = [size for axis, size in enumerate(shape) if axis not in stacked]
  while axes and axes[0] == 1:
    axes = axes[1:]
  return len(axes) > 1


def unused(events: Sequence[Event], arrays: Mapping[Path, Any]) -> tuple[Path, ...]:
  """Paths of the parameters that a program does nothing with.

  Args:
    events: how its parameters are used.
    arrays: all parameters, by path.
  """
  used = {
    event.view.path if isinstance(event, Use) else event.path
    for event in events
    if not isinstance(event, Sum | Scaled)
  }
  return tuple(path for path in arrays if path not in used)
