"""Command line: `python -m glora_jax.main --config configs/quickstart.py [--workdir DIR] [--config.field=value ...]`.

Flags, logging and dispatch; a run itself is `experiment.run(config, workdir)`, and a task that stands for several, as 'vtab/all',
`suite.run(config, workdir)`, which a notebook calls just the same.

SIGTERM and Ctrl-C save and end it with the exit code 75 (EX_TEMPFAIL of sysexits.h): the same command goes on. A suite ends with 1 where
a task failed or none was ready, with 0 where all that were ready have their results.
"""

from __future__ import annotations

import os
import sys

from absl import flags
from ml_collections import config_flags

from glora_jax.runs.command_line import STOPPED, WORKDIR, catch_signals, run_with_config


def main(config) -> None:
  """Runs what the config describes."""
  stop = catch_signals() if config.job != 'pretrain' else None
  # Imported late: a typing error in a flag should not wait for JAX.
  from glora_jax import mesh
  from glora_jax.reports import comparison_report
  from glora_jax.runs import comparison, experiment, pretrain, suite
  from glora_jax.runs.workdir import Stopped

  path, _, arguments = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')
  name = '-'.join(
    [
      os.path.splitext(os.path.basename(path))[0],
      *filter(None, arguments.strip('/').replace('/', '_').split(',')),
    ]
  )
  workdir = WORKDIR.value or os.path.join('runs', name)
  if config.job == 'pretrain':
    return print(pretrain.run(config, workdir))
  tasks = suite.task_configs(config)
  try:
    if config.job == 'compare':
      said, code = comparison_report.summary(comparison.run(config, workdir, stop), workdir), 0
    elif len(tasks) > 1:
      suite.keep_compiled(workdir)
      board = suite.run(config, workdir, stop)
      said, code = suite.summary(board, workdir), 1 if board.failed else 0
    else:
      said, code = experiment.summary(experiment.run(*tasks.values(), workdir, stop), workdir), 0
  except Stopped as stopped:
    said, code = None, STOPPED
    print(stopped, file=sys.stderr)
  if said and mesh.primary():
    print(said)
  sys.exit(code)


if __name__ == '__main__':
  run_with_config(main)
