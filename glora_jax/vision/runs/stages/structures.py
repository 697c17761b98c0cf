"""Trainings that start from the pretrained model: the structure of the config, and baselines.

The structure comes from one gradient, from scores of other tasks of the backbone, from a preset's
name or from a file; or the whole base is trained. All are trained with one recipe. After a gradient
it is shorter, by the epochs that the gradient counts as (`AllocationSettings.epochs`).
"""

from __future__ import annotations

import logging
import os
from typing import Any

import numpy as np

from glora_jax import mesh as meshes
from glora_jax.checks import printable, shown
from glora_jax.errors import UserError
from glora_jax.files import (
  STAMP,
  check_stamp,
  damaged,
  load_json,
  read_json,
  reading,
  write_json,
)
from glora_jax.method.adapted import Adapted
from glora_jax.method.genomes import count_params, genome_from_json, genome_to_json
from glora_jax.method.presets import genome_of
from glora_jax.method.space import Spec
from glora_jax.search.allocation import Allocation
from glora_jax.search.choice import require_something
from glora_jax.vision.runs.backbone import Model, Stream
from glora_jax.vision.runs.context import Context
from glora_jax.vision.runs.settings import (
  FINETUNING,
  GENOME_ENDING,
  GRADIENT,
  SEARCH,
  TRANSFER,
  RunSettings,
)
from glora_jax.vision.runs.stage import Stage
from glora_jax.vision.runs.stages.allocation import (
  allocate_transfer,
  choose_within,
  stages_of_gradient,
)
from glora_jax.vision.runs.stages.training import MEASURED, FullFineTuning, train
from glora_jax.vision.structure_names import file_name

log = logging.getLogger(__name__)

FOLDER = 'structure'
FILE = 'file'  # the name of a structure from a file
_REMEDY = 'pass the genome.json of a run'
READS_OF_TRANSFER = ('allocation.transfer', 'allocation.max_rank')


def stages_of_structure(settings: RunSettings) -> tuple[Stage, ...]:
  """The stages that find a structure without a search."""
  if settings.has_gradient:
    structure = Stage(
      FOLDER,
      _choose,
      reads=('budget',),
      after=('gradient',),
      check=_check_budget,
      images=(),
    )
    return *stages_of_gradient(settings), structure
  if settings.structure in (SEARCH, FINETUNING):
    return ()
  reads = ('budget', *(READS_OF_TRANSFER if settings.structure == TRANSFER else ()))
  return (Stage(FOLDER, _look_up, reads=reads, check=_resolve, images=()),)


def stages_of_trainings(settings: RunSettings) -> dict[str, Stage]:
  """The stages that train fixed structures from the pretrained model, by the structures' names.

  They are the linear probe, the baselines, and the structure of the config.
  """
  given = FILE if settings.structure.endswith(GENOME_ENDING) else settings.structure
  baselines = () if settings.presets is None else ('linear', *settings.presets)
  names = dict.fromkeys((*baselines, given))
  names.pop(SEARCH, None)
  return {name: _stage_of_training(settings, name, is_given=name == given) for name in names}


def _stage_of_training(settings: RunSettings, name: str, *, is_given: bool) -> Stage:
  folder = f'training/{file_name(name)}'
  is_found = name == GRADIENT or (is_given and name != FINETUNING)

  def learner_of(context: Context) -> Adapted:
    place = context.place(name)
    return FullFineTuning.of(place.adapted) if name == FINETUNING else place.adapted.fix(name)

  def check(context: Context) -> None:
    if is_found:
      return
    learner = learner_of(context)
    if is_given:
      _require_within_budget(context.settings, learner.count_params())

  def run(context: Context, structure: Model | None = None) -> Model:
    if structure is None:
      structure = Model(learner_of(context), context.place(name).variables)
    recipe, split = context.settings.training, context.settings.final_split
    if name == GRADIENT and structure.allocation is not None:
      recipe = context.settings.allocation.shortened(recipe, structure.allocation.borrowed > 0)
    key = context.key(Stream.TRAINING if is_given else Stream.BASELINE)
    return train(context, folder, structure, recipe, split, key)

  return Stage(
    folder,
    run,
    reads=('train_on', *MEASURED, *(('allocation.',) if name == GRADIENT else ())),
    after=(FOLDER,) if is_found else (),
    check=check,
    splits=(settings.final_split,),
    images=('val',),
  )


