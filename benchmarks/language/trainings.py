"""A structure trained on a task's texts, and what it then makes of those to test on."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

import glora_jax
from benchmarks.language import model, texts
from benchmarks.language.methods import (
  DOCUMENTATION,
  GRADIENT,
  LORA,
  METHODS,
  MOOD,
  RANK,
  SPACE,
  STRUCTURES,
)
from benchmarks.language.texts import Arrays, Splits, rows_of
from glora_jax.training import loop
from glora_jax.training.fit import step_loss

GRADIENT_BATCHES = 16
# Others are factors on it, so that trainings of all rates and seeds are one program.
BASE_RATE = 1e-3


class Task(NamedTuple):
  """How a task is trained and tested.

  Attributes:
    splits: its texts by seed.
    batch_size: of a step.
    steps: of a training.
    outcomes: `outcomes(forward, batch)`, the loss of each text in nats, and its score: both [text].
  """

  splits: Callable[[int], Splits]
  batch_size: int
  steps: int
  outcomes: Callable[[Any, Arrays], tuple[jax.Array, jax.Array]]

  @property
  def recipe(self) -> glora_jax.Recipe:
    """A tenth of all steps warm-up, then a cosine to 0."""
    return glora_jax.Recipe(
      steps=self.steps,
      batch_size=self.batch_size,
      epochs=10,
      warmup_epochs=1,
      learning_rate=BASE_RATE,
      initial_learning_rate=0.0,
      final_learning_rate=0.0,
    )

  def loss(self, forward: Any, batch: Arrays, key: jax.Array) -> jax.Array:
    """The mean loss of a batch."""
    del key
    return self.outcomes(forward, batch)[0].mean()


class Setting(NamedTuple):
  """What is trained.

  Attributes:
    module: the pretrained model.
    tasks: by name.
    rates: learning rates to choose from, by method.
    seeds: number of trainings of a method on a task.
  """

  module: torch.nn.Module
  tasks: dict[str, Task]
  rates: dict[str, tuple[float, ...]]
  seeds: int


class Learner(NamedTuple):
  """A method before it learns a task.

  Attributes:
    adapted: the adapted model, with a fixed structure.
    variables: what training starts from.
    task: what is learned.
    splits: its texts.
    key: of the training.
  """

  adapted: glora_jax.Adapted
  variables: Any
  task: Task
  splits: Splits
  key: jax.Array

  def tester(self, arrays: Arrays) -> Callable[[Any], tuple[jax.Array, jax.Array]]:
    """`test(variables)`: losses and scores of texts, both [text]."""
    size = self.task.batch_size
    blocks = jax.tree.map(lambda rows: jnp.reshape(rows, (-1, size, *rows.shape[1:])), arrays)

    @jax.jit
    def test(variables: Any) -> tuple[jax.Array, jax.Array]:
      forward = glora_jax.Forward(self.adapted, variables)
      found = jax.lax.map(functools.partial(self.task.outcomes, forward), blocks)
      return jax.tree.map(jnp.ravel, found)

    return test

  def result(self, variables: Any) -> dict[str, Any]:
    """Parameters and scores of what was trained."""
    scores = self.tester(self.splits.test)(variables)[1]
    return {'params': self.adapted.count_params(), 'scores': np.asarray(scores, float)}


def learner(setting: Setting, name: str, method: str, seed: int) -> Learner:
  """A method with its structure and starting values."""
  task = setting.tasks[name]
  splits = task.splits(seed)
  init_key, structure_key, key = jax.random.split(jax.random.key(seed), 3)
  is_fixed = method != GRADIENT
  adapted, params = glora_jax.torch.adapt(
    setting.module,
    splits.train['tokens'][:1],
    structure=STRUCTURES[method] if is_fixed else None,
    space=None if is_fixed else SPACE,
    heads=None,
    use_cache=False,
  )
  variables = adapted.init(init_key, params)
  if not is_fixed:
    adapted, variables = allocated(adapted, variables, task, splits, structure_key)
  return Learner(adapted, variables, task, splits, key)


def allocated(
  adapted: glora_jax.Adapted, variables: Any, task: Task, splits: Splits, key: jax.Array
) -> tuple[glora_jax.Adapted, Any]:
  """The gradient's structure of the size of LoRA in all layers, and what it starts from."""
  size = task.batch_size
  starts = range(0, GRADIENT_BATCHES * size, size)
  found = glora_jax.allocate(
    adapted,
    variables,
    task.loss,
    [rows_of(splits.train, slice(start, start + size)) for start in starts],
    budget=adapted.fix(STRUCTURES[LORA]).count_params(),
    key=key,
    max_rank=2 * RANK,
    progress=False,
  )
  return adapted.fix(found.genome), found.variables


