"""The structures that are compared, by name.

A name is a preset's (`lora:2@attn`), or one of

  lora:rising, hira:rising  ranks that rise with depth and fill the budget: see `rising`
  gradient              read off the gradient, by held-out squares
  gradient(sign)        by another value in the same allocator: see `measured`
  gradient(of mnist)    read off the gradient of another task
  gradient(of others)   read off the gradients of all other development tasks together
  gradient(with others) and with the task's own among them
  gradient(prior others) and from those as a prior, where the task's own is noise
  random(3)             by random values in the same allocator, the fourth draw
  search                the paper's: see `training`

A structure read off values starts with down factors on the gradient's singular vectors, a preset
with the usual ones; `/usual` and `/aligned` after the name cross that. `+dropout`, `+vectors2`,
`+up4` and `+bounded` (gradients of a norm of at most 1) after it are options of training.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.structures import laboratory as lab
from benchmarks.structures.jobs import Job
from benchmarks.structures.laboratory import Setting
from benchmarks.structures.rising import RISING, rising
from benchmarks.structures.tasks import TASKS
from glora_jax.method.adapted import Adapted
from glora_jax.method.presets import preset
from glora_jax.method.space import FLAT_FORMS, TENSORS, SearchSpace, Spec
from glora_jax.method.supports import COLLECTION, SUPPORTS
from glora_jax.search.allocate import allocate
from glora_jax.search.allocated import Allocation, mean_of
from glora_jax.search.allocation import Measure, Values
from glora_jax.search.choice import bought, choose
from glora_jax.training.losses import cross_entropy
from glora_jax.tree import map_with_path

FOLDS = 8
MAX_RANK = 8
BATCH_SIZE = 100  # a fold of 800 images
DROPOUT = 0.2  # of rank-one parts, with `+dropout` (MLAE, arXiv 2405.18897)
MAX_GRAD_NORM = 1.0  # with `+bounded`
SEARCH = 'search'
VECTOR_FACTORS = {'vectors2': 2.0}
UP_FACTORS = {'up4': 4.0}  # LoRA+ (arXiv 2402.12354)


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
  else:
    genome = fixed_genome(spec, name.base, job.budget)
  aligned = name.start == 'aligned'
  return genome, allocation(setting).variables if aligned else setting.variables, notes


def fixed_genome(spec: Spec, name: str, budget: int) -> np.ndarray:
  """The genome of a method that asks nothing of the task; most look at no budget."""
  return rising(spec, name, budget) if name in RISING else preset(spec, name)


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
  own = [task] if word == 'with' else []
  if source != 'others':
    return [*own, source] if source else []
  others = (name for name, found in TASKS.items() if found.set == 'development' and name != task)
  return [*own, *others]


@functools.cache
def distinct(spec: Spec) -> Spec:
  """The same layers with what allocations consider on offer; codes mean the same."""
  ranks = spec.layers[0].space.ranks
  space = SearchSpace.distinct(ranks)
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


def gora(kernel: np.ndarray, gradient: np.ndarray) -> float:
  """GoRA (arXiv 2502.12171): the mean of |W * G|."""
  return float(np.abs(kernel * gradient).mean())


def surgical(kernel: np.ndarray, gradient: np.ndarray) -> float:
  """Surgical Fine-Tuning (arXiv 2210.11466): the gradient's norm over the weights'."""
  return float(np.linalg.norm(gradient) / np.linalg.norm(kernel))


# Layer scores are shared out among a layer's rank-one parts like seats (the n-th part counts 1/n),
# so that ranks come out in proportion to scores, as these methods give them. They know LoRA alone.
LAYER_SCORES = {'gora': gora, 'surgical': surgical}


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
    kernels, gradients = (
      np.asarray(site.layout.matrices(site.kernel(tree))).reshape(
        -1, site.in_features, site.out_features
      )
      for tree in (params, total)
    )
    for row, kernel, gradient in zip(group.rows, kernels, gradients, strict=True):
      scores[row] = LAYER_SCORES[measure](kernel, gradient)
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
  return Values(
    A_vector=vectors[0] * outs,
    A_lora=parts[0],
    B_lora=parts[1],
    C_vector=vectors[1] * ins,
    E_vector=vectors[2] * outs,
  )


def summed_values(setting: Setting, genome: np.ndarray) -> dict[str, float]:
  """What a structure is worth by every measure, for the gate."""
  spec = distinct(setting.adapted.spec)
  names = (*get_args(Measure), *LAYER_SCORES)
  found = {}
  for name in names:
    values = measured(setting, name)
    has = bought(spec, genome, values.B_lora.shape[-1])
    found[name] = float(sum(np.sum(part * mask) for part, mask in zip(values, has, strict=True)))
  return found


def rate_factors(name: Name, adapted: Adapted, trainable: Any, genome: np.ndarray) -> Any:
  """Factors on the learning rate of every array: of vectors, and of factors that start at zero."""
  vector, up = (
    math.prod(factors[option] for option in name.options if option in factors)
    for factors in (VECTOR_FACTORS, UP_FACTORS)
  )
  groups = {group.path: group for group in adapted.groups}

  def factor_of(whole_path, array):
    collection, *module, name = whole_path
    support = SUPPORTS.get(name)
    if collection != COLLECTION or (support.form == 'lora' and support.drawn):
      factor = 1.0
    elif support.form != 'lora':
      factor = vector
    else:  # it holds a vector where the genome has none of a LoRA's forms
      alleles = groups[tuple(module)].alleles(genome)[..., TENSORS.index(support.tensor)]
      is_lora = alleles >= len(FLAT_FORMS[support.tensor])
      factor = np.where(is_lora, up, vector)[..., None, None]
    return jnp.broadcast_to(jnp.asarray(factor, jnp.float32), array.shape)

  return map_with_path(factor_of, trainable)