def _check_budget(context: Context) -> None:
  """Raises ValueError if the budget is too small for any unit."""
  require_something(context.place(GRADIENT).adapted.spec, context.settings.budget)


def _choose(context: Context, found: Allocation) -> Model:
  """The gradient's structure within the budget, with the head of the linear probe."""
  allocation = choose_within(context.settings.budget, found)
  if allocation.proposed:
    log.info('No budget given: using the knee of the curve, %s parameters.', f'{found.budget:,}')
  _write(context, found.spec, allocation.genome)
  learner = context.place(GRADIENT).adapted.fix(allocation.genome)
  return Model(learner, allocation.variables, allocation=allocation)


def _write(context: Context, spec: Spec, genome: np.ndarray) -> None:
  """Writes a structure, for people and later starts, unless an earlier start has written it."""
  path = context.path(FOLDER, 'genome.json')
  with meshes.primary_first(FOLDER):
    if meshes.primary() and not os.path.exists(path):
      write_json(path, genome_to_json(spec, genome), 'genome')


def _look_up(context: Context) -> Model:
  """The structure of a preset, a file or transferred scores; the file may no longer exist.

  Raises:
    ValueError: the file has another genome than when the job began.
  """
  path, settings = context.path(FOLDER, 'genome.json'), context.settings
  place = context.place(settings.structure)
  named, allocation = _resolve(context)
  if named is not None:
    _write(context, place.adapted.spec, named)
  content = read_json(path, 'genome')
  with reading(path):
    genome = genome_from_json(place.adapted.spec, content)
  if named is not None and not np.array_equal(named, genome):
    raise UserError(
      f"structure='{printable(settings.structure)}' has changed since this job began with the one "
      f'in {path}; restore that one, or choose another --workdir.'
    )
  return Model(place.adapted.fix(genome), place.variables, allocation=allocation)


def _resolve(context: Context) -> tuple[np.ndarray | None, Allocation | None]:
  """The genome that the config names, and the allocation if it is from transferred scores.

  Both are None if the file no longer exists but the workdir has the genome.

  Raises:
    ValueError: it does not fit the model or the budget.
    FileNotFoundError: the file does not exist.
  """
  name = context.settings.structure
  spec = context.place(name).adapted.spec
  try:
    if name == TRANSFER:
      allocation = allocate_transfer(context)
      return allocation.genome, allocation
    genome = genome_of(spec, _read_genome(name) if name.endswith(GENOME_ENDING) else name)
  except FileNotFoundError:
    if not os.path.exists(context.path(FOLDER, 'genome.json')):
      raise
    return None, None
  except ValueError as error:
    if not name.endswith(GENOME_ENDING):
      raise
    raise ValueError(
      f"structure='{printable(name)}' does not fit this model ({error}); give one for its "
      f'{len(spec)} layers, with ranks in space.ranks.'
    ) from error
  _require_within_budget(context.settings, count_params(spec, genome))
  return genome, None


def _read_genome(path: str) -> Any:
  """The content of a genome's file, which a run or a user wrote; only a run's has a stamp."""
  path = os.path.expanduser(path)
  if not os.path.isfile(path):
    raise FileNotFoundError(f"structure='{printable(path)}' is not a file; {_REMEDY}.")
  content = load_json(path, _REMEDY)
  if isinstance(content, dict) and STAMP in content:
    check_stamp(path, content.pop(STAMP), 'genome', _REMEDY)
  if not isinstance(content, dict | list):
    raise damaged(path, f'it holds {shown(content)}', _REMEDY)
  return content


def _require_within_budget(settings: RunSettings, params: int) -> None:
  """Raises ValueError if the config's structure has more parameters than the budget."""
  if settings.budget is not None and params > settings.budget:
    raise ValueError(
      f"structure='{settings.structure}' has {params:,} parameters, more than "
      f'budget={settings.budget}; raise the budget, or give a smaller structure.'
    )
