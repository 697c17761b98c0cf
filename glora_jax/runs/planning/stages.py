"""The stages of a run or a comparison as a plan sees them: steps, and images through a program."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from glora_jax.runs.config import RunSettings
from glora_jax.runs.programs import Workload
from glora_jax.runs.sections import GRADIENT, SEARCH, has_budget
from glora_jax.runs.stages.structures import MOST_IMAGES
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


@dataclasses.dataclass(frozen=True)
class _Method:
  """A method in a stage, for which it is trained from each seed at each learning rate.

  Attributes:
    stage: 'tuning' or 'training'.
    name: the method.
    seeds: number of seeds.
    rates: number of learning rates.
    budgets: what is searched or read off a gradient is so within each.
  """

  stage: str
  name: str
  seeds: int
  rates: int
  budgets: tuple[int, ...]

  @property
  def trials(self) -> int:
    """Trainings side by side."""
    return self.seeds * self.rates

  @property
  def rows(self) -> int:
    """Number of rows of the table that it makes."""
    return len(self.budgets) if has_budget(self.name) else 1

  def part(self, program: str, workload: Workload, steps: int, images: int) -> Stage:
    """A part of its stage."""
    return Stage(f'{self.stage}, {self.name}', program, workload, steps, images)

  def trained(self, workload: Workload, recipe: Recipe, number: int, times: int = 1) -> Stage:
    """Trainings on so many images, as many side by side as the workload says, so many times."""
    steps = times * steps_of(recipe, number)
    images = steps * recipe.batch_size * workload.side_by_side
    return self.part('train_many', workload, steps, images)


def stages_of_comparison(settings: RunSettings, counts: Mapping[str, int]) -> Iterator[Stage]:
  """The stages of a comparison, a method after another.

  Args:
    settings: the config, with batches that the images fill.
    counts: number of images by split.

  Example:
    >>> from glora_jax.runs.sections import Comparison
    >>> compare = Comparison(methods=('lora', 'ssf'), rates=(1e-3, 4e-3), rate={'ssf': 4e-3})
    >>> counts = {'train': 640, 'val': 160, 'test': 200}
    >>> settings = RunSettings(job='compare', compare=compare)
    >>> [stage.name for stage in stages_of_comparison(settings, counts)]
    ['tuning, lora', 'training, lora', 'training, ssf', 'test']
  """
  compare = settings.compare
  for name in compare.methods:
    if compare.rate.get(name) is None:
      tuned = _Method('tuning', name, 1, len(compare.rates), tuple(compare.budgets[-1:]))
      yield from _parts(tuned, settings, counts)
  tested = 0
  for name in compare.methods:
    method = _Method('training', name, compare.seeds, 1, tuple(compare.budgets))
    yield from _parts(method, settings, counts)
    inherited = 2 if name == SEARCH else 1  # searched subnets are tested before finetuning, too
    tested += inherited * method.trials * method.rows
  images = tested * (counts['val'] + counts['test'])
  yield Stage('test', 'evaluation', Workload(), 0, images)


def _parts(method: _Method, settings: RunSettings, counts: Mapping[str, int]) -> Iterator[Stage]:
  """What a method goes through in a stage."""
  if method.name == SEARCH:
    yield from _searched(method, settings, counts)
  elif method.name == GRADIENT:
    yield from _read_off(method, settings, counts['train'])
  else:
    workload = Workload(subnet=method.name, section='supernet', side_by_side=method.trials)
    yield method.trained(workload, settings.supernet, counts['train'])


def _searched(method: _Method, settings: RunSettings, counts: Mapping[str, int]) -> Iterator[Stage]:
  """Supernets side by side, and in each a search for each budget, whose subnet is finetuned."""
  recipe, finetune = settings.supernet, settings.finetune
  shorter = dataclasses.replace(recipe, epochs=recipe.epochs - finetune.epochs)
  supernets = Workload(subnet=None, section='supernet', side_by_side=method.trials)
  yield method.trained(supernets, shorter, counts['train'])
  times = method.trials * method.rows
  images = times * settings.search.evaluations * counts['val']
  yield method.part('scoring', Workload(), 0, images)
  alone = Workload(subnet=SEARCH, section='finetune', side_by_side=1)
  yield method.trained(alone, finetune, counts['train'], times)


def _read_off(method: _Method, settings: RunSettings, number: int) -> Iterator[Stage]:
  """Heads, a gradient for each seed and budget, and trainings of what these name."""
  borrowed = 0 if settings.allocation.prior is None else min(number, MOST_IMAGES)
  seen = method.seeds * (number + borrowed)
  yield method.part('features', Workload(), 0, seen)
  read = method.seeds * (number * method.rows + borrowed)
  yield method.part('allocation', Workload(), 0, PASSES * read)
  recipe = settings.allocation.shortened(settings.supernet)
  workload = Workload(subnet=GRADIENT, section='supernet', side_by_side=method.rates)
  yield method.trained(workload, recipe, number, method.seeds * method.rows)
