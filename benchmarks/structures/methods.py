"""The structures that are compared, by name.

A name is a preset's (`lora:2@attn`), or one of

  lora:rising, hira:rising  ranks that rise with depth and fill the budget: see `rising`
  gradient              read off the gradient, by held-out squares
  gradient(sign)        by another value in the same allocator: see `values.MEASURES`
  gradient(of mnist)    read off the gradient of another task
  gradient(of others)   read off the gradients of all other development tasks together
  gradient(with others) and with the task's own among them
  gradient(prior others) and from those as a prior, where the task's own is noise
  random(3)             by random values in the same allocator, the fourth draw
  search                the paper's: see `searched`

A structure read off values starts with down factors on the gradient's singular vectors, a preset
with the usual ones; `/usual` and `/aligned` after the name cross that. `+dropout`, `+vectors2`,
`+up4` and `+bounded` (gradients of a norm of at most 1) after it are options of training.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.structures import values as measures
from benchmarks.structures.backbones import Model
from benchmarks.structures.jobs import Job
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
DROPOUT = 0.2
MAX_GRAD_NORM = 1.0
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


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
  """Where a structure is made.

  Attributes:
    adapted: the adapted backbone.
    model: what its programs are compiled for.
    variables: what a training starts from, with the warm head and usual starting values.
    preprocess: images to inputs of the model.
    train: the images and labels.
    key: random key.
  """

  adapted: Adapted
  model: Model
  variables: Any
  preprocess: Callable[[jax.Array], jax.Array]
  train: Any
  key: jax.Array


SettingOf = Callable[..., Setting]


class Structure(NamedTuple):
  """What is trained.

  Attributes:
    genome: int8 [layer, 5].
    variables: to start from.
    notes: what is kept with the result, JSON types.
  """

  genome: np.ndarray
  variables: Any
  notes: dict[str, Any]


def structure(job: Job, setting_of: SettingOf) -> Structure:
  """The structure of a job.

  Args:
    job: the job.
    setting_of: `(task, seed, shifts=False) -> Setting`; the same object for the same arguments.
  """
  name, setting = Name.parse(job.method), setting_of(job.task, job.seed)
  notes: dict[str, Any] = {}
  if name.base == 'random':
    genome = _drawn(setting, int(name.argument or 0), job.budget)
    if 'valued' in name.options:
      notes = {'values': summed_values(setting, genome)}
  elif name.base == 'gradient':
    genome, notes = _read_off(name.argument, job, setting_of)
  else:
    genome = fixed_genome(setting.adapted.spec, name.base, job.budget)
  aligned = name.start == 'aligned'
  variables = allocation(setting).variables if aligned else setting.variables
  return Structure(genome, variables, notes)


def fixed_genome(spec: Spec, name: str, budget: int) -> np.ndarray:
  """The genome of a method that asks nothing of the task; most look at no budget."""
  return rising(spec, name, budget) if name in RISING else preset(spec, name)


def _drawn(setting: Setting, number: int, budget: int) -> np.ndarray:
  """A random structure."""
  spec = setting.adapted.spec
  return choose(distinct(spec), random_values(spec, number), budget)


def _read_off(argument: str, job: Job, setting_of: SettingOf) -> tuple[np.ndarray, dict[str, Any]]:
  """The genome that gradients name, as a method's argument says, and what is kept with it."""
  setting = setting_of(job.task, job.seed)
  sources, notes = [setting], {}
  if argument == 'shifts' or argument.startswith('prior '):
    read = allocation(setting, priors=_priors(argument, job, setting_of))
    measure, found, notes = '', read.values.mean(), {'share': round(read.borrowed, 3)}
  elif ' ' in argument:
    sources = [setting_of(task, job.seed) for task in sources_of(argument, job.task)]
    measure, found = '', mean_of([measured(source, 'squared') for source in sources])
  else:
    measure, found = argument, mean_of([measured(setting, argument or 'squared')])
  knows_vectors = measure not in (*measures.LAYER_SCORES, 'eva')
  rest = mean_of([measured(source, 'seen') for source in sources]) if knows_vectors else None
  spec = distinct(setting.adapted.spec)
  genome = choose(spec, found, job.budget, rest=rest, floor=knows_vectors)
  return genome, {**notes, 'genome': genome.tolist()}


def _priors(argument: str, job: Job, setting_of: SettingOf) -> tuple[Setting, ...]:
  """Where the gradients are taken that a task borrows from."""
  if argument == 'shifts':
    return (setting_of(job.task, job.seed, shifts=True),)
  return tuple(setting_of(task, job.seed) for task in sources_of(argument, job.task))


def sources_of(argument: str, task: str) -> list[str]:
  """The tasks of whose gradients a structure is read off, by an argument such as `of others`."""
  word, _, source = argument.partition(' ')
  own = [task] if word == 'with' else []
  if source != 'others':
    return [*own, source]
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
    prior=functools.partial(_allocations, priors) if priors else None,
    progress=False,
  )


def _allocations(settings: Sequence[Setting]) -> list[Allocation]:
  return [allocation(setting) for setting in settings]


def measured(setting: Setting, measure: str) -> Values:
  """The values of all units by a measure, means over the folds."""
  if measure == 'eva':
    parts = [setting.preprocess(images) for images, _ in batches(setting)]
    return measures.eva_values(setting.adapted, setting.variables['params'], parts)
  if measure not in measures.LAYER_SCORES:
    return allocation(setting, measure).values.mean()

  def loss(params, batch):
    images, labels = batch
    logits = setting.adapted.model.apply({'params': params}, setting.preprocess(images))
    return cross_entropy(logits, labels)[0]

  params = setting.variables['params']
  return measures.layer_values(measure, setting.adapted, params, loss, batches(setting))


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
  names = (*get_args(Measure), *measures.LAYER_SCORES)
  found = {}
  for name in names:
    values = measured(setting, name)
    has = bought(spec, genome, values.B_lora.shape[-1])
    found[name] = float(sum(np.sum(part * mask) for part, mask in zip(values, has, strict=True)))
  return found


def dropout(name: Name) -> float:
  """The probability with which a training drops rank-one parts (MLAE, arXiv 2405.18897)."""
  return DROPOUT if 'dropout' in name.options else 0.0


def max_grad_norm(name: Name) -> float:
  """The norm to which longer gradients are shortened; 0 for no bound."""
  return MAX_GRAD_NORM if 'bounded' in name.options else 0.0


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
