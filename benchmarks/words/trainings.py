"""One job: a structure, or the whole encoder, trained on a task's sentences and tested.

All start from one warm head, which is the linear probe. Each structure is fixed, and a program of
its own: a free one would take twice as long here.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.structures import laboratory as lab
from benchmarks.structures.jobs import Job
from benchmarks.structures.methods import distinct, random_scores
from benchmarks.structures.statistics import pack
from benchmarks.words import encoder, texts
from glora_jax.method.adapt import adapt_function
from glora_jax.method.adapted import Adapted
from glora_jax.method.space import SearchSpace
from glora_jax.search.allocate import allocate
from glora_jax.search.allocation import Allocation
from glora_jax.search.choice import choose
from glora_jax.search.unit_scores import mean_scores
from glora_jax.training import loop
from glora_jax.training.fit import linear_probe, step_loss
from glora_jax.training.losses import classification, cross_entropy
from glora_jax.training.recipe import Recipe

BUDGET = 41_472  # of LoRA of rank 1 in every layer
BATCH_SIZE = 32
# The best of 10, 30 and 100 epochs and four rates on the development tasks, and as good there as
# the best of five logistic regressions.
HEAD = Recipe(epochs=10, warmup_epochs=1, batch_size=BATCH_SIZE, learning_rate=3e-3)
MAX_RANK = 8
PROBE, CEILING, TRANSFER = 'linear', 'finetuning', 'transfer'


class Learner(NamedTuple):
  """What is trained.

  Attributes:
    loss: of a batch; see `loop.minimize`.
    trainable: what gets gradients.
    frozen: what does not.
    fold: trained arrays to parameters of the plain encoder.
    params: their number.
  """

  loss: loop.LossFn
  trainable: Any
  frozen: Any
  fold: Callable[[Any], Any]
  params: int


@functools.cache
def adapted() -> tuple[Adapted, Any]:
  """The encoder with all forms on offer, and its parameters."""
  params = encoder.load(texts.ENCODER, texts.CLASSES)
  tokens = jax.ShapeDtypeStruct((1, texts.LENGTH), jnp.int32)
  space = SearchSpace(ranks=tuple(range(1, MAX_RANK + 1)))
  return adapt_function(encoder.logits, params, tokens, space=space), params


@functools.lru_cache(maxsize=4)
def start(task: str, seed: int) -> dict[str, Any]:
  """The variables with the warm head."""
  model, params = adapted()
  variables = model.init(lab.key_of(seed, 'init'), params)
  train = texts.draw(task, seed)['train']
  key = lab.key_of(seed, 'head')
  return linear_probe(model, variables, classification(), train, HEAD, key=key, progress=False)


@functools.lru_cache(maxsize=4)
def allocation(task: str, seed: int) -> Allocation:
  """What the gradient of a task names, in one pass over its sentences."""

  def loss(forward, batch, key):
    del key
    return cross_entropy(forward(batch[0]), batch[1])[0]

  tokens, labels = map(jnp.asarray, texts.draw(task, seed)['train'])
  parts = np.arange(len(labels)).reshape(-1, 100)
  batches, key = [(tokens[part], labels[part]) for part in parts], lab.key_of(seed, 'structure')
  sizes = {'budget': BUDGET, 'max_rank': MAX_RANK}
  return allocate(adapted()[0], start(task, seed), loss, batches, key=key, **sizes, progress=False)


def structure(job: Job) -> tuple[Any, dict[str, Any]]:
  """A job's structure, and the variables that its training starts from."""
  if not job.budget:
    return job.method, start(job.task, job.seed)
  if job.method == 'gradient':
    found = allocation(job.task, job.seed)
    return found.genome, found.variables
  spec = adapted()[0].spec
  if job.method == TRANSFER:  # from the development tasks, without a gradient of this one
    others = [task for task in texts.DEVELOPMENT if task != job.task]
    scores = mean_scores([allocation(task, job.seed).scores for task in others])
    return choose(distinct(spec), scores, BUDGET), start(job.task, job.seed)
  scores = random_scores(spec, int(job.method.removeprefix('random(')[:-1]))
  return choose(distinct(spec), scores, BUDGET), allocation(job.task, job.seed).variables


def learner(job: Job) -> Learner:
  """What a job trains."""
  if job.method == CEILING:
    params = start(job.task, job.seed)['params']

    def loss(params, frozen, batch, key):
      del frozen, key
      return cross_entropy(encoder.logits(params, batch[0]), batch[1])

    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Learner(loss, params, {}, lambda trained: trained, size)
  found, variables = structure(job)
  fixed = adapted()[0].fix(found)
  trainable, frozen = fixed.split(variables)
  return Learner(
    step_loss(fixed, classification()),
    trainable,
    frozen,
    lambda trained: fixed.fold(fixed.join(trained, frozen)),
    fixed.count_params(),
  )


def optimizer(job: Job) -> optax.GradientTransformation:
  """AdamW, a tenth of all steps warm-up, then a cosine."""
  steps = job.epochs * (texts.TRAIN // BATCH_SIZE)
  rate = optax.warmup_cosine_decay_schedule(0.0, job.rate, steps // 10, steps, 0.01 * job.rate)
  return optax.adamw(rate)


def fit(job: Job, what: Learner) -> Any:
  """The trained arrays; a probe is trained already."""
  if job.method == PROBE:
    return what.trainable
  return loop.minimize(
    what.loss,
    what.trainable,
    what.frozen,
    texts.draw(job.task, job.seed)['train'],
    Recipe(epochs=job.epochs, warmup_epochs=0, batch_size=BATCH_SIZE),
    lab.key_of(job.seed, 'order'),
    tx=optimizer(job),
    steps_per_dispatch=texts.TRAIN // BATCH_SIZE,  # one shape, one program
    progress=False,
  ).trainable


@jax.jit
def test(params: Any, tokens: jax.Array, labels: jax.Array) -> jax.Array:
  """Which answers are right, bool [sentence]."""
  blocks = tokens.reshape(-1, BATCH_SIZE, tokens.shape[1])
  logits = jax.lax.map(functools.partial(encoder.logits, params), blocks)
  return logits.reshape(len(labels), -1).argmax(-1) == labels


def run(job: Job) -> dict[str, Any]:
  """The trained parameters of a job, and its right answers; JSON types."""
  what = learner(job)
  right = test(what.fold(fit(job, what)), *texts.draw(job.task, job.seed)['test'])
  return {'params': what.params, 'answers': pack(right)}


def timed(job: Job, number: int) -> Callable[[], Any]:
  """A call that does the next steps of a job; the first compiles."""
  what, tx = learner(job), optimizer(job)
  steps, indices = loop.make_steps(what.loss, tx), np.arange(number * BATCH_SIZE)
  data = jax.tree.map(jnp.asarray, texts.draw(job.task, job.seed)['train'])
  fixed = what.frozen, data, indices.reshape(number, BATCH_SIZE), lab.key_of(job.seed, 'order')
  trainable = jax.tree.map(jnp.array, what.trainable)
  state = [trainable, tx.init(trainable)]

  def call() -> Any:
    state[:] = steps(*state, 0, *fixed)[:2]
    return state

  return call
