"""What the programs of a run cost: operations of an image, memory of a device, how much fits.

Operations and temporaries of a traced program are counted in its jaxpr. A scan counts as often as
it goes round, which a compiler's own analysis leaves out. A loop whose length is found while it
runs counts once, a choice as its dearest branch; what only moves data is free. Arrays live from the
equation that makes them to the last that reads them; what is made number by number is computed
where it is read, as compilers do, unless a product, a loop or a result reads it.
`benchmarks.plan_estimates` says how near this comes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from glora_jax.runs.context import Context
from glora_jax.runs.programs import program
from glora_jax.runs.stage import Workload

_MOVES = frozenset(
  """
  broadcast_in_dim concatenate convert_element_type copy copy_p dynamic_slice dynamic_update_slice
  expand_dims gather iota pad pvary reduce_precision reshape rev select_n sharding_constraint slice
  split squeeze stop_gradient transpose
  """.split()  # noqa: SIM905, more readable than a list
)
# What reads stored arrays and stores what it makes; all else is computed where it is read.
_BARRIERS = frozenset(
  """
  conv_general_dilated cumsum dot_general gather scatter scatter-add sort
  """.split()  # noqa: SIM905, more readable than a list
)
_LOOPS = ('scan', 'while', 'cond')
_TRAININGS = ('supernet', 'subnet', 'head', 'train_many')


class Operations(NamedTuple):
  """Floating-point operations of a program.

  Attributes:
    products: those of matrix products and convolutions.
    others: all others, one for each number that they make or, where they reduce, take.
  """

  products: int = 0
  others: int = 0


def count(jaxpr: Jaxpr | ClosedJaxpr) -> Operations:
  """The operations of a jaxpr, all that it calls included.

  Example:
    >>> import jax
    >>> def power(x):
    ...   return jax.lax.fori_loop(0, 10, lambda _, y: x @ y, x)
    >>> count(jax.make_jaxpr(power)(jnp.ones((4, 4)))).products
    1280
  """
  products = others = 0
  for equation in jaxpr.eqns:
    found = [count(called) for called in called_by(equation)] or [_alone(equation)]
    name, times = equation.primitive.name, 1
    if name == 'cond':
      found = [max(found, key=sum)]
    elif name == 'scan':
      times = equation.params['length']
    elif name == 'shard_map':
      times = equation.params['mesh'].size
    products += times * sum(each.products for each in found)
    others += times * sum(each.others for each in found)
  return Operations(products, others)


def equations(jaxpr: Jaxpr | ClosedJaxpr) -> int:
  """The equations that call nothing, a loop's once: compiling takes time by their number."""
  return sum(sum(map(equations, called_by(equation))) or 1 for equation in jaxpr.eqns)


def called_by(equation: JaxprEqn) -> Iterator[Jaxpr]:
  """The jaxprs that an equation calls, but for those of derivatives that are not asked for."""
  for name, value in equation.params.items():
    if name in ('fwd_jaxpr_thunk', 'bwd', 'jvp_jaxpr_fun'):
      continue
    for item in value if isinstance(value, tuple | list) else (value,):
      if isinstance(item, ClosedJaxpr):
        yield item.jaxpr
      elif isinstance(item, Jaxpr):
        yield item


