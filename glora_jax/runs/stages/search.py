"""The stage that searches a subnet."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from glora_jax import mesh as meshes
from glora_jax.data import pipeline
from glora_jax.files import damaged, read_arrays, write_arrays
from glora_jax.method.space import Spec
from glora_jax.records import Array, read_array_record
from glora_jax.runs.monitoring import profiled
from glora_jax.runs.run import Run
from glora_jax.runs.workdir import Stopped
from glora_jax.search import evolution
from glora_jax.search.archive import Archive
from glora_jax.search.early_stopping import hardest_first, make_stopping_scorer
from glora_jax.search.scoring import make_image_scorer

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
  options = _options(run, variables, run.path(folder, 'order.npz'), archive)
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
      key=key,
      settings=run.settings.search,
      budget=budget,
      archive=archive,
      on_generation=on_generation,
      progress=meshes.primary(),
      **options,
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


def _options(run: Run, variables: Any, order_path: str, archive: Archive | None) -> dict[str, Any]:
  """How `evolve` scores subnets, and what its mode needs beside that."""
  search, split = run.settings.search, run.search_split
  images, _ = run.data(split)
  resident = not isinstance(images, pipeline.Stream)
  options = {'score': functools.partial(run.score, variables, split=split)}
  # A mesh scores all subnets to the end, and selects the same.
  if search.mode == 'paper' and search.stop_early and resident and run.mesh is None:
    first = None if archive is None else archive.genomes[archive.generation == 0]
    stopping = EarlyStopping(run, variables, order_path, first)
    options = {'score': stopping.score_all, 'stopping_score': stopping.score}
  return options


@dataclasses.dataclass(frozen=True, eq=False)
class EarlyStopping:
  """Scores a search whose subnets are left as soon as they cannot become parents.

  Attributes:
    run: the run.
    variables: the trained supernet's variables.
    path: file of the images' order: those that were hardest for the first generation come first.
    first: genomes of the first generation of a search that is resumed; None where it begins.
  """

  run: Run
  variables: Any
  path: str
  first: np.ndarray | None = None

  def score_all(self, genomes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores the first generation to the end, and writes down which images were hardest for it."""
    images, labels = self.run.data(self.run.search_split)
    scorer = make_image_scorer(self.run.adapted, self.run.preprocess)
    correct, losses = map(np.asarray, scorer(self.variables, genomes, images, labels))
    hardness = losses if self._fitness == 'loss' else ~correct
    write_arrays(self.path, {'order': hardest_first(hardness)}, 'order')
    return correct.sum(1), losses.sum(1)

  def score(self, genomes: np.ndarray, valid: np.ndarray, parents: np.ndarray) -> tuple:
    """Scores a later generation; see `evolution.StoppingScore`."""
    return self._scorer(self.variables, genomes, *self._ordered, valid, parents)

  @property
  def _fitness(self) -> str:
    return self.run.settings.search.fitness

  @functools.cached_property
  def _scorer(self) -> Callable:
    return make_stopping_scorer(self.run.adapted, self.run.preprocess, fitness=self._fitness)

  @functools.cached_property
  def _ordered(self) -> tuple[jax.Array, jax.Array]:
    """The images and labels of the search split, hardest first."""
    images, labels = self.run.data(self.run.search_split)
    if self.first is not None and not os.path.exists(self.path):
      self.score_all(self.first)
    order = self._read_order(len(labels))
    return images[order], labels[order]

  def _read_order(self, num_images: int) -> np.ndarray:
    """The order of the images that `score_all` wrote."""
    remedy = 'remove it, and it is made again'
    arrays = read_array_record(self.path, 'order', {'order': Array('i', (num_images,))}, remedy)
    if (np.sort(arrays['order']) != np.arange(num_images)).any():
      raise damaged(self.path, f'it is no order of {num_images} images', remedy)
    return arrays['order']
