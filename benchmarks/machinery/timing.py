"""Times of what is compared: all in turn, several times over, and medians of ratios."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import jax

Name = TypeVar('Name', bound=Hashable)


def seconds(function: Callable[[], Any]) -> float:
  """Seconds of the wall until all arrays that a call returns are ready."""
  start = time.perf_counter()
  jax.block_until_ready(function())
  return time.perf_counter() - start


def in_turn(
  functions: Mapping[Name, Callable[[], Any]],
  repeats: int,
  *,
  pause: float = 0.0,
  warm: bool = False,
) -> dict[Name, list[float]]:
  """Seconds of every function in every repeat.

  Each is called once to compile. Then all are called in turn, so that a machine that slows down
  for a while slows all of them down alike.

  Args:
    functions: what is timed, by name.
    repeats: measured calls of each.
    pause: seconds of sleep before each measured call.
    warm: whether all have been called before, so that nothing is left to compile.
  """
  if not warm:
    for function in functions.values():
      jax.block_until_ready(function())
  times: dict[Name, list[float]] = {name: [] for name in functions}
  for _ in range(repeats):
    for name, function in functions.items():
      time.sleep(pause)
      times[name].append(seconds(function))
  return times


def median_ratio(
  times: Mapping[Name, list[float]], numerator: Name, denominator: Name
) -> float | None:
  """Median of the ratios within each repeat; None where one of the two was not measured."""
  if numerator not in times or denominator not in times:
    return None
  pairs = zip(times[numerator], times[denominator], strict=True)
  return statistics.median(above / below for above, below in pairs)


def medians(times: Mapping[Name, list[float]]) -> dict[Name, float]:
  """The median of every name's times."""
  return {name: statistics.median(values) for name, values in times.items()}
