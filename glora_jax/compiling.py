"""The memory of compiled programs, and the seconds that compiling them took.

The large programs of the library go through `reported`. Within `reporting_to` the first call with
arguments of new shapes is compiled ahead of time, since only such a program can be asked for its
memory. The call itself then finds it in JAX's own cache, so nothing is compiled twice
(`tests/test_compiling.py` counts).
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, TypedDict

import jax

MEMORY = ('arguments', 'outputs', 'temporaries')  # kinds of it


class Compilation(TypedDict):
  """The compilation of one program.

  Attributes:
    seconds: time that it took, or that reading the program from JAX's cache on disk took.
    memory: see `memory_of`.
  """

  seconds: float
  memory: dict[str, int]


_Listener = Callable[[str, Compilation], None]
_listener: contextvars.ContextVar[_Listener | None] = contextvars.ContextVar(
  'listener', default=None
)


@contextlib.contextmanager
def reporting_to(listener: _Listener) -> Iterator[None]:
  """Calls a listener with the name and the compilation of every `reported` program.

  Example:
    >>> square = reported('square', jax.jit(lambda x: x * x))
    >>> with reporting_to(lambda name, compilation: print(name, compilation['memory'])):
    ...   y = square(jax.numpy.ones(8))
    square {'arguments': 32, 'outputs': 32, 'temporaries': 0}
  """
  token = _listener.set(listener)
  try:
    yield
  finally:
    _listener.reset(token)


def reported(name: str, function: Any) -> Any:
  """A result of `jax.jit` that reports its compilations; see `reporting_to`."""
  known = set()

  @staged_like(function)
  def call(*arguments: Any) -> Any:
    if (listener := _listener.get()) is not None:
      leaves, structure = jax.tree.flatten(arguments)
      types = structure, tuple(map(jax.typeof, leaves))
      if types not in known:
        known.add(types)
        listener(name, _compile(function, arguments))
    return function(*arguments)

  return call


def _compile(function: Any, arguments: Any) -> Compilation:
  start = time.perf_counter()
  compiled = function.lower(*arguments).compile()
  seconds = round(time.perf_counter() - start, 2)
  return Compilation(seconds=seconds, memory=memory_of(compiled))


def memory_of(compiled: jax.stages.Compiled) -> dict[str, int]:
  """Bytes of each device that a program needs, by kind.

  Outputs that are written over an argument do not count. Empty if the backend does not know.

  Example:
    >>> x = jax.ShapeDtypeStruct((8,), 'float32')
    >>> memory_of(jax.jit(lambda x: x * x).lower(x).compile())
    {'arguments': 32, 'outputs': 32, 'temporaries': 0}
  """
  found = compiled.memory_analysis()
  if found is None:
    return {}
  outputs = found.output_size_in_bytes - found.alias_size_in_bytes
  sizes = found.argument_size_in_bytes, outputs, found.temp_size_in_bytes
  return dict(zip(MEMORY, sizes, strict=True))


def staged_like(compiled: Any) -> Callable[[Callable], Callable]:
  """Gives a function `lower` and `trace` of a compiled one, which `jax.export` needs."""
  return functools.wraps(compiled, assigned=('lower', 'trace'), updated=())
