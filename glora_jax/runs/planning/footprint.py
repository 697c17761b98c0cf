"""How much memory a traced program takes beside its arguments: an estimate, from its jaxpr alone.

Arrays live from the equation that makes them to the last that reads them. What is made number by
number is taken to be computed where it is read, as compilers do, unless a product, a loop or a
result reads it. A loop holds what it returns, and what one round takes. Compilers order and reuse
better or worse than that; `benchmarks.plan_estimates` says how near it comes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from glora_jax.runs.planning.arithmetic import called_by

# What reads stored arrays and stores what it makes; all else is computed where it is read.
_BARRIERS = frozenset(
  """
  conv_general_dilated cumsum dot_general gather scatter scatter-add sort
  """.split()  # noqa: SIM905, more readable than a list
)
_LOOPS = ('scan', 'while', 'cond')


class _Node(NamedTuple):
  """An equation.

  Attributes:
    reads: numbers of the arrays that it reads.
    makes: numbers of those that it makes.
    is_barrier: whether all of them are stored.
    is_stored: whether those are that it makes.
    inside: bytes that it takes meanwhile.
  """

  reads: tuple[int, ...]
  makes: tuple[int, ...]
  is_barrier: bool
  is_stored: bool
  inside: int


class _Graph:
  """A program with all that it calls written out, loops apart."""

  def __init__(self):
    self.sizes: list[int] = []
    self.nodes: list[_Node] = []

  def add(self, size: int) -> int:
    """The number of a new array."""
    self.sizes.append(size)
    return len(self.sizes) - 1

  def read(self, jaxpr: Jaxpr, inputs: Sequence[int | None]) -> list[int | None]:
    """Adds a jaxpr's equations; returns its results, None for those that are no array."""
    known: dict[Any, int | None] = dict(zip(jaxpr.invars, inputs, strict=True))
    for equation in jaxpr.eqns:
      atoms = [None if isinstance(a, Literal) else known.get(a) for a in equation.invars]
      known |= zip(equation.outvars, self._add_equation(equation, atoms), strict=True)
    return [None if isinstance(a, Literal) else known.get(a) for a in jaxpr.outvars]

  def _add_equation(self, equation: JaxprEqn, atoms: list[int | None]) -> list[int | None]:
    inner = list(called_by(equation))
    name = equation.primitive.name
    if inner and name not in _LOOPS and len(inner[0].invars) == len(atoms):
      return self.read(inner[0], atoms)
    makes = [self.add(_bytes(variable.aval)) for variable in equation.outvars]
    inside = max((_body(jaxpr) for jaxpr in inner), default=0)
    reads = tuple(atom for atom in atoms if atom is not None)
    is_barrier = bool(inner) or name in _BARRIERS
    is_stored = is_barrier or name.startswith('reduce_')
    self.nodes.append(_Node(reads, tuple(makes), is_barrier, is_stored, inside))
    return list(makes)


def temporaries(jaxpr: Jaxpr | ClosedJaxpr) -> int:
  """Bytes that a program takes beside its arguments and results, about.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> def program(x):
    ...   return jnp.tanh(x @ x) @ x
    >>> temporaries(jax.make_jaxpr(program)(jnp.ones((8, 8)))) // (8 * 8 * 4)
    2
  """
  inner = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
  return _peak(inner, are_results_counted=False)


def _body(jaxpr: Jaxpr) -> int:
  """Bytes of one round of a loop."""
  return _peak(jaxpr, are_results_counted=True)


def _peak(jaxpr: Jaxpr, *, are_results_counted: bool) -> int:
  """The most bytes that live at once."""
  graph = _Graph()
  inputs = [graph.add(0) for _ in jaxpr.invars]
  results = {value for value in graph.read(jaxpr, inputs) if value is not None}
  stored = _stored(graph) | results
  last = _last_reads(graph, results, stored)
  ends: dict[int, list[int]] = {}
  alive = most = 0
  for number, node in enumerate(graph.nodes):
    made = [value for value in node.makes if value in last and value in stored]
    for value in made:
      is_free = value in results and not are_results_counted
      size = 0 if is_free else graph.sizes[value]
      alive += size
      ends.setdefault(last[value], []).append(size)
    most = max(most, alive + node.inside)
    alive -= sum(ends.pop(number, ()))
  return most


def _stored(graph: _Graph) -> set[int]:
  """The arrays that are stored, results apart."""
  stored: set[int] = set()
  for node in graph.nodes:
    if node.is_stored:
      stored.update(node.makes)
    if node.is_barrier:
      stored.update(node.reads)
  return stored


def _last_reads(graph: _Graph, results: set[int], stored: set[int]) -> dict[int, int]:
  """The equation that each array is read by last; those that nobody reads are not there."""
  end = len(graph.nodes)
  last = dict.fromkeys(results, end)
  for number in range(end - 1, -1, -1):
    node = graph.nodes[number]
    readers = [last[value] for value in node.makes if value in last]
    if not readers:
      continue
    # What is computed where it is read keeps what it is made of until then.
    until = number if stored.issuperset(node.makes) else max(readers)
    for value in node.reads:
      last[value] = max(last.get(value, -1), until)
  return last


def _bytes(aval: Any) -> int:
  dtype = getattr(aval, 'dtype', None)
  itemsize = getattr(dtype, 'itemsize', 4) if dtype is not None else 0
  return math.prod(getattr(aval, 'shape', ())) * itemsize
