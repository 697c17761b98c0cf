"""The life of a run: config checked, workdir claimed, backbone prepared, stages, `result.json`."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import flax
import jax
import jax.numpy as jnp
import ml_collections

from glora_jax import mesh as meshes
from glora_jax.data import pipeline
from glora_jax.data.catalog import require_apart
from glora_jax.data.image_check import with_readable_images
from glora_jax.data.task import Task
from glora_jax.files import open_regular, sha256_of, whole, write_json
from glora_jax.method.adapted import Adapted
from glora_jax.method.draws import require_feasible
from glora_jax.method.supports import COLLECTION
from glora_jax.models.folder import EXTENSIONS
from glora_jax.records import read_record
from glora_jax.runs import early_checks, origins
from glora_jax.runs.backbone import (
  adapt_spaces,
  fetch_task,
  load_backbone,
  variables_before_training,
)
from glora_jax.runs.config import RunSettings, check_config
from glora_jax.runs.run import Place, Run, Stream, stream_key
from glora_jax.runs.sections import WatchSettings
from glora_jax.runs.used_fields import (
  EVERY_STAGE,
  FREE_FIELDS,
  has_content,
  is_among,
  last_begun,
)
from glora_jax.runs.workdir import (
  Change,
  abandon,
  changes_of,
  claim,
  claim_workdir,
  names_in,
)

log = logging.getLogger(__name__)

# What preparing writes into a workdir, and the fields of the config that it is of.
PREPARED = {'split.json': ('task', 'data.'), 'weights.json': ('model.weights',)}
# What belongs to `result.json`, beside the model in `folded`.
_RESULTS = ('adapter.safetensors', 'genome.json', 'search/archive.npz', 'test_list.json')


def never() -> bool:
  """A `stop` that never asks for one."""
  return False


def carry_out(
  config: ml_collections.ConfigDict,
  workdir: str,
  stop: Callable[[], bool],
  stages: Callable[[Run], dict[str, Any]],
  shape: Any,
) -> dict[str, Any]:
  """Runs the stages of a job in its workdir, which no other process has meanwhile.

  A finished one is only read. The workdir belongs to the config from when it is prepared: a start
  that fails before leaves it as it was.

  Args:
    config: see `experiment.run`.
    workdir: see `experiment.run`.
    stop: see `experiment.run`.
    stages: what to do, each part in `Run.stage`; what they return becomes `result.json`, with the
      seconds of every stage and digests of what belongs to it.
    shape: annotation of that.

  Returns:
    The content of `result.json`, and with what it was made (`provenance`).
  """
  settings = check_config(config)
  meshes.initialize(**dataclasses.asdict(settings.distributed))
  path = os.path.join(workdir, 'result.json')
  is_finished = os.path.exists(path)
  if not is_finished:
    require_apart(settings.task, workdir)
  alone = meshes.primary() and not is_finished
  with claim(workdir) if alone else contextlib.nullcontext():
    changes = changes_of(config, workdir)
    if os.path.exists(path):
      result = read_record(path, 'result', shape)
      _require_own(result, workdir)
      log.info('This run is finished; everything is in %s.', workdir)
      for change in changes:
        log.info('%s, which no stage has used.', change)
      _warn_of_unrecorded(settings.watch, workdir)
      return _with_provenance(result, workdir)
    run = _prepare_or_undo(settings, workdir, stop, changes)
    if meshes.primary():
      claim_workdir(config, workdir)
      origins.note_process(workdir)
    result = stages(run)
    result['seconds'] = run.seconds
    if meshes.primary():
      result['sha256'] = _digests(workdir)
      write_json(path, result, 'result')
    return _with_provenance(result, workdir)


def _digests(workdir: str) -> dict[str, str]:
  """SHA-256 of what a result belongs to, by file; of `config.json` what can change the result."""
  config = read_record(os.path.join(workdir, 'config.json'), 'config', dict[str, Any])
  values = flax.traverse_util.flatten_dict(config, sep='.')
  free = (*FREE_FIELDS, 'data.dir', 'data.root')  # folders that differ between machines
  text = json.dumps({name: values[name] for name in sorted(values) if not is_among(name, free)})
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


def _warn_of_unrecorded(watch: WatchSettings, workdir: str) -> None:
  """Warns of what is to be recorded of a finished run, and was not when it ran."""
  for name in ('profile', 'tensorboard'):
    value = getattr(watch, name)
    if value and not has_content(os.path.join(workdir, name)):
      log.warning('watch.%s=%r records nothing any more: this run is finished.', name, value)


def _with_provenance(result: dict[str, Any], workdir: str) -> dict[str, Any]:
  """A result, and with what it was made, where that is known.

  `result.json` does not say it: the same run elsewhere writes the same file.
  """
  made = origins.recorded_processes(workdir)
  return {**result, 'provenance': made} if made else result


def rehearse(config: ml_collections.ConfigDict, workdir: str) -> Run:
  """Prepares a run of a suite and checks all that its stages need, as `carry_out` does.

  What is written into its folder is what preparing writes, `images.npz` for instance, so that the
  run itself opens no image again; where it fails, the folder is left as it was.

  Args:
    config: see `experiment.run`.
    workdir: folder of the run, in that of the suite, which this process holds.

  Returns:
    The run, none of whose stages has begun.

  Raises:
    ValueError, OSError: what the run would stumble over, as far as it can be known before.
  """
  changes = changes_of(config, workdir)
  return _prepare_or_undo(check_config(config), workdir, never, changes)


def _prepare_or_undo(
  settings: RunSettings,
  workdir: str,
  stop: Callable[[], bool],
  changes: tuple[Change, ...],
) -> Run:
  """A run whose stages can begin; where they cannot, its workdir is left as it was before."""
  with _undone_where_it_fails(workdir):
    _forget(workdir, changes)
    return prepare(settings, workdir, stop)


@contextlib.contextmanager
def _undone_where_it_fails(workdir: str) -> Iterator[None]:
  """Leaves a workdir as it was before, where preparing fails."""
  before = names_in(workdir)
  paths = [os.path.join(workdir, name) for name in PREPARED]
  contents = {path: _read_bytes(path) for path in paths}
  try:
    yield
  except BaseException:
    if meshes.primary():
      with contextlib.suppress(OSError):  # what went wrong first is what matters
        _restore(contents)
        abandon(workdir, before)
    raise


def _read_bytes(path: str) -> bytes | None:
  if not os.path.isfile(path):
    return None
  with open_regular(path) as file:
    return file.read()


def _restore(contents: dict[str, bytes | None]) -> None:
  for path, content in contents.items():
    if content == _read_bytes(path):
      continue
    if content is None:
      os.remove(path)
    else:
      with whole(path) as temporary, open(temporary, 'wb') as file:
        file.write(content)


def _forget(workdir: str, changes: tuple[Change, ...]) -> None:
  """Removes a split of other images and a record of other weights, which no stage has used.

  What a start left that was killed before it had claimed the workdir is of nobody knows what.
  """
  is_unclaimed = not os.path.exists(os.path.join(workdir, 'config.json'))
  for name, fields in PREPARED.items():
    path = os.path.join(workdir, name)
    is_of_others = is_unclaimed or any(is_among(change.name, fields) for change in changes)
    if is_of_others and meshes.primary() and os.path.exists(path):
      os.remove(path)


def prepare(
  given: RunSettings,
  workdir: str,
  stop: Callable[[], bool] = never,
) -> Run:
  """Loads the backbone, gives it a new head for the task, and adapts it.

  Args:
    given: what `check_config` returned; the run has batches that the images fill.
    workdir: folder of the run; nothing is written but a split of the user's own images, and which
      weights it began with (`PREPARED`).
    stop: see `experiment.run`.

  Raises:
    ValueError, OSError: what any stage would stumble over, as far as it can be known before.
  """
  mesh = meshes.over_devices(given.mesh.devices, given.mesh.fsdp)
  task, path = fetch_task(given, workdir)
  counts = early_checks.count_images(task)
  settings = early_checks.fit_batches(given, counts, mesh)
  model, params, metadata = load_backbone(settings.model, path, task.num_classes)
  size = metadata['image_size']
  settings.augment.check_size(size)
  if settings.data.cache is not None:
    pipeline.require_writable(settings.data.cache)
  adapted, other = adapt_spaces(settings, model, size, mesh)
  early_checks.check_ranks(adapted)
  require_feasible(adapted.spec, settings.budget)
  variables = variables_before_training(adapted, params, settings, mesh)
  beside = None
  if other is not None:
    beside = Place(other, other.init(stream_key(settings.seed, Stream.INIT), variables['params']))
  largest = adapted.count_params(adapted.spec.num_codes - 1)
  log.info(
    '%s: %d adapted layers of a %s, subnets of up to %s parameters',
    task.name,
    len(adapted.spec),
    type(model).__name__,
    f'{largest:,}',
  )
  log.info('%s', describe(adapted, variables, mesh))
  run = Run(
    settings=settings,
    workdir=workdir,
    task=task,
    adapted=adapted,
    variables=variables,
    metadata=metadata,
    seconds=read_seconds(workdir),
    stop=lambda: meshes.on_any(stop()),
    beside=beside,
    mesh=mesh,
  )
  early_checks.check_stages(run, counts)
  run = dataclasses.replace(run, task=_open_images(run))
  left = early_checks.count_images(run.task)  # fewer, where broken ones are left out
  if left != counts:
    run = dataclasses.replace(run, settings=early_checks.fit_batches(given, left, mesh))
    early_checks.check_stages(run, left)
  return run


def _open_images(run: Run) -> Task:
  """The task, after each of its images was opened once; without those that can be left out.

  Which can be decoded is remembered in the workdir, but for that of a finished run.
  """
  record = run.path('images.npz') if run.workdir else None
  is_finished = os.path.exists(run.path('result.json'))
  writes = meshes.primary() and not is_finished
  skip_broken = run.settings.data.skip_broken
  with meshes.primary_first('images'):
    if record and writes:
      os.makedirs(run.workdir, exist_ok=True)
    has_begun = bool(run.workdir) and last_begun(EVERY_STAGE, [run.workdir]) is not None
    options = {'skip_broken': skip_broken, 'write': writes, 'has_begun': has_begun}
    return with_readable_images(run.task, record, **options)


def read_seconds(workdir: str) -> dict[str, float]:
  """The time of every stage so far."""
  path = os.path.join(workdir, 'seconds.json')
  if not os.path.exists(path):
    return {}
  return read_record(path, 'seconds', dict[str, float], 'remove it; the times alone are lost')


def describe(adapted: Adapted, variables: Any, mesh: jax.sharding.Mesh | None = None) -> str:
  """One line on devices, mesh, precision, and how many parameters of which kind there are."""
  trainable, frozen = adapted.split(variables)
  axes = ', '.join(f'{name} {size}' for name, size in mesh.shape.items()) if mesh else 'none'
  computed = getattr(adapted.model, 'dtype', None)
  precision = jnp.dtype(computed).name if computed else _dtypes(trainable)
  return (
    f'{jax.device_count()} x {jax.devices()[0].device_kind}, mesh: {axes}; '
    f'parameters: {count(trainable[COLLECTION]):,} in supports, '
    f'{count(trainable["params"]):,} in heads ({_dtypes(trainable)}), '
    f'{count(frozen):,} frozen ({_dtypes(frozen)}); computed in {precision}'
  )


def count(tree: Any) -> int:
  """Number of parameters in a tree, or in its shapes."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _dtypes(tree: Any) -> str:
  return ', '.join(sorted({str(leaf.dtype) for leaf in jax.tree.leaves(tree)}))