def _alone(equation: JaxprEqn) -> Operations:
  """The operations of an equation that calls nothing."""
  result, name = equation.outvars[0].aval, equation.primitive.name
  if name == 'dot_general':
    (contracted, _), _ = equation.params['dimension_numbers']
    shape = _shape(equation.invars[0].aval)
    return Operations(products=2 * _size(result) * math.prod(shape[axis] for axis in contracted))
  if name == 'conv_general_dilated':
    kernel = equation.invars[1].aval
    outputs = _shape(kernel)[equation.params['dimension_numbers'].rhs_spec[0]]
    return Operations(products=2 * _size(result) * (_size(kernel) // outputs))
  is_float = jnp.issubdtype(getattr(result, 'dtype', jnp.int32), jnp.inexact)
  if name in _MOVES or not is_float:
    return Operations()
  sizes = [_size(value.aval) for value in (*equation.outvars, *equation.invars)]
  return Operations(others=max(sizes) if name.startswith('reduce') else _size(result))


def _shape(aval: Any) -> tuple[int, ...]:
  return getattr(aval, 'shape', ())


def _size(aval: Any) -> int:
  return math.prod(_shape(aval))


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
    makes = [self.add(bytes_of(variable.aval)) for variable in equation.outvars]
    inside = max((_peak(body, are_results_counted=True) for body in inner), default=0)
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


def bytes_of(tree: Any) -> int:
  """The bytes of all arrays of a tree, or of their shapes."""
  return sum(
    math.prod(np.shape(leaf)) * getattr(leaf, 'dtype', np.dtype('int32')).itemsize
    for leaf in jax.tree.leaves(tree)
  )


class Cost(NamedTuple):
  """What a program costs.

  Attributes:
    operations: floating-point operations for an image, of one candidate.
    arguments: bytes of what it is given.
    temporaries: bytes that it takes beside that, and for its results, by `temporaries`.
    equations: number of equations to compile.
    streamed: bytes of the arguments that are batches of a stream, those of the next call included.
  """

  operations: float
  arguments: int
  temporaries: int
  equations: int
  streamed: int = 0

  @property
  def held(self) -> int:
    """Bytes of a device."""
    return self.arguments + self.temporaries


def cost_of(name: str, context: Context, workload: Workload = Workload()) -> Cost:
  """The cost of a program on one device.

  Args:
    name: key of `programs.MAKERS`.
    context: a job of one device; shapes are enough.
    workload: see `programs.program`.
  """
  made = program(name, context, workload)
  traced = made.function.trace(*made.arguments)
  # What is trained comes back in the place of arguments.
  results = 0 if name in _TRAININGS else bytes_of(traced.out_info)
  batches = bytes_of(made.streamed)
  return Cost(
    sum(count(traced.jaxpr)) / made.images,
    bytes_of(made.arguments) + batches,  # the next call's come while this one runs
    temporaries(traced.jaxpr) + results,
    equations(traced.jaxpr),
    2 * batches,
  )


def bytes_by_kind(executable: Any) -> dict[str, int]:
  """Bytes of a device that a compiled program takes, by its compiler's account."""
  memory = executable.memory_analysis()
  return {
    'arguments': memory.argument_size_in_bytes,
    'temporaries': memory.temp_size_in_bytes,
    'outputs': memory.output_size_in_bytes - memory.alias_size_in_bytes,
    'code': memory.generated_code_size_in_bytes,
  }


class Line(NamedTuple):
  """Memory by how much there is at once: `fixed + each * number`, in bytes."""

  fixed: float
  each: float

  @classmethod
  def through(cls, number: int, once: float, twice: float) -> Line:
    """The line through what a number takes, and twice as many."""
    return cls(2 * once - twice, (twice - once) / number)

  def most(self, memory: float) -> int:
    """How much fits into so many bytes; 0 where nothing does."""
    return max(0, int((memory - self.fixed) // max(1.0, self.each)))


def memory_by_batch(once: Cost, name: str, workload: Workload, context: Context) -> Line:
  """Memory of a training program by the images of a batch on a device, by two of its sizes.

  Args:
    once: its cost by its recipe.
    name: 'supernet', 'subnet' or 'train_many'.
    workload: what it trains, and how.
    context: a job of one device.
  """
  recipe = workload.recipe or context.settings.training
  size = recipe.batch_size // recipe.accumulate
  double = dataclasses.replace(recipe, batch_size=2 * recipe.batch_size)

  def grown(shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    number = max(double.batch_size, len(shape))
    return jax.ShapeDtypeStruct((number, *shape.shape[1:]), shape.dtype)

  larger = dataclasses.replace(context, splits=jax.tree.map(grown, context.splits))
  twice = cost_of(name, larger, workload._replace(recipe=double))
  # Streamed batches grow, too; resident images are as many as before.
  grown_by = twice.temporaries - once.temporaries + once.streamed
  return Line.through(size, once.held, once.held + grown_by)


def memory_by_chunk(single: Cost, context: Context, block: int) -> Line:
  """Memory of scoring by the candidates side by side on a device, by one and two of them.

  Args:
    single: the cost of one.
    context: a job of one device.
    block: images that a device evaluates at a time.
  """
  double = cost_of('scoring', context, Workload(chunk=2, block=block))
  return Line.through(1, single.held, double.held)
