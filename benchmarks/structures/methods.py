"""The structures that are compared, by name.

A name is a preset's (`lora:2@attn`), or one of

  lora:rising, hira:rising  ranks that rise with depth and fill the budget (PriLoRA)
  gradient              read off the gradient, by held-out squares
  gradient(sign)        by another value in the same allocator: see `measured`
  gradient(of mnist)    read off the gradient of another task
  gradient(of others)   read off the gradients of all other development tasks together
  gradient(with others) and with the task's own among them
  gradient(prior others) and from those as a prior, where the task's own is noise
  random(3)             by random values in the same allocator, the fourth draw
  search                the paper's: see `laboratory`

A structure read off values starts with down factors on the gradient's singular vectors, a preset
with the usual ones; `/usual` and `/aligned` after the name cross that. `+dropout` and `+bounded`
(gradients of a norm of at most 1) after it are options of training.
"""

import bisect
import collections
import dataclasses
import fractions
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.structures import laboratory as lab
from benchmarks.structures.jobs import Job
from benchmarks.structures.laboratory import Setting
from benchmarks.structures.tasks import TASKS
from glora_jax.method.adapted import Adapted
from glora_jax.method.genomes import canonicalize
from glora_jax.method.presets import block_numbers, preset
from glora_jax.method.space import FLAT_FORMS, TENSORS, SearchSpace, Spec, Tensor
from glora_jax.search.allocate import allocate
from glora_jax.search.allocated import Allocation, mean_of
from glora_jax.search.allocation import Measure, Values
from glora_jax.search.choice import bought, choose
from glora_jax.training.losses import cross_entropy

FOLDS = 8
MAX_RANK = 8
BATCH_SIZE = 100  # a fold of 800 images
SEARCH = 'search'
RISING: dict[str, Tensor] = {'lora:rising': 'B', 'hira:rising': 'A'}  # the tensor that has LoRAs


class Name(NamedTuple):
  """A method's name, taken apart.

  Attributes:
    base: name of a preset, 'gradient' or 'random'.
    argument: what stands in parentheses; '' for nothing.
    start: 'aligned' or 'usual'.
    options: of training.
  """

  base: str
  argument: str
  start: str
  options: tuple[str, ...]

  @classmethod
  def parse(cls, text: str) -> 'Name':
    """Takes a name apart."""
    text, *options = text.split('+')
    text, _, start = text.partition('/')
    match = re.fullmatch(r'(gradient|random)(?:\((.*)\))?', text)
    if match is None:
      return cls(text, '', start or 'usual', tuple(options))
    return cls(match[1], match[2] or '', start or 'aligned', tuple(options))


def structure(job: Job) -> tuple[np.ndarray, Any, dict[str, Any]]:
  """A job's genome, the variables that its training starts from, and notes, JSON types."""
  name = Name.parse(job.method)
  setting_of = functools.partial(lab.setting, backbone_name=job.backbone)
  setting = setting_of(job.task, job.seed)
  spec = setting.adapted.spec
  notes: dict[str, Any] = {}
  if name.base == 'random':
    genome = choose(distinct(spec), random_values(spec, int(name.argument or 0)), job.budget)
    if 'valued' in name.options:
      notes = {'values': summed_values(setting, genome)}
  elif name.base == 'gradient':
    genome, notes = _read_off(name.argument, job, setting_of)
  elif name.base in RISING:
    genome = rising(spec, name.base, job.budget)
  else:
    genome = preset(spec, name.base)
  aligned = name.start == 'aligned'
  return genome, allocation(setting).variables if aligned else setting.variables, notes


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


def _read_off(
  argument: str, job: Job, setting_of: Callable[..., Setting]
) -> tuple[np.ndarray, dict[str, Any]]:
  """The genome that gradients name, as a method's argument says, and what is kept with it."""
  setting = setting_of(job.task, job.seed)
  sources, notes, measure = [setting], {}, ''
  others = [setting_of(task, job.seed) for task in _sources_of(argument, job.task)]
  if argument == 'shifts' or argument.startswith('prior '):
    shifts = () if others else (setting_of(job.task, job.seed, shifts=True),)
    read = allocation(setting, priors=(*others, *shifts))
    found, notes = read.values.mean(), {'share': round(read.borrowed, 3)}
  elif others:
    sources = others
    found = mean_of([measured(source, 'squared') for source in sources])
  else:
    measure, found = argument, mean_of([measured(setting, argument or 'squared')])
  knows_vectors = measure not in (*LAYER_SCORES, 'eva')
  rest = mean_of([measured(source, 'seen') for source in sources]) if knows_vectors else None
  spec = distinct(setting.adapted.spec)
  genome = choose(spec, found, job.budget, rest=rest, floor=knows_vectors)
  return genome, {**notes, 'genome': genome.tolist()}


def _sources_of(argument: str, task: str) -> list[str]:
  """The tasks of whose gradients `of others`, for instance, reads a structure off."""
  word, _, source = argument.partition(' ')
  others = (name for name, found in TASKS.items() if found.set == 'development' and name != task)
  named = [source] if source else []
  return [task] * (word == 'with') + (list(others) if source == 'others' else named)


@functools.cache
def distinct(spec: Spec) -> Spec:
  """The same layers with what allocations consider on offer; codes mean the same."""
  space = SearchSpace.distinct(spec.layers[0].space.ranks)
  return Spec(tuple(dataclasses.replace(layer, space=space) for layer in spec))


def batches(setting: Setting) -> list[tuple[jax.Array, jax.Array]]:
  """The training images in random batches, one a fold."""
  images, labels = setting.train
  order = jax.random.permutation(setting.key, len(labels)).reshape(-1, BATCH_SIZE)
  return [(images[part], labels[part]) for part in order]


