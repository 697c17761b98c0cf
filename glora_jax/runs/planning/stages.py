"""The stages of a run as a plan sees them: steps, and images through which program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from glora_jax.runs.config import RunSettings
from glora_jax.runs.programs import Workload
from glora_jax.runs.sections import GRADIENT, SEARCH
from glora_jax.runs.stages.prior import MOST_IMAGES
from glora_jax.training.recipe import Recipe

PASSES = 2  # over the images for a gradient, at most


class Stage(NamedTuple):
  """A stage of a run, or a part of one: what is trained alone is a part each.

  Attributes:
    name: its name.
    program: key of `programs.MAKERS` of what takes its time.
    workload: what the program is given; its section is None where nothing is trained.
    steps: steps of training.
    images: images that go through the program, for each step and each candidate.
  """

  name: str
  program: str
  workload: Workload
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
    yield Stage('head', 'features', Workload(), 0, seen)
    yield Stage('structure', 'allocation', Workload(), 0, PASSES * seen)
  is_searched = settings.structure == SEARCH
  rows = dict.fromkeys(('linear', *settings.presets))
  rows.pop(settings.structure, None)
  if is_searched:
    steps = steps_of(settings.supernet, train)
    workload = Workload(section='supernet')
    yield Stage('supernet', 'supernet', workload, steps, steps * settings.supernet.batch_size)
  for row in rows:
    yield _alone('baselines', row, settings, train)
  if is_searched:
    yield from _search(settings, counts)
  else:
    yield _alone('training', settings.structure, settings, train)
  tested = len(rows) + 1 + is_searched
  tests = sum(number for split, number in counts.items() if split not in ('train', 'train+val'))
  yield Stage('test', 'evaluation', Workload(), 0, tested * tests)


def _search(settings: RunSettings, counts: Mapping[str, int]) -> Iterator[Stage]:
  """The search, and the finetuning of what it found."""
  is_honest = settings.protocol == 'honest'
  images = settings.search.evaluations * counts['val' if is_honest else 'test']
  yield Stage('search', 'scoring', Workload(), 0, images)
  recipe = settings.finetune
  if is_honest and recipe.epochs:
    choice = counts['train'] if recipe.on == 'train+val' else 0  # how many epochs are best
    steps = steps_of(recipe, counts[recipe.on]) + (steps_of(recipe, choice) if choice else 0)
    workload = Workload(subnet=SEARCH, section='finetune')
    yield Stage('finetune', 'subnet', workload, steps, steps * recipe.batch_size)


def _alone(name: str, subnet: str, settings: RunSettings, number: int) -> Stage:
  """A subnet that is trained alone on so many images."""
  recipe = settings.recipe_alone
  if subnet == GRADIENT:
    recipe = settings.allocation.shortened(recipe)
  steps = steps_of(recipe, number)
  workload = Workload(subnet=subnet, section=settings.section_alone)
  return Stage(name, 'subnet', workload, steps, steps * recipe.batch_size)


def steps_of(recipe: Recipe, number: int) -> int:
  """Steps of a training on so many images."""
  return recipe.epochs * recipe.steps_per_epoch(number)
