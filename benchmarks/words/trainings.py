"""One job: a structure, or the whole encoder, trained on a task's sentences and tested.

All start from one warm head, which is the linear probe. Each structure is fixed, and a program of
its own: a free one would take twice as long here.
"""

import base64
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.structures import laboratory as lab
from benchmarks.structures.jobs import Job
from benchmarks.structures.methods import distinct, random_values
from benchmarks.words import encoder, texts
from glora_jax.method.adapt import adapt_function
from glora_jax.method.adapted import Adapted
from glora_jax.method.space import SearchSpace
from glora_jax.search.allocate import allocate
from glora_jax.search.allocated import Allocation
from glora_jax.search.allocation import mean_of
from glora_jax.search.choice import choose
from glora_jax.training import loop
from glora_jax.training.head_alone import warm_head
from glora_jax.training.losses import cross_entropy, make_loss
from glora_jax.training.recipe import Recipe

BUDGET = 41_472  # of LoRA of rank 1 in every layer
BATCH_SIZE = 32
# The best of 10, 30 and 100 epochs and four rates on the development tasks, and as good there as
# the best of five logistic regressions.
HEAD = Recipe(epochs=10, warmup_epochs=1, batch_size=BATCH_SIZE, learning_rate=3e-3)
MAX_RANK = 8
PROBE, CEILING, KNOWN = 'linear', 'finetuning', 'known'


class Learner(NamedTuple):
  """What is trained.

  Attributes:
    loss: of a batch; see `loop.fit`.
    trainable: what gets gradients.
    frozen: what does not.
    fold: trained arrays to parameters of the plain encoder.
    notes: JSON types.
  """

  loss: loop.LossFn
  trainable: Any
  frozen: Any
  fold: Callable[[Any], Any]
  notes: dict[str, Any]


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
  return warm_head(model, variables, *train, HEAD, lab.key_of(seed, 'head'), progress=False)


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
  if job.method == KNOWN:  # by the development tasks, and so without a gradient of its own
    others = [task for task in texts.DEVELOPMENT if task != job.task]
    values = mean_of([allocation(task, job.seed).values for task in others])
    return choose(distinct(spec), values, BUDGET), start(job.task, job.seed)
  values = random_values(spec, int(job.method.removeprefix('random(')[:-1]))
  return choose(distinct(spec), values, BUDGET), allocation(job.task, job.seed).variables


def learner(job: Job) -> Learner:
  """What a job trains."""
  if job.method == CEILING:
    params = start(job.task, job.seed)['params']

    def loss(params, frozen, batch, key):
      del frozen, key
      return cross_entropy(encoder.logits(params, batch[0]), batch[1])

    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Learner(loss, params, {}, lambda trained: trained, {'params': size})
  found, variables = structure(job)
  fixed = adapted()[0].fix(found)
  notes = {'params': fixed.count_params(), 'genome': fixed.genome.tolist()}
  trainable, frozen = fixed.split(variables)
  return Learner(
    make_loss(fixed),
    trainable,
    frozen,
    lambda trained: fixed.fold(fixed.join(trained, frozen)),
    notes,
  )


def optimizer(epochs: int, rate: float) -> optax.GradientTransformation:
  """AdamW, a tenth of all steps warm-up, then a cosine; the rate is no constant of the program."""
  steps = epochs * (texts.TRAIN // BATCH_SIZE)
  schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, steps // 10, steps, 0.01)
  by_rate = optax.GradientTransformation(lambda params: jnp.float32(rate), lab.scaled().update)
  return optax.chain(optax.adamw(schedule), by_rate)


def fit(job: Job, what: Learner) -> Any:
  """The trained arrays; a probe is trained already."""
  if job.method == PROBE:
    return what.trainable
  return loop.fit(
    what.loss,
    what.trainable,
    what.frozen,
    *map(jnp.asarray, texts.draw(job.task, job.seed)['train']),
    Recipe(epochs=job.epochs, warmup_epochs=0, batch_size=BATCH_SIZE),
    lab.key_of(job.seed, 'order'),
    tx=optimizer(job.epochs, job.rate),
    steps_per_dispatch=texts.TRAIN // BATCH_SIZE,  # one shape, one program
    progress=False,
  ).trainable


@jax.jit
def test(params: Any, tokens: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Which answers are right, bool [sentence], and their mean loss."""
  blocks = tokens.reshape(-1, BATCH_SIZE, tokens.shape[1])
  logits = jax.lax.map(functools.partial(encoder.logits, params), blocks)
  logits = logits.reshape(len(labels), -1)
  return logits.argmax(-1) == labels, cross_entropy(logits, labels)[0]


def run(job: Job, stop: Any = None) -> dict[str, Any]:
  """Trains and tests; JSON types. Seconds are those of the warm head, what is trained, training."""
  del stop
  times = [time.perf_counter()]
  jax.block_until_ready(start(job.task, job.seed))
  times.append(time.perf_counter())
  what = learner(job)
  times.append(time.perf_counter())
  trained = jax.block_until_ready(fit(job, what))
  times.append(time.perf_counter())
  right, loss = test(what.fold(trained), *texts.draw(job.task, job.seed)['test'])
  return {
    **what.notes,
    'test': [round(float(right.mean()), 5), round(float(loss), 5)],
    'answers': base64.b85encode(np.packbits(right).tobytes()).decode(),
    'seconds': [round(each, 1) for each in np.diff(times).tolist()],
  }


def timed(job: Job, number: int) -> Callable[[], Any]:
  """A call that does the next steps of a job; the first compiles."""
  what, tx = learner(job), optimizer(job.epochs, job.rate)
  steps, indices = loop.make_steps(what.loss, tx), np.arange(number * BATCH_SIZE)
  data = map(jnp.asarray, texts.draw(job.task, job.seed)['train'])
  fixed = what.frozen, *data, indices.reshape(number, BATCH_SIZE), lab.key_of(job.seed, 'order')
  trainable = jax.tree.map(jnp.array, what.trainable)
  state = [trainable, tx.init(trainable)]

  def call() -> Any:
    state[:] = steps(*state, 0, *fixed)[:2]
    return state

  return call