@functools.lru_cache(maxsize=16)
def allocation(
  setting: Setting, measure: str = 'squared', priors: tuple[Setting, ...] = ()
) -> Allocation:
  """What `allocate` finds for a setting, which may borrow from others."""

  def loss(forward, batch, key):
    del key
    images, labels = batch
    return cross_entropy(forward(setting.preprocess(images)), labels)[0]

  return allocate(
    setting.adapted,
    setting.variables,
    loss,
    batches(setting),
    budget=10_000,
    key=setting.key,
    folds=FOLDS,
    max_rank=MAX_RANK,
    value=measure,
    prior=(lambda: [allocation(prior) for prior in priors]) if priors else None,
    progress=False,
  )


def measured(setting: Setting, measure: str) -> Values:
  """The values of all units by a measure, means over the folds."""
  if measure == 'eva':
    return eva_values(setting)
  if measure in LAYER_SCORES:
    return layer_values(setting, measure)
  return allocation(setting, measure).values.mean()


# Layer scores, of a kernel and its gradient: GoRA (arXiv 2502.12171), and Surgical Fine-Tuning
# (arXiv 2210.11466). They are shared out among a layer's rank-one parts like seats (the n-th part
# counts 1/n), so that ranks come out in proportion to scores, as these methods give them. They know
# LoRA alone.
LAYER_SCORES: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
  'gora': lambda kernel, gradient: np.abs(kernel * gradient).mean(),
  'surgical': lambda kernel, gradient: np.linalg.norm(gradient) / np.linalg.norm(kernel),
}


def layer_values(setting: Setting, measure: str) -> Values:
  """Values of all units by the score of their layers, by a name of `LAYER_SCORES`."""
  adapted, params = setting.adapted, setting.variables['params']

  @jax.jit
  @jax.grad
  def gradient_fn(params, batch):
    images, labels = batch
    logits = adapted.model.apply({'params': params}, setting.preprocess(images))
    return cross_entropy(logits, labels)[0]

  total = jax.tree.map(jnp.zeros_like, params)
  for batch in batches(setting):
    total = jax.tree.map(jnp.add, total, gradient_fn(params, batch))
  scores = np.zeros(len(adapted.spec))
  for group in adapted.groups:
    (site,) = group.members  # the backbone has no ties
    shape = -1, site.in_features, site.out_features
    kernels, gradients = (
      np.asarray(site.layout.matrices(site.kernel(tree))).reshape(shape) for tree in (params, total)
    )
    scores[list(group.rows)] = [
      LAYER_SCORES[measure](*pair) for pair in zip(kernels, gradients, strict=True)
    ]
  return _of_lora(adapted, scores[:, None] / np.arange(1, MAX_RANK + 1))


def eva_values(setting: Setting) -> Values:
  """EVA (arXiv 2410.07170): the share of its inputs' variance that each direction explains."""
  adapted, params = setting.adapted, {'params': setting.variables['params']}
  seen: dict[tuple[str, ...], list[np.ndarray]] = collections.defaultdict(list)

  def watch(next_function, args, kwargs, context):
    if isinstance(context.module, nn.Dense) and context.method_name == '__call__':
      rows = args[0].reshape(-1, args[0].shape[-1])
      # Blocks are scanned over, so that only a callback sees their inputs one by one, and in order.
      jax.debug.callback(seen[context.module.path].append, rows.T @ rows, ordered=True)
    return next_function(*args, **kwargs)

  with nn.intercept_methods(watch):
    for images, _ in batches(setting):
      adapted.model.clone(remat=None).apply(params, setting.preprocess(images))
  jax.effects_barrier()
  shares = np.zeros((len(adapted.spec), MAX_RANK))
  for group in adapted.groups:
    found = np.asarray(seen[group.path], np.float64).reshape(
      -1, len(group.rows), group.in_features, group.in_features
    )
    variances = np.linalg.eigvalsh(found.sum(0))[:, ::-1]
    shares[list(group.rows)] = (variances / variances.sum(1, keepdims=True))[:, :MAX_RANK]
  return _of_lora(adapted, shares)


def _of_lora(adapted: Adapted, per_parameter: np.ndarray) -> Values:
  """Values of the parts of B alone, from those per parameter, [layer, part]."""
  costs = np.array([layer.in_features + layer.out_features for layer in adapted.spec])
  none = np.zeros(len(costs))
  parts = per_parameter * costs[:, None]
  return Values(none, np.zeros_like(parts), parts, none, none)


def random_values(spec: Spec, number: int) -> Values:
  """Values per parameter that are uniform draws, those of rank-one parts falling."""
  rng = np.random.default_rng(number)
  outs = np.array([layer.out_features for layer in spec])
  ins = np.array([layer.in_features for layer in spec])
  parts = -np.sort(-rng.uniform(size=(2, len(spec), MAX_RANK)), axis=-1) * (ins + outs)[:, None]
  vectors = rng.uniform(size=(3, len(spec)))
  return Values(vectors[0] * outs, *parts, vectors[1] * ins, vectors[2] * outs)


def summed_values(setting: Setting, genome: np.ndarray) -> dict[str, float]:
  """What a structure is worth by every measure, for the gate."""
  spec = distinct(setting.adapted.spec)
  found = {}
  for name in (*get_args(Measure), *LAYER_SCORES):
    values = measured(setting, name)
    has = bought(spec, genome, values.B_lora.shape[-1])
    found[name] = float(sum(np.sum(part * mask) for part, mask in zip(values, has, strict=True)))
  return found
