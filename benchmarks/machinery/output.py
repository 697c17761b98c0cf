"""What every benchmark takes and prints: its flags, a table for people, one last line of JSON."""

import argparse
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax


def make_parser(text: str, quick: str) -> argparse.ArgumentParser:
  """A parser with the flag that every benchmark has.

  Args:
    text: the benchmark's docstring, printed by `--help`.
    quick: what `--quick` does.
  """
  parser = argparse.ArgumentParser(
    description=text, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--quick', action='store_true', help=quick)
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


def rounded(value: float | None, digits: int = 3) -> float | None:
  """A number with few digits; what was not measured stays None."""
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
