"""What the programs of a run cost: operations of an image, memory of a device, how much fits."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from glora_jax.runs.planning.arithmetic import count, equations, temporaries
from glora_jax.runs.programs import Program, Workload, program
from glora_jax.runs.run import Run

TRAININGS = ('supernet', 'subnet', 'head')
MANY = 'train_many'


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
    temporaries: bytes that it takes beside that, and for its results, by `footprint.temporaries`.
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


def cost_of(name: str, run: Run, workload: Workload = Workload()) -> Cost:
  """The cost of a program on one device.

  Args:
    name: key of `programs.MAKERS`.
    run: a run of one device; shapes are enough.
    workload: see `programs.program`.
  """
  made = program(name, run, workload)
  traced = made.function.trace(*made.arguments)
  is_training = name in (*TRAININGS, MANY)
  results = 0 if is_training else bytes_of(traced.out_info)  # in the place of arguments
  batches = _streamed(made)
  return Cost(
    count(traced.jaxpr).total / _images(made, run),
    bytes_of(made.arguments) + batches,  # the next call's come while this one runs
    temporaries(traced.jaxpr) + results,
    equations(traced.jaxpr),
    2 * batches,
  )


def _streamed(made: Program) -> int:
  """Bytes of the batches of a training that streams its images."""
  if made.name not in TRAININGS:
    return 0
  images, labels, indices, _ = made.arguments[-4:]
  return bytes_of((images, labels)) if indices is None else 0


def _images(made: Program, run: Run) -> int:
  """Images that a call of a program goes through, for each candidate."""
  arguments = made.arguments
  if made.name in TRAININGS:
    images, _, indices, _ = arguments[-4:]
    return math.prod(images.shape[:2] if indices is None else indices.shape)
  if made.name == MANY:
    return math.prod(arguments[4].shape)
  if made.name == 'scoring':
    return run.settings.search.population * len(arguments[2])
  if made.name == 'allocation':
    return len(arguments[3][0])
  return len(arguments[-1])


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
  def through(cls, number: int, held: float, more: int, held_by_more: float) -> Line:
    """The line through what two numbers take."""
    each = (held_by_more - held) / (more - number)
    return cls(held - each * number, each)

  def most(self, memory: float) -> int:
    """How much fits into so many bytes; 0 where nothing does."""
    return max(0, int((memory - self.fixed) // max(1.0, self.each)))


def memory_by_batch(once: Cost, name: str, workload: Workload, run: Run) -> Line:
  """Memory of a training program by the images of a batch on a device, by two of its sizes.

  Args:
    once: its cost by the run's recipe.
    name: 'supernet', 'subnet' or 'train_many'.
    workload: what it trains, by which section of the config.
    run: a run of one device.
  """
  section = workload.section or run.settings.section_alone
  recipe = getattr(run.settings, section)
  size = recipe.batch_size // recipe.accumulate
  double = dataclasses.replace(recipe, batch_size=2 * recipe.batch_size)
  twice = cost_of(name, _with(run, section, double), workload)
  # Streamed batches grow, too; resident images are as many as before.
  grown = twice.temporaries - once.temporaries + once.streamed
  return Line.through(size, once.held, 2 * size, once.held + grown)


def _with(run: Run, section: str, recipe: Any) -> Run:
  """The run by another recipe, with as many images as its batch needs."""
  settings = dataclasses.replace(run.settings, **{section: recipe})
  splits = {name: _at_least(split, recipe.batch_size) for name, split in run.splits.items()}
  return dataclasses.replace(run, settings=settings, splits=splits)


def _at_least(split: Any, number: int) -> Any:
  """Shapes of a split with at least so many images."""
  number = max(number, len(split.labels))
  grown = functools.partial(_with_length, number)
  return jax.tree.map(grown, split)


def _with_length(number: int, shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((number, *shape.shape[1:]), shape.dtype)


def memory_by_chunk(single: Cost, run: Run, block: int) -> Line:
  """Memory of scoring by the candidates side by side on a device, by one and two of them.

  Args:
    single: the cost of one.
    run: a run of one device.
    block: images that a device evaluates at a time.
  """
  double = cost_of('scoring', run, Workload(chunk=2, block=block))
  return Line.through(1, single.held, 2, double.held)
