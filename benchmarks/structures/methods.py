"""The structures that are compared, by name.

A name is a preset's (`lora:2@attn`), or one of

  lora:rising, hira:rising  ranks that rise with depth and fill the budget (PriLoRA)
  pass                  read off the gradient, in one pass
  pass(of mnist)        read off the gradient of another task
  pass(of others)       read off the gradients of all other development tasks together
  pass(prior shifts)    and from that of telling shifts, where the task's own is noise
  pass(prior known)     and from known values, there
  known                 from the values that are known of the embedded backbone, by no gradient
  random(3)             by random values in the same allocator, the fourth draw
  search                the paper's: see `laboratory`

Results have lines of `gradient`, too, which had its values held out in folds, and those of others
(commit ee5beb0b has them last).

A structure read off a gradient starts with down factors on its singular vectors, all others with
the usual ones; `/usual` and `/aligned` after the name cross that.
"""

import bisect
import dataclasses
import fractions
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from benchmarks.structures import laboratory as lab
from benchmarks.structures.jobs import Job
from benchmarks.structures.laboratory import Setting
from benchmarks.structures.tasks import TASKS
from glora_jax.method.genomes import canonicalize
from glora_jax.method.presets import block_numbers, preset
from glora_jax.method.space import FLAT_FORMS, TENSORS, SearchSpace, Spec, Tensor
from glora_jax.models.weights import EMBEDDED_KNOWN
from glora_jax.search import known
from glora_jax.search.allocate import allocate
from glora_jax.search.allocated import Allocation
from glora_jax.search.allocation import Values, mean_of
from glora_jax.search.choice import choose
from glora_jax.training.losses import cross_entropy

MAX_RANK = 8
BATCH_SIZE = 100  # of images for the gradient
SEARCH, KNOWN = 'search', 'known'
RISING: dict[str, Tensor] = {'lora:rising': 'B', 'hira:rising': 'A'}  # the tensor that has LoRAs


class Name(NamedTuple):
  """A method's name, taken apart.

  Attributes:
    base: name of a preset, or one of the above.
    argument: what stands in parentheses; '' for nothing.
    start: 'aligned' or 'usual'.
  """

  base: str
  argument: str
  start: str

  @classmethod
  def parse(cls, text: str) -> 'Name':
    """Takes a name apart."""
    text, _, start = text.partition('/')
    base, _, argument = text.removesuffix(')').partition('(')
    usually = 'aligned' if base in ('pass', 'gradient', 'random') else 'usual'
    return cls(base, argument, start or usually)


def structure(job: Job) -> tuple[np.ndarray, str, dict[str, Any]]:
  """A job's genome, what its training starts from (see `starting`), and notes, JSON types."""
  name = Name.parse(job.method)
  setting = lab.setting(job.task, job.seed)
  spec = setting.adapted.spec
  notes: dict[str, Any] = {}
  if name.base == 'random':
    genome = choose(distinct(spec), random_values(spec, int(name.argument or 0)), job.budget)
  elif name.base in ('pass', KNOWN):
    values, notes = _values(name, setting)
    genome = choose(distinct(spec), values, job.budget)
    notes |= {'genome': genome.tolist()}
  elif name.base in RISING:
    genome = rising(spec, name.base, job.budget)
  else:
    genome = preset(spec, name.base)
  if name.start == 'aligned':
    allocation(setting)  # whose seconds are the structure's
  return genome, name.start, notes


def starting(setting: Setting, start: str) -> Any:
  """The variables that a training starts from: 'usual', or 'aligned' with the gradient."""
  return allocation(setting).variables if start == 'aligned' else setting.variables


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


def _values(name: Name, setting: Setting) -> tuple[Values, dict[str, Any]]:
  """What units are worth, as a method's name says, and what is kept with it."""
  word, _, source = name.argument.partition(' ')
  if name.base == KNOWN:
    return known.read(EMBEDDED_KNOWN, setting.adapted.spec).values, {}
  if word == 'of':
    named = _others(setting.task) if source == 'others' else [source]
    return mean_of([allocation(lab.setting(task, setting.seed)).values for task in named]), {}
  prior = None
  if source == 'shifts':
    prior = lab.setting(setting.task, setting.seed, shifts=True)
  elif source == KNOWN:
    prior = KNOWN
  read = allocation(setting, prior)
  return read.values, {'share': round(read.borrowed, 3), 'signal': round(read.signal or 0.0, 3)}


def _others(task: str) -> list[str]:
  """The development tasks but one."""
  return [name for name, found in TASKS.items() if found.set == 'development' and name != task]


@functools.cache
def distinct(spec: Spec) -> Spec:
  """The same layers with what allocations consider on offer; codes mean the same."""
  space = SearchSpace.distinct(spec.layers[0].space.ranks)
  return Spec(tuple(dataclasses.replace(layer, space=space) for layer in spec))


def batches(setting: Setting) -> list[tuple[jax.Array, jax.Array]]:
  """The training images in random batches."""
  images, labels = setting.train
  order = jax.random.permutation(setting.key, len(labels)).reshape(-1, BATCH_SIZE)
  return [(images[part], labels[part]) for part in order]


@functools.lru_cache(maxsize=64)
def allocation(setting: Setting, prior: Setting | str | None = None) -> Allocation:
  """What `allocate` finds for a setting, which may borrow from another, or from `KNOWN`."""

  def loss(forward, batch, key):
    del key
    images, labels = batch
    return cross_entropy(forward(setting.preprocess(images)), labels)[0]

  def borrowed():
    if isinstance(prior, Setting):
      return allocation(prior)
    return known.read(EMBEDDED_KNOWN, setting.adapted.spec)

  return allocate(
    setting.adapted,
    setting.variables,
    loss,
    batches(setting),
    budget=10_000,
    key=setting.key,
    max_rank=MAX_RANK,
    prior=borrowed if prior else None,
    progress=False,
  )


def know(seeds: range) -> None:
  """Writes the values of the embedded backbone: the mean over development tasks and seeds."""
  settings = [lab.setting(task, seed) for task in _others('') for seed in seeds]
  spec = settings[0].adapted.spec
  known.write(EMBEDDED_KNOWN, spec, [allocation(each).values for each in tqdm(settings)])


def random_values(spec: Spec, number: int) -> Values:
  """Values per parameter that are uniform draws, those of rank-one parts falling."""
  rng = np.random.default_rng(number)
  outs = np.array([layer.out_features for layer in spec])
  ins = np.array([layer.in_features for layer in spec])
  parts = -np.sort(-rng.uniform(size=(2, len(spec), MAX_RANK)), axis=-1) * (ins + outs)[:, None]
  vectors = rng.uniform(size=(3, len(spec)))
  return Values(vectors[0] * outs, *parts, vectors[1] * ins, vectors[2] * outs)
