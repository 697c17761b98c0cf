"""The structures that are compared, by name.

A name is a preset's (`lora:2@attn`), or one of

  lora:rising, hira:rising  ranks that rise with depth and fill the budget (PriLoRA)
  pass                  by the gradient, in one pass
  pass(prior transfer)  also by transferred scores, if the task's own gradient is noise
  transfer              by other tasks' scores of the embedded backbone, without a gradient
  random(3)             by random scores in the same allocator, the fourth draw

Kept results also have `gradient(shifts)`, an earlier version of the first two with eight folds,
and `search`, the paper's; benchmarks/RESULTS.md has the commit that trained them.

Structures by a gradient and random ones start with down factors on the gradient's singular
vectors, all others with the usual ones.
"""

import bisect
import dataclasses
import fractions
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.structures import laboratory as lab
from benchmarks.structures.laboratory import Setting
from benchmarks.structures.tasks import tasks_of
from glora_jax.method.genomes import canonicalize
from glora_jax.method.presets import block_numbers, preset
from glora_jax.method.space import FLAT_FORMS, TENSORS, SearchSpace, Spec, Tensor
from glora_jax.search import transfer
from glora_jax.search.allocate import allocate
from glora_jax.search.allocation import Allocation
from glora_jax.search.choice import choose
from glora_jax.search.unit_scores import UnitScores
from glora_jax.training.losses import cross_entropy
from glora_jax.vision.models.weights import EMBEDDED_TRANSFER

MAX_RANK = 8
BATCH_SIZE = 100  # of images for the gradient
OURS = 'pass(prior transfer)'  # as a run does it with `structure='gradient'`
PASS, TRANSFER, RANDOM = 'pass', 'transfer', 'random('
RISING: dict[str, Tensor] = {'lora:rising': 'B', 'hira:rising': 'A'}  # the tensor that has LoRAs


def structure(setting: Setting, method: str, budget: int) -> tuple[np.ndarray, Any]:
  """A method's genome, int8 [layer, 5], and the variables that its training starts from."""
  spec = setting.base.adapted.spec
  if method in RISING:
    return rising(spec, method, budget), setting.variables
  if method == TRANSFER:
    return choose(distinct(spec), transfer_of(spec).scores, budget), setting.variables
  if method in (PASS, OURS):
    scores = allocation(setting, method == OURS).scores
  elif method.startswith(RANDOM):
    scores = random_scores(spec, int(method.removeprefix(RANDOM).removesuffix(')')))
  else:
    return preset(spec, method), setting.variables
  return choose(distinct(spec), scores, budget), allocation(setting).variables


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


@functools.cache
def distinct(spec: Spec) -> Spec:
  """The same layers with what allocations consider on offer; codes mean the same."""
  space = SearchSpace.distinct(spec.layers[0].space.ranks)
  return Spec(tuple(dataclasses.replace(layer, space=space) for layer in spec))


@functools.lru_cache(maxsize=64)
def allocation(setting: Setting, has_prior: bool = False) -> Allocation:
  """What `allocate` finds in a setting; with a prior, transferred scores are borrowed."""
  images, labels = setting.splits['train']
  order = jax.random.permutation(setting.key, len(labels)).reshape(-1, BATCH_SIZE)
  adapted = setting.base.adapted

  def loss(forward, batch, key):
    del key
    images, labels = batch
    return cross_entropy(forward(setting.base.preprocess(images)), labels)[0]

  return allocate(
    adapted,
    setting.variables,
    loss,
    [(images[part], labels[part]) for part in order],
    budget=10_000,
    key=setting.key,
    max_rank=MAX_RANK,
    prior=(lambda: transfer_of(adapted.spec)) if has_prior else None,
    progress=False,
  )


def transfer_of(spec: Spec) -> transfer.Transfer:
  """Scores of the embedded backbone from other tasks, which the package ships."""
  return transfer.read(EMBEDDED_TRANSFER, spec)


def write_transfer(seeds: range) -> None:
  """Writes the scores of the embedded backbone: the mean over development tasks and seeds."""
  settings = [lab.setting(task, seed) for task in tasks_of('development') for seed in seeds]
  scores = [allocation(each).scores for each in settings]
  transfer.write(EMBEDDED_TRANSFER, settings[0].base.adapted.spec, scores)


def random_scores(spec: Spec, number: int) -> UnitScores:
  """Scores per parameter that are uniform draws, those of ranks falling."""
  rng = np.random.default_rng(number)
  outs = np.array([layer.out_features for layer in spec])
  ins = np.array([layer.in_features for layer in spec])
  parts = -np.sort(-rng.uniform(size=(2, len(spec), MAX_RANK)), axis=-1) * (ins + outs)[:, None]
  vectors = rng.uniform(size=(3, len(spec)))
  return UnitScores(vectors[0] * outs, *parts, vectors[1] * ins, vectors[2] * outs)
