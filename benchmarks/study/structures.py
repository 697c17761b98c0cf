"""Eleven rendered tasks, learned by the embedded backbone from 800 images each in 36 epochs.

A method's name is a preset's (`lora:2@attn`), or one of

  lora:rising, hira:rising  ranks that rise with depth and fill the budget (PriLoRA)
  pass                  by the gradient, in one pass
  pass(prior transfer)  also by transferred scores, if the task's own gradient is noise
  transfer              by other tasks' scores of the embedded backbone, without a gradient
  random(3)             by random scores in the same allocator, the fourth draw

Kept results also have `gradient(shifts)`, an earlier version of the second and third with eight
folds, and `search`, the paper's; benchmarks/RESULTS.md has the commit that trained them.
"""

import bisect
import fractions
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machinery.embedded_task import IMAGE_SIZE
from benchmarks.study.study import (
  BORROWING,
  ENDS,
  RANDOM,
  TRANSFER,
  Base,
  Group,
  Job,
  Method,
  Results,
  Study,
)
from benchmarks.study.tables import rows_of
from benchmarks.study.tasks import draw, load_pool, tasks_of
from glora_jax.method.adapt import adapt
from glora_jax.method.genomes import canonicalize, count_params
from glora_jax.method.presets import block_numbers, preset
from glora_jax.method.space import FLAT_FORMS, TENSORS, SearchSpace, Spec, Tensor
from glora_jax.search import transfer
from glora_jax.training.losses import classification
from glora_jax.training.recipe import Recipe
from glora_jax.vision.data.normalization import normalize
from glora_jax.vision.models import weights

RANKS = tuple(range(1, 17))  # 16 of LoRA on qkv at 36,864 parameters
PASS = 'pass'
BEFORE = 'gradient(shifts)'  # at sizes that have no other results
RISING: dict[str, Tensor] = {'lora:rising': 'B', 'hira:rising': 'A'}  # the tensor that has LoRAs
DRAWN = (5_184, 9_216, 18_432, 36_864)
BUDGETS = (2_592, *DRAWN)  # the smallest is on two tasks alone, and no other builds on it
TRAINED = DRAWN[:2]  # by `--train`
TWICE_AS_LARGE = {9_216: [('lora:2', 0)], 18_432: [('lora:4', 0)]}  # of every layer, by half of it
OTHER_SEEDS = 2  # of random structures
MARGIN = 4.0  # points behind the best after the first seed, beyond which a method gets no other


class Structures(Study):
  """All methods and budgets on the rendered tasks."""

  def groups(self, budgets: Sequence[int] = BUDGETS) -> Iterator[Group]:
    """The tables of each budget, of the final and of the confirming tasks."""
    for budget in budgets:
      ours = [(name, budget) for name in (BORROWING, BEFORE)]
      others = [(name, budget) for name in (PASS, TRANSFER, BEFORE, 'search')]
      others += TWICE_AS_LARGE.get(budget, [])
      others += [(f'{RANDOM}{number})', budget) for number in range(5)]
      for which in ('final', 'confirming'):
        fixed = self.fixed_methods(budget)
        yield Group(f'{budget:,} parameters', tasks_of(which), ours, fixed, others, budget in DRAWN)

  @functools.cache  # noqa: B019
  def fixed_methods(self, budget: int) -> list[Method]:
    """The simple methods of at most a budget; those that fill one, at this and smaller ones."""
    spec = _base(10).adapted.spec
    filled = {budget, *(other for other in DRAWN if other < budget)}
    return [
      (name, own)
      for name, own in self.rates
      if (own in filled and name in RISING)
      or (not own and count_params(spec, preset(spec, name)) <= budget)
    ]

  def plan(self, results: Results) -> Iterator[Job]:
    """All methods on one seed; then ours and the fixed ones near the best on others, and random."""
    for budget in TRAINED:
      always = [(name, budget) for name in (BORROWING, PASS, TRANSFER)]
      always += TWICE_AS_LARGE.get(budget, [])
      for group in self.groups([budget]):
        for task in group.tasks:
          yield from (self.job(task, method, 0) for method in (*always, *group.fixed))
          rows = rows_of(results, task, group.fixed)
          means = [row.scores[0].mean() for row in rows]
          kept = [max(means) - mean <= MARGIN for mean in means]
          near = [*always, *itertools.compress(group.fixed, kept)]
          yield from (self.job(task, method, n) for n in range(1, self.seeds) for method in near)
          drawn = [method for method in group.others if RANDOM in method[0]]
          yield from (self.job(task, method, n) for n in range(OTHER_SEEDS) for method in drawn)

  def job(self, task: str, method: Method, seed: int) -> Job:
    """A method at its rate; one that varies the gradient's has that one's."""
    name, budget = method
    rated = 'gradient' if name in (PASS, BORROWING, TRANSFER) else name
    return super().job(task, (rated, budget), seed)._replace(method=name)

  def quick(self) -> list[Job]:
    """Short trainings."""
    methods = (PASS, 5_184), ('random(0)', 5_184), ('bitfit', 0)
    return [Job('count', *method, 1.6e-2, 0, 1) for method in methods]

  def base(self, task: str) -> Base:
    """The embedded backbone with a new head for a task."""
    return _base(load_pool(task).num_classes)

  def order(self, number: int, key: jax.Array) -> Any:
    """A random order."""
    return jax.random.permutation(key, number)

  def transferred(self, task: str, seed: int) -> transfer.Transfer:
    """Scores from other tasks, which the package ships."""
    del seed
    return transfer.read(weights.EMBEDDED_TRANSFER, self.base(task).adapted.spec)

  def structure(self, job: Job) -> tuple[Any, dict[str, Any]]:
    """Also ranks that rise, and transferred scores that are borrowed."""
    if job.method in RISING:
      spec = self.base(job.task).adapted.spec
      return rising(spec, job.method, job.budget), self.start(job.task, job.seed)
    return super().structure(job)


