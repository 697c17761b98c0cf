"""Ratios of the benchmarks of steps and scores, each run as it is, one after the other."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

BENCHMARKS = ('supernet_step', 'score_population', 'nnx_step', 'function_step')


def record() -> Iterator[tuple[str, dict[str, Any]]]:
  """Names and last lines of the benchmarks; those of peers are null where they are missing."""
  environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
  for name in BENCHMARKS:
    command = [sys.executable, '-m', f'benchmarks.{name}']
    printed = subprocess.check_output(command, env=environment)
    yield name, json.loads(printed.splitlines()[-1])
