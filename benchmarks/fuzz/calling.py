"""Calls of the library with arguments that hypothesis draws, most of them right but for one.

Objects of this package, keys and inputs of models are what they must be; numbers, texts, arrays,
sequences and dictionaries may be anything.
"""

import functools
import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import hypothesis.strategies as st

from benchmarks.fuzz.checkpoints import originals
from benchmarks.fuzz.drawing import drawn_by
from benchmarks.fuzz.oracle import Case
from benchmarks.fuzz.place import Place
from benchmarks.fuzz.values import shown

LIMIT = 60.0  # seconds, as some compile


class Call(NamedTuple):
  """A call.

  Attributes:
    function: takes what is drawn as keyword arguments.
    arguments: draws them.
    check: raises `Fault` where the result is not what the documentation says.
    weight: its share.
    has_files: whether the function takes the place, too, first.
  """

  function: Callable[..., Any]
  arguments: st.SearchStrategy
  check: Callable[[dict[str, Any], Any], None] | None = None
  weight: float = 1.0
  has_files: bool = False


def make_call(calls: Mapping[str, Call], rng: random.Random, place: Place) -> Case:
  """One of the calls, by their weights."""
  name = rng.choices(list(calls), [call.weight for call in calls.values()])[0]
  call = calls[name]
  arguments = drawn_by(call.arguments, rng.randrange(2**32))
  function = call.function
  if call.has_files:
    originals(place.path('shared'))  # written before anybody looks what changes
    function = functools.partial(function, place)

  def check(result: Any) -> None:
    if call.check is not None:
      call.check(arguments, result)

  return Case(f'{name} {shown(arguments)}', lambda: function(**arguments), check, limit=LIMIT)