@functools.cache
def _base(classes: int) -> Base:
  """The embedded backbone with so many classes, all forms and ranks on offer."""
  loaded = weights.load(weights.EMBEDDED_FILE)
  model, params, metadata = weights.refit(*loaded, num_classes=classes, image_size=IMAGE_SIZE)
  model = model.clone(drop_path=0.1, remat=None, unroll=model.depth)
  inputs = jnp.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 3))
  adapted = adapt(model, inputs, space=SearchSpace(ranks=RANKS))

  def preprocess(images: jax.Array, key: jax.Array | None = None) -> jax.Array:
    del key
    return normalize(images, metadata['normalization'])

  @jax.jit
  def logits(params: Any, images: jax.Array) -> jax.Array:
    return model.apply({'params': params}, preprocess(images))

  losses = classification(preprocess), classification(preprocess, train=True)
  return Base(adapted, params, logits, *losses)


def rising(spec: Spec, name: str, budget: int) -> np.ndarray:
  """The genome of a name in `RISING` within a budget, int8 [layer, 5]."""
  column, flat = TENSORS.index(RISING[name]), len(FLAT_FORMS[RISING[name]])
  ranks = [layer.space.ranks for layer in spec]
  prices = [np.diff(layer.costs(RISING[name])[flat:], prepend=0).tolist() for layer in spec]
  blocks = [number or 0 for number in block_numbers([layer.name for layer in spec])]
  genome = np.zeros((len(spec), len(TENSORS)), np.int8)
  levels = rising_levels(blocks, ranks, prices, budget)
  genome[:, column] = [level and flat + level - 1 for level in levels]
  return canonicalize(spec, genome)


def rising_levels(
  blocks: Sequence[int], ranks: Sequence[Sequence[int]], prices: Sequence[list[int]], budget: int
) -> list[int]:
  """Ranks in proportion to the number of a layer's block, as large as fits a budget.

  Ranks are rounded down to those on offer. What is left of the budget goes rank by rank to the
  layers from the last to the first, as long as something fits.

  Args:
    blocks: number of each layer's block, from 0 at the inputs of the model.
    ranks: of each layer, those on offer, ascending.
    prices: trained parameters that each of them has more than the one before it.
    budget: most trained parameters.

  Returns:
    How many of its ranks every layer climbs; 0 for no LoRA.
  """

  def cost(levels: Sequence[int]) -> int:
    return sum(sum(own[:level]) for own, level in zip(prices, levels, strict=True))

  levels = [0] * len(blocks)
  rows = list(zip(blocks, ranks, strict=True))
  for slope in sorted({fractions.Fraction(rank, 1 + block) for block, own in rows for rank in own}):
    risen = [bisect.bisect_right(own, slope * (1 + block)) for block, own in rows]
    if cost(risen) > budget:
      break
    levels = risen
  left, before = budget - cost(levels), -1
  last_first = sorted(range(len(blocks)), key=lambda row: (-blocks[row], -row))
  while left != before:
    before = left
    for row in last_first:
      if levels[row] < len(ranks[row]) and prices[row][levels[row]] <= left:
        left -= prices[row][levels[row]]
        levels[row] += 1
  return levels


STUDY = Structures(
  name='structures',
  final=[*tasks_of('final'), *tasks_of('confirming')],
  epochs=36,
  batch_size=64,
  seeds=5,
  warmup=12,
  last_rate=1e-3,
  draw=lambda task, seed: draw(load_pool(task), seed),
  head=Recipe(epochs=6, warmup=1 / 6, batch_size=64, learning_rate=1.6e-2, **ENDS),
  budget=10_000,  # of the pass alone, whose scores serve all budgets
)


def write_transfer() -> None:
  """Writes the scores of the embedded backbone: the mean over development tasks and seeds."""
  tasks = tasks_of('development')
  scores = [STUDY.allocation(task, n).scores for task in tasks for n in range(STUDY.seeds)]
  transfer.write(weights.EMBEDDED_TRANSFER, _base(10).adapted.spec, scores)


if __name__ == '__main__':
  write_transfer()
