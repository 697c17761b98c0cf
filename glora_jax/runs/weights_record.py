"""Which weights a run began with: a name, a path or an address may come to mean others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TypedDict

from glora_jax.files import Path, sha256_of, write_json, writing
from glora_jax.mesh import primary
from glora_jax.models import hub, weights
from glora_jax.models.fetch import fetch
from glora_jax.models.folder import locate
from glora_jax.records import read_record
from glora_jax.runs.sections import ModelSettings
from glora_jax.runs.used_fields import EVERY_STAGE, last_begun

FILE = 'weights.json'


class _Record(TypedDict):
  weights: str
  revision: str
  sha256: str


def find_weights(settings: ModelSettings, workdir: Path) -> str:
  """The path of a run's weights on this machine, downloaded where they are not there yet.

  The checksum of their file is written to `weights.json`, and a run that goes on has the same
  weights. The branch of a name on the hub moves on; so the commit that it stood for at first is
  written there, too, and the run goes on with that.

  Args:
    settings: the section of the config.
    workdir: folder of the run.

  Raises:
    ValueError: the weights are not those that were recorded or are expected; see also `fetch`.
  """
  if settings.weights == weights.EMBEDDED:
    return fetch(settings.weights, settings.sha256)
  record = _read(workdir)
  if record and record['weights'] != settings.weights:  # which no stage has used
    record = {}
  if hub.is_hub_name(settings.weights):
    return _find_on_hub(settings, workdir, record)
  path = fetch(settings.weights, settings.sha256)
  # `fetch` has held the file against a given sum.
  sha256 = settings.sha256.lower() if settings.sha256 else sha256_of(locate(path))
  if not record:
    _write(workdir, settings.weights, '', sha256)
  elif record['sha256'] != sha256:
    raise ValueError(
      f'{path} has SHA-256 {sha256}, and this run began with weights of {record["sha256"]}; bring '
      'these back, or take a new --workdir.'
    )
  return path


def _find_on_hub(settings: ModelSettings, workdir: Path, record: Mapping[str, str]) -> str:
  """The folder of the commit that a run began with."""
  name = hub.parse(settings.weights)
  if record:
    name = name._replace(revision=record['revision'])
  snapshot = hub.snapshot(str(name))
  pinned = name._replace(revision=snapshot.revision)
  folder = fetch(str(pinned), settings.sha256 or record.get('sha256'))
  if not record:
    _write(workdir, settings.weights, snapshot.revision, sha256_of(snapshot.tensors))
  return folder


def _write(workdir: Path, name: str, revision: str, sha256: str) -> None:
  # Of a run that has begun without a record, nobody knows what it began with.
  if primary() and last_begun(EVERY_STAGE, [workdir]) is None:
    with writing(workdir):
      os.makedirs(workdir, exist_ok=True)
    record = _Record(weights=name, revision=revision, sha256=sha256)
    write_json(os.path.join(workdir, FILE), record, 'weights')


def recorded(workdir: Path) -> dict[str, str]:
  """What a run's result says of its weights beside their name, where they are on the hub."""
  record = _read(workdir)
  if not record.get('revision'):
    return {}
  return {f'weights_{field}': record[field] for field in ('revision', 'sha256')}


def _read(workdir: Path) -> dict[str, str]:
  path = os.path.join(workdir, FILE)
  return read_record(path, 'weights', _Record) if os.path.exists(path) else {}
