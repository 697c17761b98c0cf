"""Ratios of the benchmarks of steps and scores, each run as it is, one after the other."""

import os
from collections.abc import Iterator
from typing import Any

from benchmarks.machinery.measuring import in_new_process

BENCHMARKS = ('supernet_step', 'score_population', 'nnx_step', 'function_step')


def record() -> Iterator[tuple[str, dict[str, Any]]]:
  """Names and last lines of the benchmarks; those of peers are null where they are missing."""
  environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
  for name in BENCHMARKS:
    yield name, in_new_process(name, environment=environment)
