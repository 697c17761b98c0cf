"""Which weights a run began with, where they are a name that may come to mean others."""

from __future__ import annotations

import os
from typing import TypedDict

from glora_jax.files import Path, sha256_of, write_json
from glora_jax.mesh import primary
from glora_jax.models import hub, weights
from glora_jax.models.fetch import fetch
from glora_jax.records import read_record
from glora_jax.runs.sections import ModelSettings

FILE = 'weights.json'


class _Record(TypedDict):
  weights: str
  revision: str
  sha256: str


def find_weights(settings: ModelSettings, workdir: Path) -> str:
  """The path of a run's weights on this machine, downloaded where they are not there yet.

  The branch of a name on the hub moves on. So the commit that it stood for at first, and the
  checksum of its file, are written to `weights.json`, and the run goes on with that commit.

  Args:
    settings: the section of the config.
    workdir: folder of the run.

  Raises:
    ValueError: the weights are not those that were recorded or are expected; see also `fetch`.
  """
  if settings.weights == weights.EMBEDDED:
    return fetch(weights.EMBEDDED_FILE, settings.sha256)
  if not hub.is_hub_name(settings.weights):
    return fetch(settings.weights, settings.sha256)
  record = _read(workdir)
  if record and record['weights'] != settings.weights:  # which no stage has used
    record = {}
  name = hub.parse(settings.weights)
  if record:
    name = name._replace(revision=record['revision'])
  snapshot = hub.snapshot(str(name))
  pinned = name._replace(revision=snapshot.revision)
  folder = fetch(str(pinned), settings.sha256 or record.get('sha256'))
  if not record and primary():
    record = {'revision': snapshot.revision, 'sha256': sha256_of(snapshot.tensors)}
    write_json(os.path.join(workdir, FILE), {'weights': settings.weights, **record}, 'weights')
  return folder


def recorded(workdir: Path) -> dict[str, str]:
  """What a run's result says of its weights beside their name; nothing where that says it all."""
  record = _read(workdir)
  return {f'weights_{field}': record[field] for field in ('revision', 'sha256') if record}


def _read(workdir: Path) -> dict[str, str]:
  path = os.path.join(workdir, FILE)
  return read_record(path, 'weights', _Record) if os.path.exists(path) else {}
