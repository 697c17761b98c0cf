"""A model on some tasks: what is trained, from where, and what is kept of it.

All trainings of a task and seed start from one warm head, which is the linear probe. Each
structure is fixed, and a program of its own. Rates were chosen on development tasks, with a seed
that no table uses; final tasks are tested once for each seed.
"""

import base64
import collections
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.machinery.measuring import append_line, read_lines
from glora_jax import choose
from glora_jax.files import read_json
from glora_jax.method.adapt import adapt_function
from glora_jax.method.adapted import Adapted
from glora_jax.method.space import SearchSpace, Spec
from glora_jax.search.allocate import allocate
from glora_jax.search.allocation import Allocation
from glora_jax.search.transfer import Transfer
from glora_jax.search.unit_scores import UnitScores, mean_scores
from glora_jax.training import loop
from glora_jax.training.fit import fit, linear_probe
from glora_jax.training.losses import classification, cross_entropy
from glora_jax.training.recipe import Recipe
from glora_jax.vision.data.pipeline import Split

RESULTS = pathlib.Path(__file__).parent / 'results'
MAX_RANK = 8  # of what a gradient chooses
ENDS = {'initial_learning_rate': 1e-6, 'final_learning_rate': 1e-5}  # of a warm head's schedule
OURS, TRANSFER, RANDOM, PROBE, CEILING = 'gradient', 'transfer', 'random(', 'linear', 'finetuning'
BORROWING = 'pass(prior transfer)'  # as a run does it with `structure='gradient'`
PURPOSES = ('init', 'head', 'order', 'structure')  # of a seed's random keys

Method = tuple[str, int]  # its name, and the budget that it fills, or 0


class Job(NamedTuple):
  """One training.

  Attributes:
    task: its name.
    method: name of a structure.
    budget: most trained parameters, if the method fills a budget; 0 if its name says all.
    rate: peak learning rate.
    seed: of examples, initial values and order.
    epochs: of the training; 0 for what is not trained.
  """

  task: str
  method: str
  budget: int
  rate: float
  seed: int
  epochs: int


Results = dict[tuple[str, str, int], dict[int, dict[str, Any]]]  # by task and method, by seed


class Base(NamedTuple):
  """A pretrained model.

  Attributes:
    adapted: it with a free structure.
    params: its parameters, with a new head.
    logits: compiled `logits(params, inputs)` of the plain model, [example, class].
    loss: in evaluation.
    train_loss: in training.
  """

  adapted: Adapted
  params: Any
  logits: Callable[[Any, Any], jax.Array]
  loss: Any
  train_loss: Any


