"""The stage that searches a subnet."""

from __future__ import annotations

import functools
import logging
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from glora_jax import mesh as meshes
from glora_jax.data import pipeline
from glora_jax.files import read_arrays, write_arrays
from glora_jax.runs.monitoring import profiled
from glora_jax.runs.run import Run
from glora_jax.runs.workdir import Stopped
from glora_jax.search import evolution
from glora_jax.search.archive import Archive
from glora_jax.search.early_stopping import hardest_first, make_stopping_scorer
from glora_jax.search.guidance import make_guide
from glora_jax.search.scoring import make_image_scorer

log = logging.getLogger(__name__)


def run_search(
  this: Run, variables: Any, *, budget: int | None, key: jax.Array, folder: str = 'search'
) -> Archive:
  """The search on the search split, with the supernet's weights; its archive is saved in the folder after every generation."""
  settings, path, split = (
    evolution.Evolution(**this.config.search),
    this.path(folder, 'archive.npz'),
    this.search_split,
  )
  os.makedirs(this.path(folder), exist_ok=True)
  archive = Archive(**read_arrays(path)) if os.path.exists(path) else None
  score = lambda genomes: this.score(variables, genomes, split)
  images, labels = this.data(split)
  resident = not isinstance(images, pipeline.Stream)
  options = {}
  if (
    settings.stop_early and settings.mode == 'paper' and resident and this.mesh is None
  ):  # a mesh scores all to the end, and selects the same
    score, options['stopping_score'] = _stopping(
      this, variables, settings.fitness, this.path(folder, 'order.npz')
    )
  if settings.mode == 'guided':
    if not resident:
      raise ValueError(
        "search.mode='guided' takes the gradient on resident images; raise data.max_resident, or take another mode."
      )
    guide = make_guide(this.adapted, this.preprocess, fitness=settings.fitness)
    options['guide'] = lambda genome: meshes.on_host(
      guide(variables, jnp.asarray(genome), images, labels)
    )
  if archive:
    log.info('search: resumed after generation %d', archive.generation[-1])
  with profiled(this.path('profile'), this.config.watch.profile == 'search') as dispatched:

    def on_generation(archive):
      if meshes.primary():
        write_arrays(path, archive.arrays())
      dispatched()
      if this.stop():
        raise Stopped(f'search after generation {archive.generation[-1]}', this.workdir)

    return evolution.evolve(
      this.adapted.spec,
      score,
      key,
      settings,
      budget=budget,
      archive=archive,
      on_generation=on_generation,
      progress=meshes.primary(),
      **options,
    )


def _stopping(this, variables, fitness, path):
  """(score of the first generation, stopping score of the others), on the images that were hardest for the first, first."""
  images, labels = this.data(this.search_split)
  whole, stopping = (
    make_image_scorer(this.adapted, this.preprocess),
    make_stopping_scorer(this.adapted, this.preprocess, fitness=fitness),
  )

  def first(genomes):
    right, losses = (np.asarray(x) for x in whole(variables, genomes, images, labels))
    write_arrays(path, {'order': hardest_first(losses if fitness == 'loss' else ~right)})
    return right.sum(1), losses.sum(1)

  @functools.cache
  def ordered():
    order = read_arrays(path)['order']
    return images[order], labels[order]

  return first, lambda genomes, valid, parents: stopping(
    variables, genomes, *ordered(), valid, parents
  )
