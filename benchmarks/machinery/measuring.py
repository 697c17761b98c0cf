"""What every benchmark takes, does and prints.

Flags; times of what is compared, all in turn, several times over, and medians of ratios; a table
for people, and one last line of JSON.
"""

import argparse
import json
import math
import os
import pathlib
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

DIGITS = 5  # of a number in the last line


def make_parser(
  text: str | None, quick: str = '', repeats: int | None = None
) -> argparse.ArgumentParser:
  """A parser with the flags that most benchmarks have.

  Args:
    text: the benchmark's docstring, printed by `--help`.
    quick: what `--quick` does; no such flag without.
    repeats: how many there are by default; no such flag without.
  """
  parser = argparse.ArgumentParser(
    description=text, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  if quick:
    parser.add_argument('--quick', action='store_true', help=quick)
  if repeats:
    parser.add_argument('--repeats', type=int, default=repeats)
  return parser


def machine() -> dict[str, str | int | None]:
  """Processor, cores, accelerator and version of JAX."""
  linux = pathlib.Path('/proc/cpuinfo')
  found = re.search(r'model name\s*: (.+)', linux.read_text() if linux.exists() else '')
  return {
    'cpu': found[1] if found else platform.processor() or platform.machine(),
    'cores': os.cpu_count(),
    'device': jax.devices()[0].device_kind,
    'jax': jax.__version__,
  }


def plain(value: Any, digits: int = DIGITS) -> Any:
  """A value as JSON keeps it, with so many digits of every number that is not whole."""
  if isinstance(value, Mapping):
    return {str(key): plain(item, digits) for key, item in value.items()}
  if hasattr(value, 'tolist'):
    value = value.tolist()
  if isinstance(value, list | tuple):
    return [plain(item, digits) for item in value]
  if isinstance(value, float):
    return float(f'{value:.{digits}g}') if math.isfinite(value) else str(value)
  return value


def print_table(columns: Mapping[str, str], rows: Iterable[Iterable[Any]]) -> None:
  """Prints columns as wide as they must be; the first is aligned left, the others right.

  Args:
    columns: formats of numbers by title; what is a string already, or None, needs none.
    rows: a cell for each column.
  """
  cells = [
    [
      '' if cell is None else cell if isinstance(cell, str) else format(cell, spec)
      for cell, spec in zip(row, columns.values(), strict=True)
    ]
    for row in rows
  ]
  lines = [list(columns), *cells]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  for first, *others in lines:
    aligned = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
    print('  '.join([first.ljust(widths[0]), *aligned]).rstrip(), flush=True)


def print_result(benchmark: str, values: Mapping[str, Any]) -> None:
  """Prints the last line: one JSON object with the benchmark's name, the machine and its values."""
  line = {'benchmark': benchmark, 'machine': machine(), **plain(values)}
  print(json.dumps(line), flush=True)


def read_lines(path: str) -> list[Any]:
  """What lines of JSON hold, if the file is there; a last line that was cut off is removed."""
  if not os.path.exists(path):
    return []
  with open(path, 'rb+') as file:
    whole, newline, _ = file.read().rpartition(b'\n')
    file.truncate(len(whole + newline))
  return [json.loads(line) for line in whole.splitlines()]


def append_line(path: str, content: Any) -> None:
  """Appends a line of JSON to a file."""
  os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
  with open(path, 'a') as file:
    file.write(json.dumps(content, separators=(',', ':')) + '\n')


def seconds(function: Callable[[], Any]) -> float:
  """Seconds of the wall until all arrays that a call returns are ready."""
  start = time.perf_counter()
  jax.block_until_ready(function())
  return time.perf_counter() - start


class Times(dict[Any, list[float]]):
  """Seconds of every repeat, by what was timed."""

  def median(self, name: Any) -> float:
    """The median over the repeats."""
    return statistics.median(self[name])

  def ratio(self, above: Any, below: Any) -> float | None:
    """Median of the ratios within each repeat; None where one of the two was not measured."""
    if not {above, below} <= self.keys():
      return None
    return float(np.median(np.divide(self[above], self[below])))


def in_turn(
  functions: Mapping[Any, Callable[[], Any]], repeats: int, *, pause: float = 0.0
) -> Times:
  """Seconds of every function in every repeat.

  Each is called once to compile. Then all are called in turn, so that a machine that slows down
  for a while slows all of them down alike.

  Args:
    functions: what is timed, by name.
    repeats: measured calls of each.
    pause: seconds of sleep before each measured call.
  """
  for function in functions.values():
    jax.block_until_ready(function())
  times = Times({name: [] for name in functions})
  for _ in range(repeats):
    for name, function in functions.items():
      time.sleep(pause)
      times[name].append(seconds(function))
  return times
