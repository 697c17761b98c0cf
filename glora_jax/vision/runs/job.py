"""How a run begins, or is read if it is finished; `experiment.run` decides which.

A run that begins claims its workdir. Everything that can be checked is checked before its first
stage starts.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from glora_jax import mesh as meshes
from glora_jax.checks import check_path
from glora_jax.files import read_json
from glora_jax.vision.data.catalog import canonical, find, has_files, require_apart
from glora_jax.vision.data.pipeline import differences
from glora_jax.vision.runs import origins
from glora_jax.vision.runs.context import Context, make_context
from glora_jax.vision.runs.settings import RunSettings
from glora_jax.vision.runs.stage import (
  Stage,
  fields_of,
  read_mark,
  stages_to_repeat,
)
from glora_jax.vision.runs.stages.results import ResultFile
from glora_jax.vision.runs.terminal import user_errors
from glora_jax.vision.runs.workdir import (
  Stop,
  changes_of,
  claim,
  freeze_test_list,
  read_config,
  write_config,
)

log = logging.getLogger(__name__)


@contextlib.contextmanager
def begin(
  settings: RunSettings,
  stages: Sequence[Stage],
  workdir: str,
  stop: Stop,
  shared: str | None = None,
  listed: Mapping[str, Any] | None = None,
) -> Iterator[Context]:
  """The context of a run, whose workdir is held in the block, after checking all stages.

  Logs which stages run again, and why. The config is written before the context is made, so that
  the records of images and weights next to it belong to a config even if the start fails. If fields
  were corrected after a run without a test, its `result.json` is removed.

  Args:
    settings: the config.
    stages: all stages of the run.
    workdir: folder for all output.
    stop: called whenever everything is saved; if it returns True, the run ends.
    shared: folder of the stages that runs of a suite have in common; None if the workdir has them.
    listed: the list of tested structures that a suite has frozen; None if the run makes the list.

  Raises:
    UserError, OSError: anything that would make a stage fail, as far as it can be checked now.
  """
  with contextlib.ExitStack() as stack:
    with user_errors():
      workdir = check_path(workdir)
      require_apart(settings.task, workdir)
      # A stage `training/lora` writes into `training/`, too.
      folders = [each for x in stages if x.has_folder for each in (x.title, x.name)]
      stack.enter_context(claim(workdir, folders))
      changes = changes_of(settings, workdir, fields_of(stages))
      if listed is not None:
        # A suite has trained this run in an earlier phase; keys have the version of the list.
        freeze_test_list(workdir, listed)
      if meshes.primary():
        if changes:
          pathlib.Path(workdir, 'result.json').unlink(missing_ok=True)
        write_config(settings, workdir)
      context = make_context(settings, stages, workdir, stop, shared)
      for change in changes.values():
        log.info('%s.', change)
      if again := stages_to_repeat(context, stages):
        log.warning(
          'Fields, images, weights, scores, devices or the version of glora_jax have changed, so '
          'these stages run again: %s.',
          ', '.join(again),
        )
    yield context


def read_finished(settings: RunSettings, workdir: str) -> dict[str, Any]:
  """The result of a finished run, which must belong to the stages in the workdir.

  Stages may be missing.
  """
  result = read_json(os.path.join(workdir, 'result.json'), 'result', ResultFile)
  for name, key in result['stages'].items():
    folder = os.path.join(workdir, name)
    if (mark := read_mark(folder)) is not None and mark['key'] != key:
      raise ValueError(
        f'{workdir}/result.json does not belong to {folder}: one of the two is from another run. '
        'Restore the right one, or choose another --workdir.'
      )
  log.info('This run is finished, so nothing runs again; its results are in %s.', workdir)
  _compare_images(settings, workdir)
  return with_provenance(result, workdir)


def _compare_images(settings: RunSettings, workdir: str) -> None:
  """Warns if a user's images have changed since a run finished.

  Raises:
    ValueError: the images are in another place, and differ.
  """
  if not has_files(settings.task, settings.data):
    return
  try:
    found = differences(find(settings.task, settings.data), workdir)
  except (OSError, ValueError) as error:
    log.warning('The images of this run cannot be read: %s', error)
    return
  if found:
    sentence = f'The images are not those of this run ({found}); for these, use another --workdir.'
    if read_config(workdir)['task'] != canonical(settings.task):
      raise ValueError(sentence)
    log.warning(sentence)


def with_provenance(result: dict[str, Any], workdir: str) -> dict[str, Any]:
  """A result together with its provenance, if that is known.

  `result.json` does not have the provenance, so that the same run elsewhere writes the same file.
  """
  made = origins.read_processes(workdir)
  return {**result, 'provenance': made} if made else result
