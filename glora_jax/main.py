"""The command that runs what a config describes.

  python -m glora_jax.main --config configs/quickstart.py
  python -m glora_jax.main --config configs/quickstart.py --workdir DIR --config.FIELD=VALUE
  python -m glora_jax.main --config configs/quickstart.py --plan [--plan.topology v5e:2x4]
  python -m glora_jax.main --config vtab:all --check
  python -m glora_jax.main --config own:photos/ --show [--output batch.png] [--overwrite]
  python -m glora_jax.main --config vtab:all --runner ray[:ADDRESS]
  python -m glora_jax.main --config configs/quickstart.py --open
  python -m glora_jax.main --help_config

A run itself is `experiment.run(config, workdir)`, a comparison `comparison.run`, and a task that
stands for several, as 'vtab/all', `suite.run`; a notebook calls them just the same. Each leaves
`report.html` in its workdir, which `--open` opens in a browser.

SIGTERM and Ctrl-C save and end it with the exit code 75 (EX_TEMPFAIL of sysexits.h): the same
command goes on. A suite ends with 1 where a task failed or none was ready, with 0 where all that
were ready have their results; `--check` with 1 unless all are ready.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import ml_collections

from glora_jax.runs.command_line import (
  CHECK,
  OUTPUT,
  OVERWRITE,
  PLAN,
  RESOURCES,
  RUNNER,
  SHOW,
  STOPPED,
  TOPOLOGY,
  catch_signals,
  given_fields,
  open_page,
  run_with_config,
  workdir_of_config,
)
from glora_jax.runs.terminal import GREETING, run_program, show

if TYPE_CHECKING:
  from glora_jax.runs.config import RunSettings
  from glora_jax.runs.runners import Runner


def main(config: ml_collections.ConfigDict) -> None:
  """Runs what the config describes, and prints a summary."""
  if PLAN.value or TOPOLOGY.value is not None:
    text = plan_of_first(config)
    from glora_jax import mesh

    if mesh.primary():
      print(text)
    return
  if CHECK.value or SHOW.value:
    from glora_jax.runs import look

    if CHECK.value:
      sys.exit(0 if look.check(config) else 1)
    look.show(config, OUTPUT.value, overwrite=OVERWRITE.value)
    return
  workdir = workdir_of_config()
  stop = catch_signals()  # first of all, so that an early signal is heard, too
  from glora_jax import mesh
  from glora_jax.reports import page
  from glora_jax.runs.workdir import Stopped

  try:
    flags = RUNNER.value, RESOURCES.value, given_fields()
    summary, code = dispatch(config, workdir, stop, *flags)
  except Stopped as stopped:
    print(stopped, file=sys.stderr)
    sys.exit(STOPPED)
  if mesh.primary():
    print(summary)
    open_page(page.path(workdir))
  sys.exit(code)


def plan_of_first(config: ml_collections.ConfigDict) -> str:
  """The plan of a run, or of the first of a suite."""
  from glora_jax.runs import suite
  from glora_jax.runs.config import check_config
  from glora_jax.runs.plan import plan

  settings = check_config(config)
  tasks = suite.tasks_of(settings) if settings.job == 'adapt' else {'': settings}
  (name, first), *others = tasks.items()
  page = str(plan(first, TOPOLOGY.value))
  return f'{page}\nThis is {name}; {len(others)} tasks more are not planned.' if others else page


def dispatch(
  config: ml_collections.ConfigDict,
  workdir: str,
  stop: Callable[[], bool],
  runner: str = RUNNER.default,
  resources: str | None = None,
  given: Sequence[str] = (),
) -> tuple[str, int]:
  """Runs a comparison, a suite or a single run; returns its summary and the exit code."""
  from glora_jax.reports import comparison_page
  from glora_jax.runs import comparison, experiment, runners, suite
  from glora_jax.runs.config import check_config

  settings = check_config(config)
  if settings.job == 'compare':
    chosen = chosen_runner(settings, runner, resources)
    result = comparison.run(settings, workdir, stop, chosen, given=given)
    return comparison_page.summary(result, workdir), 0
  tasks = suite.tasks_of(settings)
  if len(tasks) == 1:
    require_process(runner, resources)
    [settings] = tasks.values()
    return experiment.summary(experiment.run(settings, workdir, stop, given=given), workdir), 0
  chosen = chosen_runner(settings, runner, resources)
  runners.keep_compiled(workdir)
  board = suite.run(settings, workdir, stop, chosen, given=given)
  return suite.summary(board, workdir), 1 if board.failed else 0


def chosen_runner(settings: RunSettings, name: str, resources: str | None) -> Runner:
  """The runner of a name, ready for what a config describes.

  Raises:
    ValueError, ImportError, OSError, RuntimeError: see `runners.named`.
  """
  from glora_jax.runs import runners
  from glora_jax.runs.sections import DistributedSettings

  if name != RUNNER.default and settings.distributed != DistributedSettings():
    raise ValueError(
      f'config.distributed makes several processes one run, and with --runner={name} each '
      'process has a run of its own; leave one of them out.'
    )
  return runners.named(name, resources)


def require_process(runner: str, resources: str | None) -> None:
  """Raises ValueError where a runner or its resources are asked for and there is one run."""
  asked = [] if runner == RUNNER.default else [f'--runner={runner}']
  asked += [] if resources is None else [f'--runner.resources={resources}']
  if asked:
    raise ValueError(
      f'{asked[0]} is for suites and comparisons, and this is a single run; leave it out.'
    )


def command() -> None:
  """Runs the command, as `glora` and as `python -m glora_jax.main`."""
  if len(sys.argv) == 1:
    run_program(lambda: show(GREETING))
  run_with_config(main)


if __name__ == '__main__':
  command()
