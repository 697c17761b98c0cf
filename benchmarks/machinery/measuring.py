"""What every benchmark takes, does and prints.

Flags; times of what is compared, all in turn, several times over, and medians of ratios; a table
for people, and one last line of JSON.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax

Name = TypeVar('Name', bound=Hashable)


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
  cpu = platform.processor() or platform.machine()
  if os.path.exists('/proc/cpuinfo'):
    with open('/proc/cpuinfo') as file:
      models = (line.split(':')[1].strip() for line in file if line.startswith('model name'))
      cpu = next(models, cpu)
  return {
    'cpu': cpu,
    'cores': os.cpu_count(),
    'device': jax.devices()[0].device_kind,
    'jax': jax.__version__,
  }


def rounded(value: Any, digits: int = 3) -> Any:
  """A number, or all of a dictionary, with few digits; what was not measured stays None."""
  if isinstance(value, Mapping):
    return {name: rounded(each, digits) for name, each in value.items()}
  return None if value is None else round(float(value), digits)


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
  """Prints columns as wide as they must be; the first is text, the others are aligned right."""
  lines = [titles, *rows]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  for first, *others in lines:
    cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
    print('  '.join([first.ljust(widths[0]), *cells]).rstrip(), flush=True)


def print_result(benchmark: str, values: Mapping[str, Any]) -> None:
  """Prints the last line: one JSON object with the benchmark's name, the machine and its values."""
  print(json.dumps({'benchmark': benchmark, 'machine': machine(), **values}), flush=True)


def seconds(function: Callable[[], Any]) -> float:
  """Seconds of the wall until all arrays that a call returns are ready."""
  start = time.perf_counter()
  jax.block_until_ready(function())
  return time.perf_counter() - start


def in_new_process(
  benchmark: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> Any:
  """The last line of a benchmark that is run by itself, as JSON."""
  command = [sys.executable, '-m', f'benchmarks.{benchmark}', *arguments]
  done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
  return json.loads(done.stdout.splitlines()[-1])


def in_turn(
  functions: Mapping[Name, Callable[[], Any]], repeats: int, *, pause: float = 0.0
) -> dict[Name, list[float]]:
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


def milliseconds(times: Mapping[Name, list[float]], steps: int) -> dict[Name, float]:
  """The median time of a step, by name, of dispatches of so many."""
  return {name: 1e3 * statistics.median(values) / steps for name, values in times.items()}
