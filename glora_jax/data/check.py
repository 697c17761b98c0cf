"""What a config's data needs before it can be read: `python -m glora_jax.data.check --config configs/vtab.py:all`.

For each task: ready or not, what is missing and how to get it, images and class counts of every split. Nothing is downloaded or
prepared. 'all' stands for all tasks of a suite, and for all data sets, shots or seeds of the few-shot tasks.
"""

from __future__ import annotations

import sys

from glora_jax.data.catalog import expand, report
from glora_jax.runs.config import data_source


def main(config) -> None:
  """Prints the report of every task; ends with status 1 unless all are ready."""
  names = expand(config.task)
  source = data_source(config)
  ready = 0
  for name in names:
    fine, lines = report(name, source)
    ready += fine
    print('\n'.join(lines), flush=True)
  print(f'\n{ready} of {len(names)} ready.')
  sys.exit(0 if ready == len(names) else 1)


if __name__ == '__main__':
  from glora_jax.runs.command_line import run_with_config

  run_with_config(main)
