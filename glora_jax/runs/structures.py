"""What a run trains alone: the structure that its config names, and the rows beside the winner.

A structure comes from one gradient, from a preset's name or from a file. It is trained from the
pretrained model by one recipe: `config.training`, or the supernet's where it stands beside a
search. What was paid for a gradient, the training has less (`AllocationSettings.epochs`).
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any, TypedDict

import numpy as np

from glora_jax import mesh as meshes
from glora_jax.files import STAMP, check_stamp, damaged, load_json, write_json
from glora_jax.limits import printable
from glora_jax.method.draws import check_budget
from glora_jax.method.genomes import canonicalize, count_params, genome_from_json, genome_to_json
from glora_jax.method.presets import file_name, preset
from glora_jax.method.space import Spec
from glora_jax.records import read_record
from glora_jax.runs.run import Candidate, Place, Run, Stream
from glora_jax.runs.sections import GENOME_ENDING, GRADIENT, SEARCH
from glora_jax.runs.stages.allocation import (
  allocate_once,
  indices_of_run,
  is_allocated,
  start_compiling,
)
from glora_jax.runs.stages.heads import warm_head
from glora_jax.runs.stages.prior import prior_of
from glora_jax.runs.stages.training import TrainingStage, train
from glora_jax.search.allocated import Allocation
from glora_jax.search.choice import require_something
from glora_jax.training.recipe import Recipe

FOLDER = 'structure'


class _Genome(TypedDict):
  genome: list[list[int]]
  layers: list[dict[str, str]]


@dataclasses.dataclass(frozen=True, eq=False)
class Structure:
  """A subnet that is trained alone.

  Attributes:
    place: the space that it is of.
    genome: its alleles, int8 [layer, 5].
    variables: what its training starts from.
    allocation: how it was read off a gradient; None where it was given.
  """

  place: Place
  genome: np.ndarray
  variables: Any
  allocation: Allocation | None = None


def find(run: Run) -> Structure | None:
  """The structure that the config names, or the gradient's where it stands beside a search.

  What an earlier call found is read from the workdir.

  Returns:
    The structure; None where the run does nothing but search.

  Raises:
    ValueError: it cannot be had, or has more parameters than the budget; nothing was trained yet.
    Stopped: the run was asked to stop.
  """
  settings = run.settings
  if settings.has_gradient:
    return _of_gradient(run)
  if settings.structure == SEARCH:
    return None
  with run.stage('structure'):
    place = run.place(settings.structure)
    return Structure(place, _given_genome(run, place.adapted.spec), place.variables)


def _of_gradient(run: Run) -> Structure:
  """The structure that the gradient asks for, with the head that it was taken with."""
  place = run.place(GRADIENT)
  budget = check_budget(run.settings.budget)
  require_something(place.adapted.spec, budget)
  key = run.key(Stream.STRUCTURE)
  with run.stage('head'):
    indices_of_run(run, key)  # refuses too few images
    ahead = None if is_allocated(run, FOLDER) else start_compiling(run, place)
    warm = Place(place.adapted, warm_head(run, place))
  with run.stage('structure'):
    options = {'budget': budget, 'ahead': ahead}
    prior = prior_of(run, place, key=run.key(Stream.PRIOR), **options)
    allocation = allocate_once(run, warm, key=key, folder=FOLDER, prior=prior, **options)
  return Structure(place, allocation.genome, allocation.variables, allocation)


def _given_genome(run: Run, spec: Spec) -> np.ndarray:
  """The genome of a preset or a file; the one in the workdir where the run has begun."""
  path = run.path(FOLDER, 'genome.json')
  with meshes.primary_first(FOLDER):
    if not os.path.exists(path):
      genome = named_genome(spec, run.settings.structure, check_budget(run.settings.budget))
      os.makedirs(run.path(FOLDER), exist_ok=True)
      write_json(path, genome_to_json(spec, genome), 'genome')
  return _read_again(spec, path)


def _read_again(spec: Spec, path: str) -> np.ndarray:
  """The genome that a run has written down.

  Raises:
    ValueError: the file is damaged, of a later version, or of another model.
  """
  content = read_record(path, 'genome', _Genome)
  try:
    return genome_from_json(spec, content)
  except ValueError as error:
    raise damaged(path, error) from error


def named_genome(spec: Spec, name: str, budget: int | None) -> np.ndarray:
  """The genome of a structure that is given.

  Args:
    spec: the layers.
    name: a preset's name, or the path of a genome file, `genome.json` of a run for instance.
    budget: most trained parameters; None for no limit.

  Returns:
    Canonical genome, int8 [rows, 5].

  Raises:
    ValueError: the model cannot have it, or it has more parameters than the budget.
    FileNotFoundError: there is no such file.
  """
  genome = _read(spec, name) if name.endswith(GENOME_ENDING) else preset(spec, name)
  params = count_params(spec, genome)
  if budget is not None and params > budget:
    raise ValueError(
      f"structure='{name}' has {params:,} parameters, more than budget={budget}; raise the budget, "
      'or take a smaller structure.'
    )
  return genome


def _read(spec: Spec, path: str) -> np.ndarray:
  path = os.path.expanduser(path)
  if not os.path.isfile(path):
    raise FileNotFoundError(
      f"structure='{printable(path)}' is no file; give the genome.json of a run, 'search', "
      "'gradient', or the name of a preset."
    )
  try:
    content = load_json(path, 'give what genome_to_json returned')
    if isinstance(content, dict) and STAMP in content:  # what a user wrote has none
      check_stamp(path, content.pop(STAMP), 'genome')
    return canonicalize(spec, genome_from_json(spec, content))
  except ValueError as error:
    raise ValueError(
      f"structure='{printable(path)}' holds no genome of this model ({error}); it needs one with a "
      f'row for each of its {len(spec)} layers, and ranks that space.ranks has.'
    ) from error


def train_alone(run: Run, structure: Structure) -> Candidate:
  """The winner of a run that searches nothing: its structure, trained."""
  recipe = _recipe(run, structure)
  return _train(run, structure, TrainingStage('training', recipe, Stream.TRAINING, run.train_split))


def train_rows(run: Run, structure: Structure | None) -> dict[str, Candidate]:
  """The linear probe and what the config names beside the winner, each trained alone, by name.

  Args:
    run: the run.
    structure: the gradient's, where it is one of the rows.
  """
  settings = run.settings
  candidates = {}
  for name in dict.fromkeys(('linear', *settings.presets)):
    if name == settings.structure:  # the winner
      continue
    row = structure
    if row is None or name != GRADIENT:
      place = run.place(name)
      row = Structure(place, preset(place.adapted.spec, name), place.variables)
    folder = os.path.join('baselines', file_name(name))
    stage = TrainingStage(folder, _recipe(run, row), Stream.BASELINE, run.train_split)
    candidates[name] = _train(run, row, stage)
  return candidates


def _recipe(run: Run, structure: Structure) -> Recipe:
  """The recipe of all that is trained alone; shorter by what a gradient has cost."""
  recipe = run.settings.recipe_alone
  if structure.allocation is None:
    return recipe
  return run.settings.allocation.shortened(recipe, structure.allocation.borrowed > 0)


def _train(run: Run, structure: Structure, stage: TrainingStage) -> Candidate:
  """Trains a structure as a stage says."""
  adapted, genome = structure.place.adapted, structure.genome
  stage = dataclasses.replace(stage, genome=genome, adapted=adapted)
  trained = train(run, stage, structure.variables)
  return Candidate(trained, genome, None if adapted is run.adapted else adapted)
