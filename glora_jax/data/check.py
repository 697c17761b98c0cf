"""What a config's data needs before it can be read.

  python -m glora_jax.data.check --config configs/vtab.py:all

For each task: ready or not, what is missing and how to get it, images and class counts of every
split. Nothing is downloaded or prepared. 'all' stands for all tasks of a suite, and for all data
sets, shots or seeds of the few-shot tasks.
"""

from __future__ import annotations

import sys

import ml_collections

from glora_jax.data.catalog import expand, report
from glora_jax.runs.config import check_config_of_task


def main(config: ml_collections.ConfigDict) -> None:
  """Prints the report on every task of a config; ends with status 1 unless all are ready."""
  settings = check_config_of_task(config)
  names = expand(settings.task)
  number_ready = 0
  for name in names:
    readiness = report(name, settings.data)
    number_ready += readiness.ready
    print('\n'.join(readiness.lines), flush=True)
  print(f'\n{number_ready} of {len(names)} ready.')
  sys.exit(0 if number_ready == len(names) else 1)


if __name__ == '__main__':
  from glora_jax.runs.command_line import run_with_config

  run_with_config(main)
