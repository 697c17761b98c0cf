"""A job from its config to `result.json`: workdir claimed, context made, stages walked."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from glora_jax import mesh as meshes
from glora_jax.data.catalog import require_apart
from glora_jax.files import sha256_of, whole, write_json
from glora_jax.models.checkpoint import EXTENSIONS
from glora_jax.records import read_record
from glora_jax.runs import origins
from glora_jax.runs.config import RunSettings
from glora_jax.runs.context import IMAGES, SPLIT, Context, make_context, never
from glora_jax.runs.fields import is_among, warn_of_unread
from glora_jax.runs.stage import Stage, read_by, readers, require_tested, walk
from glora_jax.runs.workdir import (
  Change,
  abandon,
  changes_of,
  claim,
  is_finished,
  names_in,
  read_values,
  write_config,
)

log = logging.getLogger(__name__)

# What is made before the first stage, and the fields of the config that it is of.
PREPARED = {SPLIT: ('task', 'data.'), origins.WEIGHTS: ('model.weights',)}
# What belongs to `result.json`, beside the model in `folded`.
_RESULTS = ('adapter.safetensors', 'genome.json', 'search/archive.npz', 'test_list.json')


def run_job(
  settings: RunSettings,
  stages: Sequence[Stage],
  workdir: str,
  stop: Callable[[], bool],
  shape: Any,
  given: Sequence[str] | None = (),
) -> dict[str, Any]:
  """Walks the stages of a job in its workdir, which no other process has meanwhile.

  A finished one is only read. The workdir is the job's from when its context is made: a start that
  fails before leaves it as it was.

  Args:
    settings: the config.
    stages: all stages of the job; the last one makes what becomes `result.json`, with the seconds
      of every stage and digests of what belongs to it.
    workdir: see `experiment.run`.
    stop: see `experiment.run`.
    shape: annotation of the result.
    given: see `experiment.run`.

  Returns:
    The content of `result.json`, and with what it was made (`provenance`).
  """
  meshes.initialize(**dataclasses.asdict(settings.distributed))
  if is_finished(workdir):
    return _finished(settings, stages, workdir, shape)
  if given is not None:
    warn_of_unread(settings, read_by(stages), given)
  require_apart(settings.task, workdir)
  with claimed(workdir, stages):
    if is_finished(workdir):
      return _finished(settings, stages, workdir, shape)
    context = prepared(settings, stages, workdir, stop)
    if meshes.primary():
      write_config(settings, workdir)
      origins.note_process(workdir)
    result = walk(context, stages)
    result['seconds'] = context.seconds
    if meshes.primary():
      result['sha256'] = _digests(workdir)
      write_json(os.path.join(workdir, 'result.json'), result, 'result')
    return _with_provenance(result, workdir)


def claimed(workdir: str, stages: Sequence[Stage]) -> contextlib.AbstractContextManager[None]:
  """Holds the workdir of a job for this process alone; see `workdir.claim`."""
  return claim(workdir, names=[stage.title for stage in stages if stage.has_folder])


def _finished(
  settings: RunSettings, stages: Sequence[Stage], workdir: str, shape: Any
) -> dict[str, Any]:
  """The result of a finished job, which has the workdir's files and the config's fields."""
  changes = changes_of(settings, workdir, read_by(stages))
  result = read_record(os.path.join(workdir, 'result.json'), 'result', shape)
  _require_own(result, workdir)
  log.info('This run is finished; everything is in %s.', workdir)
  for change in changes:
    log.info('%s, which no stage reads.', change)
  for name in ('profile', 'tensorboard'):
    value = getattr(settings.watch, name)
    if value and not names_in(os.path.join(workdir, name)):
      log.warning('watch.%s=%r records nothing any more: this run is finished.', name, value)
  return _with_provenance(result, workdir)


def prepared(
  settings: RunSettings,
  stages: Sequence[Stage],
  workdir: str,
  stop: Callable[[], bool] = never,
) -> Context:
  """The context of a job, all of whose stages are checked; none has begun.

  Which stages run again where the config has changed is logged. Where it raises, the workdir is
  left as it was.

  Raises:
    ValueError, OSError: what a stage would stumble over, as far as it can be known before.
  """
  changes = changes_of(settings, workdir, read_by(stages))
  # That of which images were opened is only made better, by a start that fails, too.
  others = [IMAGES] if any(is_among(x.name, PREPARED[SPLIT]) for x in changes) else []
  with _undone_where_it_fails(workdir, [*PREPARED, *others]):
    _forget(workdir, changes, others)
    context = make_context(settings, stages, workdir, stop)
    require_tested(context, stages)
  for change in changes:
    again = readers(stages, [change.name])
    which = f'run again: {", ".join(again)}' if again else 'no stage reads it'
    log.info('%s; %s.', change, which)
  return context


def _digests(workdir: str) -> dict[str, str]:
  """SHA-256 of what a result belongs to, by file; of `config.json` what can change the result."""
  free = ('data.dir', 'data.root')  # folders that differ between machines
  values = {name: x for name, x in read_values(workdir).items() if not is_among(name, free)}
  text = json.dumps(values, sort_keys=True)
  digests = {'config.json': hashlib.sha256(text.encode()).hexdigest()}
  folded = sorted(names_in(os.path.join(workdir, 'folded')) or ())
  models = [f'folded/{name}' for name in folded if name.endswith((*EXTENSIONS, '.json'))]
  for name in (*_RESULTS, *models):
    if os.path.isfile(path := os.path.join(workdir, name)):
      digests[name] = sha256_of(path)
  return digests


def _require_own(result: dict[str, Any], workdir: str) -> None:
  """Checks that a finished workdir has the result and the files of one run; files may be gone."""
  path = os.path.join(workdir, 'result.json')
  for name, digest in _digests(workdir).items():
    if result['sha256'].get(name, digest) != digest:
      file, owner = os.path.join(workdir, name), path
      if name == 'config.json':
        file, owner = path, file
      raise ValueError(
        f'{file} does not belong to {owner}: it is from another run, or one of the two was edited. '
        'Put the right one back, or choose another --workdir.'
      )


def _with_provenance(result: dict[str, Any], workdir: str) -> dict[str, Any]:
  """A result, and with what it was made, where that is known.

  `result.json` does not say it: the same run elsewhere writes the same file.
  """
  made = origins.recorded_processes(workdir)
  return {**result, 'provenance': made} if made else result


@contextlib.contextmanager
def _undone_where_it_fails(workdir: str, names: Sequence[str]) -> Iterator[None]:
  """Leaves a workdir and some files in it as they were before, where preparing fails."""
  before = names_in(workdir)
  files = [pathlib.Path(workdir, name) for name in names]
  contents = {file: _content_of(file) for file in files}
  try:
    yield
  except BaseException:
    if meshes.primary():
      with contextlib.suppress(OSError):  # what went wrong first is what matters
        for file, content in contents.items():
          if content is None and file.is_file():
            file.unlink()
          elif content != _content_of(file):
            with whole(file) as temporary:
              pathlib.Path(temporary).write_bytes(content or b'')
        abandon(workdir, before)
    raise


def _content_of(file: pathlib.Path) -> bytes | None:
  return file.read_bytes() if file.is_file() else None


def _forget(workdir: str, changes: tuple[Change, ...], others: Sequence[str]) -> None:
  """Removes other files, a split of other images and a record of other weights.

  What a start left that was killed before it had claimed the workdir is of nobody knows what.
  """
  is_unclaimed = not os.path.exists(os.path.join(workdir, 'config.json'))
  gone = [
    name
    for name, fields in PREPARED.items()
    if is_unclaimed or any(is_among(change.name, fields) for change in changes)
  ]
  for path in (os.path.join(workdir, name) for name in (*others, *gone)):
    if meshes.primary() and os.path.exists(path):
      os.remove(path)
