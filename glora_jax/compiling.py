"""Compiled programs: how long they are kept, their memory, and the seconds that compiling took.

The large programs of the library are wrapped by `reported`. Within `reporting_to`, their first call
with arguments of new shapes is compiled ahead of time, since only a `jax.stages.Compiled` knows its
memory. The call itself then finds the program in JAX's cache, so nothing is compiled twice
(`tests/test_compiling.py` counts).
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, ParamSpec, TypedDict, TypeVar

import jax

Owner = TypeVar('Owner')
P = ParamSpec('P')
T = TypeVar('T')

MEMORY = ('arguments', 'outputs', 'temporaries')  # kinds of memory


class _Kept(dict):
  """What an object keeps for the next call; a copy of the object, or a pickled one, has nothing."""

  def __reduce__(self) -> tuple:
    return _Kept, ()


# A function that returns a compiled program must return the same one in the next call, or JAX
# compiles it again. A cache of the module's would keep the last model alive, with all its arrays,
# since the program refers to it. So the first argument keeps the result: they are freed together
# (tests/training/test_fit.py). It is only the last result, because a loss may hold large arrays.
def keep_last(
  function: Callable[Concatenate[Owner, P], T],
) -> Callable[Concatenate[Owner, P], T]:
  """Returns the function with its last result kept by its first argument, for an equal call."""
  name = f'_last_{function.__name__}'

  @functools.wraps(function)
  def call(owner: Owner, *args: P.args, **kwargs: P.kwargs) -> T:
    key = owner, args, tuple(kwargs.items())
    try:
      kept = vars(getattr(owner, '__self__', owner))  # a method's own are those of its class
      hash(key)
    except TypeError:  # a user's object without attributes, or with a `__call__` and no hash
      return function(owner, *args, **kwargs)
    last = kept.get(name, {})
    if key not in last:
      last = kept[name] = _Kept({key: function(owner, *args, **kwargs)})
    return last[key]  # not `kept[name]`, which another thread may have replaced

  return call


class Compilation(TypedDict):
  """The compilation of one program.

  Attributes:
    seconds: time to compile the program, or to read it from JAX's cache on disk.
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
  """A jitted function that reports its compilations; see `reporting_to`."""
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
  """Bytes that a program needs on each device, by kind; empty if the backend does not know.

  Outputs that are written over an argument do not count.

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
  """A decorator that gives a function the `lower` and `trace` of a jitted one, for `jax.export`."""
  return functools.wraps(compiled, assigned=('lower', 'trace'), updated=())
