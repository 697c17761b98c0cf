"""With what a run was made, process by process: noted as each begins, kept with the result."""

from __future__ import annotations

import os
from typing import TypedDict

from glora_jax.files import Path, write_json
from glora_jax.mesh import primary
from glora_jax.records import read_record
from glora_jax.reports.provenance import Made, current

FILE = 'provenance.json'


class _Record(TypedDict):
  processes: list[Made]


def note(workdir: Path, made: Made | None = None) -> None:
  """Adds a process to `provenance.json`, where none before it was alike.

  Args:
    workdir: folder of the run.
    made: with what the process made its part; None for this process.

  Raises:
    ValueError, OSError: the file is damaged, of a later version, or cannot be written.
  """
  processes, made = recorded(workdir), made or current()._asdict()
  if made not in processes and primary():
    write_json(os.path.join(workdir, FILE), {'processes': [*processes, made]}, 'provenance')


def recorded(workdir: Path) -> list[Made]:
  """What a run's result says of the processes that made it, in their order."""
  path = os.path.join(workdir, FILE)
  if not os.path.exists(path):
    return []
  remedy = 'remove it; with what the run was made is all that is lost'
  return read_record(path, 'provenance', _Record, remedy)['processes']