def untrained(setting: Setting, name: str) -> dict[str, Any]:
  """The result of the pretrained model, which every structure starts as."""
  ready = learner(setting, name, LORA, 0)
  return {**ready.result(ready.variables), 'params': 0}


def sweep(setting: Setting, name: str, method: str) -> tuple[dict[str, Any], dict[str, Any]]:
  """Validation losses of all rates on a task, and the result of the best: of seed 0."""
  ready = learner(setting, name, method, 0)
  test = ready.tester(ready.splits.validation)
  found = glora_jax.sweep(
    ready.adapted,
    ready.variables,
    ready.task.loss,
    ready.splits.train,
    ready.task.recipe,
    rates=setting.rates[method],
    validation_loss=lambda variables: test(variables)[0].mean(),
    key=ready.key,
    steps_per_dispatch=ready.task.steps,
  )
  losses = {'rates': found.rates, 'losses': found.losses, 'best': found.recipe.learning_rate}
  return losses, ready.result(found.variables)


def train(setting: Setting, name: str, method: str, seed: int, rate: float) -> dict[str, Any]:
  """The result of one training."""
  ready = learner(setting, name, method, seed)
  state = glora_jax.fit(
    ready.adapted,
    ready.variables,
    ready.task.loss,
    ready.splits.train,
    ready.task.recipe,
    rates=rate / BASE_RATE,
    key=ready.key,
    steps_per_dispatch=ready.task.steps,
    title=f'{name}, {method}, seed {seed}',
  )
  return ready.result(state.variables)


def steps(setting: Setting, name: str, method: str, number: int) -> Callable[[], Any]:
  """A call that does so many steps; the first one compiles."""
  adapted, variables, task, splits, key = learner(setting, name, method, 0)
  tx = optax.adamw(1e-4)
  compiled = loop.make_steps(step_loss(adapted, task.loss), tx)
  indices = np.arange(number * task.batch_size).reshape(number, task.batch_size)
  trainable, frozen = adapted.split(variables)
  trainable = jax.tree.map(jnp.copy, trainable)
  state, data = [trainable, tx.init(trainable)], jax.tree.map(jnp.asarray, splits.train)

  def call() -> Any:
    state[:] = compiled(*state, 0, frozen, data, indices, key)[:2]
    return state

  return call


def setting() -> Setting:
  """SmolLM2 and both tasks."""
  tokenizer = model.tokenizer()
  words = np.array([tokenizer(word).input_ids for word in texts.ANSWERS])[:, 0]

  def splits(draw: Callable[..., Splits]) -> Callable[[int], Splits]:
    return functools.lru_cache(functools.partial(draw, tokenizer))

  return Setting(
    model.load(),
    {
      MOOD: Task(splits(texts.mood), 8, 62, functools.partial(answer, words)),
      DOCUMENTATION: Task(splits(texts.documentation), 4, 40, free_text),
    },
    rates=dict.fromkeys(METHODS, (3e-4, 1e-3, 3e-3, 1e-2)) | {GRADIENT: (3e-5, 1e-4, 3e-4, 1e-3)},
    seeds=3,
  )


def quick_setting() -> Setting:
  """A tiny model and random texts, in the form of both tasks."""

  def splits(seed: int) -> Splits:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, model.VOCABULARY, (160, texts.LENGTH), dtype=np.int32)
    answers = (tokens[:, 0] % len(texts.ANSWERS)).astype(np.int32)
    arrays = {'tokens': tokens, 'mask': np.ones_like(tokens), 'answers': answers}
    parts = np.split(np.arange(160), [128, 144])
    return Splits(*(rows_of(arrays, rows) for rows in parts))

  words = np.arange(len(texts.ANSWERS))
  return Setting(
    model.tiny(),
    {
      MOOD: Task(splits, 8, 4, functools.partial(answer, words)),
      DOCUMENTATION: Task(splits, 4, 4, free_text),
    },
    rates=dict.fromkeys(METHODS, (1e-3, 1e-2)),
    seeds=2,
  )


def answer(words: np.ndarray, forward: Any, batch: Arrays) -> tuple[jax.Array, jax.Array]:
  """Loss of the right word among all tokens, and whether it is the likeliest of the words."""
  outputs = forward(
    batch['tokens'], attention_mask=batch['mask'], logits_to_keep=1, use_cache=False
  )
  logits, answers = outputs.logits[:, 0], batch['answers']
  right = jnp.asarray(words)[answers]
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, right)
  return losses, logits[:, words].argmax(-1) == answers


def free_text(forward: Any, batch: Arrays) -> tuple[jax.Array, jax.Array]:
  """Mean loss of a text's tokens, each given those before it; the score is the loss."""
  tokens = batch['tokens']
  logits = forward(tokens, use_cache=False).logits[:, :-1]
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean(-1)
  return losses, losses
