"""The command that runs what a config describes.

  python -m glora_jax.main --config configs/quickstart.py
  python -m glora_jax.main --config configs/quickstart.py --workdir DIR --config.FIELD=VALUE
  python -m glora_jax.main --config vtab:all --check
  python -m glora_jax.main --config own:photos/ --show [--output batch.png] [--overwrite]
  python -m glora_jax.main --config vtab:all --runner ray[:ADDRESS]
  python -m glora_jax.main --config configs/quickstart.py --open
  python -m glora_jax.main --list (configs, structures, presets, tasks, weights)
  python -m glora_jax.main --help_config (the common config fields) or --help_config=all

From Python, call `experiment.run(config, workdir)` for a run, and `suite.run` for many: several
tasks, such as 'vtab/all', structures, rates or seeds. Each writes `report.html` in its workdir,
which `--open` opens in a browser.

SIGTERM and Ctrl-C save everything and exit with 75 (EX_TEMPFAIL of sysexits.h); the same command
resumes. A suite exits with 1 if a run failed or none was ready, with 0 if all that were ready have
results; `--check` exits with 1 unless all are ready.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from glora_jax.errors import MissingPackageError, UserError

try:
  from glora_jax.vision.runs.command_line import (
    CHECK,
    OUTPUT,
    OVERWRITE,
    RESOURCES,
    RUNNER,
    SHOW,
    STOPPED,
    catch_signals,
    given_fields,
    open_page,
    run_with_config,
    workdir_of_config,
  )
except MissingPackageError as error:
  sys.exit(f'error: {error}')

if TYPE_CHECKING:
  import ml_collections

  from glora_jax.vision.runs.settings import RunSettings


def main(config: ml_collections.ConfigDict) -> None:
  """Runs what the config describes, and prints a summary."""
  if CHECK.value or SHOW.value:
    from glora_jax.vision.runs import look

    if CHECK.value:
      sys.exit(0 if look.check(config) else 1)
    look.show(config, OUTPUT.value, overwrite=OVERWRITE.value)
    return
  workdir = workdir_of_config()
  stop = catch_signals()  # first, to catch an early signal as well
  from glora_jax import mesh
  from glora_jax.vision.reports import page
  from glora_jax.vision.runs import suite
  from glora_jax.vision.runs.config import check_config
  from glora_jax.vision.runs.fields import warn_of_unread
  from glora_jax.vision.runs.workdir import Stopped

  settings = check_config(config)
  warn_of_unread(settings, suite.fields_read(settings), given_fields())
  try:
    summary, code = run(settings, workdir, stop, RUNNER.value, RESOURCES.value)
  except Stopped as stopped:
    print(stopped, file=sys.stderr)
    sys.exit(STOPPED)
  if mesh.primary():
    print(summary)
    open_page(page.path(workdir))
  sys.exit(code)


def run(
  settings: RunSettings,
  workdir: str,
  stop: Callable[[], bool],
  runner: str = RUNNER.default,
  resources: str | None = None,
) -> tuple[str, int]:
  """Runs a suite or a single run; returns its summary and exit code."""
  from glora_jax.vision.reports import report
  from glora_jax.vision.runs import experiment, runners, suite
  from glora_jax.vision.runs.settings import DistributedSettings

  if runner != RUNNER.default and not settings.is_suite:
    raise UserError(f'--runner={runner} is for suites, but this is a single run; leave it out.')
  if runner != RUNNER.default and settings.distributed != DistributedSettings():
    raise UserError(
      f'config.distributed makes one run of several processes, but --runner={runner} gives each '
      'process its own run; leave one of them out.'
    )
  chosen = runners.named(runner, resources)
  if not settings.is_suite:
    return experiment.summary(experiment.run(settings, workdir, stop), workdir), 0
  runners.keep_compiled(workdir)
  board = suite.run(settings, workdir, stop, chosen)
  return report.summary(board, workdir), 1 if suite.failed_runs(board) else 0


def command() -> None:
  """Runs the command: `glora` or `python -m glora_jax.main`."""
  run_with_config(main)


if __name__ == '__main__':
  command()