class Group(NamedTuple):
  """What a table compares.

  Attributes:
    title: of the table.
    tasks: its columns.
    ours: the method that all others are held against; the first that has results.
    fixed: of which the best is looked for.
    others: what is shown beside.
    is_drawn: whether the picture has a panel of it.
  """

  title: str
  tasks: Sequence[str]
  ours: Sequence[Method]
  fixed: Sequence[Method]
  others: Sequence[Method]
  is_drawn: bool = True


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
  """A model, its tasks, and the methods that are trained on them.

  Attributes:
    name: of the study, its results and its picture.
    final: tasks that are tested.
    epochs: of a training.
    batch_size: of a step.
    seeds: number of trainings of a method on a task.
    warmup: all steps over those of the linear warm-up, which a cosine follows.
    last_rate: learning rate at its end over the highest.
    digits: of a printed score, after the point.
    load: gives the parameters of the model with a new head.
    logits: `logits(params, inputs)` of the plain model, [example, class].
    draw: gives the splits 'train' and 'test' of a task and a seed.
    development: tasks that rates were chosen on, and transferred scores come from.
    budget: most parameters of the structures that fill one.
    fixed: names of the fixed methods, of at most that size.
    head: recipe of the warm head.
    gradient_batch: examples of a batch in the gradient's pass.
    randoms: number of random structures.
  """

  name: str
  final: Sequence[str]
  epochs: int
  batch_size: int = 32
  seeds: int = 3
  warmup: int = 10
  last_rate: float = 0.01
  digits: int = 1
  load: Callable[[], Any] = dict
  logits: Callable[[Any, jax.Array], jax.Array] = max
  draw: Callable[[str, int], dict[str, Split]] = dict
  development: Sequence[str] = ()
  budget: int = 0
  fixed: Sequence[str] = ()
  head: Recipe = Recipe()
  gradient_batch: int = 100
  randoms: int = 0

  @functools.cached_property
  def rates(self) -> dict[Method, float]:
    """The learning rate of each method; they were chosen on other tasks."""
    listed = read_json(RESULTS / self.name / 'rates.json')['rates']
    return {(name, budget): rate for name, budget, rate in listed}

  def groups(self) -> Iterator[Group]:
    """The tables."""
    fixed = [(name, 0) for name in self.fixed]
    bought = [*(f'{RANDOM}{number})' for number in range(self.randoms)), TRANSFER]
    others = [(PROBE, 0), *((name, self.budget) for name in bought), (CEILING, 0)]
    yield Group(f'{self.budget:,} parameters', self.final, [(OURS, self.budget)], fixed, others)

  def plan(self, results: Results) -> Iterator[Job]:
    """All trainings in their order; those that have a result are passed over."""
    del results  # which other studies go by
    for seed in range(self.seeds):
      for group in self.groups():
        for task in group.tasks:
          for method in (*group.others, *group.fixed, *group.ours):
            yield self.job(task, method, seed)

  def job(self, task: str, method: Method, seed: int) -> Job:
    """A method at its rate; random structures share one."""
    name, budget = method
    rate = self.rates.get((f'{RANDOM}0)' if RANDOM in name else name, budget), 0.0)
    return Job(task, *method, rate, seed, self.epochs if rate else 0)

  def tiny(self) -> 'Study':
    """What `--quick` trains."""
    return self

  def quick(self) -> list[Job]:
    """Short trainings."""
    methods = (OURS, self.budget), ('bitfit', 0), (CEILING, 0)
    return [Job(self.development[-1], *method, 1e-3, 1000, 1) for method in methods]

  @functools.lru_cache(maxsize=1)  # noqa: B019
  def base(self, task: str) -> Base:
    """The model for a task."""
    inputs, _ = self.draw(task, 0)['train']
    one = jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype)
    params, space = self.load(), SearchSpace(ranks=tuple(range(1, MAX_RANK + 1)))
    adapted = adapt_function(self.logits, params, one, space=space)
    return Base(adapted, params, jax.jit(self.logits), classification(), classification())

  @functools.lru_cache(maxsize=8)  # noqa: B019
  def start(self, task: str, seed: int) -> dict[str, Any]:
    """The variables with the warm head."""
    base, key = self.base(task), key_of(seed, 'head')
    variables = base.adapted.init(key_of(seed, 'init'), base.params)
    train = self.draw(task, seed)['train']
    return linear_probe(
      base.adapted, variables, base.loss, train, self.head, key=key, progress=False
    )

  def order(self, number: int, key: jax.Array) -> Any:
    """The order in which the gradient sees so many examples."""
    del key
    return np.arange(number)

  @functools.lru_cache(maxsize=8)  # noqa: B019
  def allocation(self, task: str, seed: int, borrows: bool = False) -> Allocation:
    """What the gradient of a task finds, in one pass over what is learned from."""
    inputs, labels = map(jnp.asarray, self.draw(task, seed)['train'])
    base, key = self.base(task), key_of(seed, 'structure')
    return allocate(
      base.adapted,
      self.start(task, seed),
      base.loss,
      [
        (inputs[part], labels[part])
        for part in self.order(len(labels), key).reshape(-1, self.gradient_batch)
      ],
      budget=self.budget,
      max_rank=MAX_RANK,
      key=key,
      prior=functools.partial(self.transferred, task, seed) if borrows else None,
      progress=False,
    )

  def transferred(self, task: str, seed: int) -> Transfer:
    """Scores of the development tasks, without a gradient of the task's own."""
    others = [other for other in self.development if other != task]
    scores = mean_scores([self.allocation(other, seed).scores for other in others])
    return Transfer(self.base(task).adapted.spec, scores)

  def structure(self, job: Job) -> tuple[Any, dict[str, Any]]:
    """A job's structure, and the variables that its training starts from.

    Structures by a gradient and random ones start with down factors on the gradient's singular
    vectors, all others with the usual ones.
    """
    start = self.start(job.task, job.seed)
    if not job.budget:
      return job.method, start
    spec = distinct(self.base(job.task).adapted.spec)
    if job.method == TRANSFER:
      return choose(spec, self.transferred(job.task, job.seed).scores, job.budget), start
    found = self.allocation(job.task, job.seed, job.method == BORROWING)
    scores = random_scores(spec, job.method) if RANDOM in job.method else found.scores
    return choose(spec, scores, job.budget), found.variables

  def how(self, job: Job, steps: int) -> dict[str, Any]:
    """What `fit` takes for a training of so many steps."""
    rate = optax.warmup_cosine_decay_schedule(
      0.0, job.rate, steps // self.warmup, max(steps, 1), self.last_rate * job.rate
    )
    return {
      'recipe': Recipe(steps=steps, batch_size=self.batch_size),
      'tx': optax.adamw(rate),
      'progress': False,
    }

  def train(self, job: Job) -> dict[str, Any]:
    """The trained parameters of a job, and its right answers; JSON types."""
    base, splits = self.base(job.task), self.draw(job.task, job.seed)
    train, (inputs, labels) = splits['train'], splits['test']
    how = self.how(job, job.epochs * (len(train.labels) // self.batch_size))
    how['key'] = key_of(job.seed, 'order')
    if job.method == CEILING:

      def loss(params, frozen, batch, key):
        del frozen, key
        return cross_entropy(base.logits(params, batch[0]), batch[1])

      params = self.start(job.task, job.seed)['params']
      params = loop.minimize(loss, params, {}, train, **how).trainable
      number = sum(leaf.size for leaf in jax.tree.leaves(params))
    else:
      structure, variables = self.structure(job)
      fixed = base.adapted.fix(structure)
      params = fixed.fold(fit(fixed, variables, base.train_loss, train, **how).variables)
      number = fixed.count_params()
    blocks = -(-len(labels) // self.batch_size), self.batch_size
    padded = np.resize(inputs, (*blocks, *inputs.shape[1:]))  # the first ones fill the last block
    found = np.concatenate([base.logits(params, block).argmax(-1) for block in padded])
    right = found[: len(labels)] == np.asarray(labels)
    return {'params': number, 'tests': len(labels), 'answers': pack(right)}


def run(study: Study, folder: str) -> None:
  """Trains what has no result in a folder, and keeps each result; it can be killed at any time."""
  results = read_results(folder)
  for job in study.plan(results):
    if job.seed not in results[job[:3]]:
      print(*job, flush=True)
      found = study.train(job)
      append_line(results_path(folder), {'job': job, **found})
      results[job[:3]][job.seed] = found


def results_path(folder: str) -> str:
  """The file of a folder's results."""
  return os.path.join(folder, 'final.jsonl')


def read_results(folder: str) -> Results:
  """The results in a folder."""
  results = collections.defaultdict(dict)
  for line in read_lines(results_path(folder)):
    job = Job(*line['job'])
    results[job[:3]][job.seed] = line
  return results


def key_of(seed: int, purpose: str) -> jax.Array:
  """A seed's random key for one of `PURPOSES`."""
  return jax.random.split(jax.random.key(seed), len(PURPOSES))[PURPOSES.index(purpose)]


@functools.cache
def distinct(spec: Spec) -> Spec:
  """The same layers with what allocations consider on offer; codes mean the same."""
  space = SearchSpace.distinct(spec.layers[0].space.ranks)
  return Spec(tuple(dataclasses.replace(layer, space=space) for layer in spec))


def random_scores(spec: Spec, name: str) -> UnitScores:
  """Scores per parameter that are uniform draws, those of ranks falling; 'random(3)' is draw 3."""
  rng = np.random.default_rng(int(name.removeprefix(RANDOM).removesuffix(')')))
  outs = np.array([layer.out_features for layer in spec])
  ins = np.array([layer.in_features for layer in spec])
  parts = -np.sort(-rng.uniform(size=(2, len(spec), MAX_RANK)), axis=-1) * (ins + outs)[:, None]
  vectors = rng.uniform(size=(3, len(spec)))
  return UnitScores(vectors[0] * outs, *parts, vectors[1] * ins, vectors[2] * outs)


def pack(right: Any) -> str:
  """Right answers, bool [number], as text."""
  return base64.b85encode(np.packbits(right).tobytes()).decode()


def unpack(text: str, number: int) -> np.ndarray:
  """Right answers, bool [number], from the text of `pack`."""
  packed = np.frombuffer(base64.b85decode(text), np.uint8)
  return np.unpackbits(packed, count=number).astype(bool)
