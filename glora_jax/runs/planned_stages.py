"""The stages of a run as a plan sees them: steps, and images through which program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from glora_jax.runs.config import RunSettings
from glora_jax.runs.sections import GRADIENT, SEARCH
from glora_jax.runs.stages.prior import MOST_IMAGES
from glora_jax.training.recipe import Recipe

PASSES = 2  # over the images for a gradient, at most


class Stage(NamedTuple):
  """A stage of a run.

  Attributes:
    name: its name.
    program: key of `programs.MAKERS` of what takes its time.
    section: section of the config with its recipe; None where nothing is trained.
    steps: steps of training.
    images: images that go through the program, for each step and each candidate.
  """

  name: str
  program: str
  section: str | None
  steps: int
  images: int


def stages_of(settings: RunSettings, counts: Mapping[str, int]) -> Iterator[Stage]:
  """The stages of a run, in their order.

  Args:
    settings: the config, with batches that the images fill.
    counts: number of images by split, 'train+val' too.

  Example:
    >>> counts = {'train': 640, 'val': 160, 'test': 200, 'train+val': 800}
    >>> [stage.name for stage in stages_of(RunSettings(), counts)]
    ['supernet', 'baselines', 'search', 'finetune', 'test']
  """
  train = counts['train' if settings.protocol == 'honest' else 'train+val']
  if settings.has_gradient:
    has_prior = settings.allocation.prior is not None
    seen = train + (min(train, MOST_IMAGES) if has_prior else 0)
    yield Stage('head', 'features', None, 0, seen)
    yield Stage('structure', 'allocation', None, 0, PASSES * seen)
  is_searched = settings.structure == SEARCH
  rows = dict.fromkeys(('linear', *settings.presets))
  rows.pop(settings.structure, None)
  if is_searched:
    yield _trained('supernet', 'supernet', 'supernet', settings.supernet, train)
  section = 'supernet' if is_searched else 'training'
  yield _trained('baselines', 'subnet', section, *_rows(settings, tuple(rows), train))
  if is_searched:
    yield from _search(settings, counts)
  else:
    name = settings.structure
    yield _trained('training', 'subnet', 'training', *_rows(settings, (name,), train))
  tested = len(rows) + 1 + is_searched
  tests = sum(number for split, number in counts.items() if split not in ('train', 'train+val'))
  yield Stage('test', 'evaluation', None, 0, tested * tests)


def _search(settings: RunSettings, counts: Mapping[str, int]) -> Iterator[Stage]:
  """The search, and the finetuning of what it found."""
  is_honest = settings.protocol == 'honest'
  candidates = settings.search.population * (settings.search.generations + 1)
  yield Stage('search', 'scoring', None, 0, candidates * counts['val' if is_honest else 'test'])
  recipe = settings.finetune
  if is_honest and recipe.epochs:
    choice = counts['train'] if recipe.on == 'train+val' else 0  # how many epochs are best
    steps = _steps(recipe, counts[recipe.on]) + (_steps(recipe, choice) if choice else 0)
    yield Stage('finetune', 'subnet', 'finetune', steps, steps * recipe.batch_size)


def _rows(settings: RunSettings, names: tuple[str, ...], number: int) -> tuple[Recipe, int, int]:
  """(recipe, images, steps of all rows that are trained alone)."""
  recipe = settings.recipe_alone
  short = settings.allocation.shortened(recipe) if GRADIENT in names else recipe
  steps = [_steps(short if name == GRADIENT else recipe, number) for name in names]
  return recipe, number, sum(steps)


def _trained(
  name: str, program: str, section: str, recipe: Recipe, number: int, steps: int | None = None
) -> Stage:
  steps = _steps(recipe, number) if steps is None else steps
  return Stage(name, program, section, steps, steps * recipe.batch_size)


def _steps(recipe: Recipe, number: int) -> int:
  return recipe.epochs * recipe.steps_per_epoch(number)
