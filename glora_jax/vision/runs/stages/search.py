"""The stages of a run with a search: supernet, search, and finetuning of the best structure."""

from __future__ import annotations

import functools
import logging
import os
from typing import Any

import numpy as np

from glora_jax import mesh as meshes
from glora_jax.files import read_tensors, reading, write_tensors
from glora_jax.method.genomes import check_genome
from glora_jax.method.space import Spec
from glora_jax.search import evolution
from glora_jax.search.archive import Archive
from glora_jax.vision.files import Array, check_arrays
from glora_jax.vision.runs.backbone import Model, Stream
from glora_jax.vision.runs.context import Context, search_split_of, train_split_of
from glora_jax.vision.runs.evaluation import score
from glora_jax.vision.runs.settings import RunSettings
from glora_jax.vision.runs.stage import Stage
from glora_jax.vision.runs.stages.training import MEASURED, TRAINING, train
from glora_jax.vision.runs.workdir import Stopped

log = logging.getLogger(__name__)


def stages_of_search(settings: RunSettings) -> tuple[tuple[Stage, ...], tuple[Stage, ...]]:
  """The stages that come before the baselines, and those after them.

  The supernet is trained with fresh genomes for every step (section 3.3 of the paper).
  """
  supernet = Stage(
    'supernet',
    _train_supernet,
    reads=('sampling.', *TRAINING),
    splits=(train_split_of(settings),),
    images=(),
    shared=True,
  )
  search = Stage(
    'search',
    _search,
    reads=('budget', 'search.'),
    after=('supernet',),
    images=(search_split_of(settings),),
  )
  if not settings.finetunes:
    return (supernet,), (search,)
  finetune = Stage(
    'finetune',
    _finetune,
    reads=('finetune.', 'search.fitness', 'train_on', *MEASURED),
    after=('supernet', 'search'),
    splits=(settings.final_split,),
    images=('val',),
  )
  return (supernet,), (search, finetune)


def _train_supernet(context: Context) -> Any:
  """The variables of the trained supernet."""
  supernet = Model(context.adapted, context.variables)
  recipe, key = context.settings.training, context.key(Stream.SUPERNET)
  return train(context, 'supernet', supernet, recipe, context.train_split, key).variables


def _search(context: Context, supernet: Any) -> Archive:
  """All structures that were scored on the search split, with the supernet's weights.

  Their archive is written after every generation.
  """
  path, settings = context.path('search', 'archive.safetensors'), context.settings
  archive = None
  if os.path.exists(path):
    archive = read_archive(path, context.adapted.spec)
    if archive.generation[-1] < settings.search.generations:
      log.info('search: resumed after generation %d', archive.generation[-1])

  def on_generation(archive: Archive) -> None:
    if meshes.primary():
      write_tensors(path, archive.arrays(), 'archive', {})
    context.saved()
    context.dispatched()
    if context.stop():
      raise Stopped(f'search after generation {archive.generation[-1]}', context.workdir)

  return evolution.evolve(
    context.adapted.spec,
    functools.partial(score, context, supernet, split=context.search_split),
    context.key(Stream.SEARCH),
    settings=settings.search,
    budget=settings.budget,
    archive=archive,
    on_generation=on_generation,
    progress=meshes.primary(),
  )


def _finetune(context: Context, supernet: Any, archive: Archive) -> Model:
  """The best structure, finetuned from the supernet's weights."""
  settings, key = context.settings, context.key(Stream.FINETUNE)
  best = Model(context.adapted.fix(archive.best(settings.search.fitness)), supernet)
  return train(context, 'finetune', best, settings.finetuning, settings.final_split, key)


def read_archive(path: str, spec: Spec) -> Archive:
  """The archive of a search that was interrupted, or has ended.

  Args:
    path: path of the archive.
    spec: the layers of its genomes.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is damaged, of a later version, or of another space.
  """
  arrays, _ = read_tensors(path, 'archive')
  empty = Archive.empty(spec).arrays()
  with reading(path):
    check_arrays(
      arrays,
      {name: Array(x.dtype.kind, ('structure', *x.shape[1:])) for name, x in empty.items()},
    )
    check_genome(spec, arrays['genomes'])
    if not len(arrays['genomes']) or arrays['correct'].min() < 0:
      raise ValueError('it holds no structure, or a negative number of right answers')
    generation = arrays['generation']
    if generation[0] != 0 or not np.isin(np.diff(generation), (0, 1)).all():
      raise ValueError('its generations are not consecutive')
  return Archive(**{name: arrays[name].astype(x.dtype) for name, x in empty.items()})
