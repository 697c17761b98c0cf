"""The stage that searches a subnet."""

from __future__ import annotations

import functools
import logging
import os
from typing import Any

import jax

from glora_jax import mesh as meshes
from glora_jax.files import damaged, read_arrays, write_arrays
from glora_jax.method.space import Spec
from glora_jax.runs.monitoring import profiled
from glora_jax.runs.run import Run
from glora_jax.runs.workdir import Stopped
from glora_jax.search import evolution
from glora_jax.search.archive import Archive

log = logging.getLogger(__name__)


def run_search(
  run: Run, variables: Any, *, budget: int | None, key: jax.Array, folder: str = 'search'
) -> Archive:
  """Searches on the search split, with the supernet's weights.

  Args:
    run: the run.
    variables: the trained supernet's variables.
    budget: most trained parameters; None for no limit.
    key: random key.
    folder: folder in the workdir for the archive, which is saved after every generation.

  Returns:
    All subnets that were scored.

  Raises:
    Stopped: the run was asked to stop.
  """
  path = run.path(folder, 'archive.npz')
  os.makedirs(run.path(folder), exist_ok=True)
  archive = None
  if os.path.exists(path):
    archive = read_archive(path, run.adapted.spec)
    log.info('search: resumed after generation %d', archive.generation[-1])
  profiling = profiled(run.path('profile'), run.settings.watch.profile == 'search')
  with profiling as dispatched:

    def on_generation(archive: Archive) -> None:
      if meshes.primary():
        write_arrays(path, archive.arrays(), 'archive')
      dispatched()
      if run.stop():
        raise Stopped(f'search after generation {archive.generation[-1]}', run.workdir)

    return evolution.evolve(
      run.adapted.spec,
      functools.partial(run.score, variables, split=run.search_split),
      key,
      settings=run.settings.search,
      budget=budget,
      archive=archive,
      on_generation=on_generation,
      progress=meshes.primary(),
    )


def read_archive(path: str, spec: Spec) -> Archive:
  """The archive of a search that was interrupted.

  Raises:
    ValueError: the file is damaged, of a later version, or of another space.
  """
  arrays = read_arrays(path, 'archive')
  try:
    return Archive.from_arrays(arrays, spec)
  except ValueError as error:
    raise damaged(path, error) from error
