"""Twenty steps of each kind of training, scores, an allocation."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import glora_jax
from glora_jax.vision.data.augment import mixup
from glora_jax.vision.models.vit import ViT

Values = dict[str, Any]

BATCH, IMAGES, CLASSES, SIDE = 16, 80, 3, 16
FREQUENCIES = (0.0, 0.7, 1.9, 3.1)
RECIPE = glora_jax.Recipe(
  epochs=4,
  batch_size=BATCH,
  warmup=1 / 4,
  initial_learning_rate=1e-6,
  learning_rate=3e-3,
  final_learning_rate=1e-5,
)
CONSISTENCY = glora_jax.Consistency(weight=0.5)
# A preset, or None for the supernet; fields of a recipe; options of a loss.
KINDS: dict[str, tuple[str | None, Values, Values]] = {
  'supernet': (None, {}, {}),
  'supernet, paths': (None, {}, {}),
  'supernet, used alone': (None, {'update_used_only': True}, {}),
  'supernet, accumulated': (None, {'accumulate': 2}, {}),
  'supernet, bounded': (None, {'max_grad_norm': 0.5}, {}),
  'supernet, mixed': (None, {}, {'mix': functools.partial(mixup, alpha=0.8)}),
  'supernet, consistency': (None, {}, {'consistency': CONSISTENCY}),
  'fixed, lora:2': ('lora:2', {}, {}),
  'fixed, bitfit': ('bitfit', {}, {}),
  'fixed, full': ('full', {}, {}),
  'fixed, scale_shift_lora:2': ('scale_shift_lora:2', {}, {}),
  'fixed, component dropout': ('lora:4', {}, {'component_dropout': 0.3}),
  'fixed, consistency': ('lora:4', {}, {'consistency': CONSISTENCY}),
}
SAMPLINGS = {'supernet, paths': glora_jax.Sampling(paths=2, largest=0.3)}


class Problem:
  """A small ViT with random parameters, and images whose brightness tells their class."""

  def __init__(self) -> None:
    from trees import randomized

    labels = np.arange(IMAGES) % CLASSES
    noise = np.random.default_rng(0).normal(size=(IMAGES, SIDE, SIDE, 3))
    self.images = jnp.asarray(noise + labels[:, None, None, None], jnp.float32)
    self.labels = jnp.asarray(labels, jnp.int32)
    model = ViT(CLASSES, patch_size=8, width=32, depth=2, num_heads=2, drop_path=0.2)
    shapes = jax.eval_shape(model.init, jax.random.key(0), self.images[:1])['params']
    self.params = randomized(shapes, 3, 0.3)
    space = glora_jax.SearchSpace(ranks=(2, 4))
    self.adapted = glora_jax.adapt(model, self.images[:1], space=space)
    self.variables = self.adapted.init(jax.random.key(1), self.params)

  def fit(self, name: str) -> Values:
    """The loss of every step of a kind of training, and what is trained at the end."""
    preset, fields, options = KINDS[name]
    draw = SAMPLINGS.get(name, glora_jax.Sampling()).draw
    losses: list[float] = []
    state = glora_jax.fit(
      self.adapted.fix(preset) if preset else self.adapted,
      self.variables,
      glora_jax.classification(train=True, **options),
      (self.images, self.labels),
      dataclasses.replace(RECIPE, **fields),
      key=jax.random.key(4),
      sample=None if preset else functools.partial(draw, spec=self.adapted.spec),
      every=1,
      callback=lambda _, means: losses.append(means['loss']),
      progress=False,
    )
    return {'losses': losses, 'trained': digest(state.trainable)}


def record() -> Iterator[tuple[str, Values]]:
  """Names and entries, one after the other."""
  problem = Problem()
  for name in KINDS:
    yield f'training/{name}', problem.fit(name)
  yield 'scores', _scores(problem)
  yield 'allocation', _allocation(problem)


def digest(tree: Any) -> list[float]:
  """A tree of arrays in five numbers: its norm, and its products with four cosines."""
  leaves = [np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)]
  values = np.concatenate([*leaves, np.zeros(1)])
  cosines = (np.cos(frequency * np.arange(len(values))) for frequency in FREQUENCIES)
  return [float(np.linalg.norm(values)), *(float(values @ cosine) for cosine in cosines)]


def _scores(problem: Problem) -> Values:
  from comparing import random_variables

  variables = random_variables(problem.adapted, problem.params)
  genomes = glora_jax.random_genomes(np.random.default_rng(0), problem.adapted.spec, 10)
  score = glora_jax.make_scorer(problem.adapted, glora_jax.classification())
  correct, loss = score(variables, genomes, (problem.images, problem.labels))
  return {'correct': correct, 'loss': loss}


def _allocation(problem: Problem) -> Values:
  space = glora_jax.SearchSpace.distinct((1, 2, 4))
  adapted = glora_jax.adapt(problem.adapted.model, problem.images[:1], space=space)
  batches = [
    (problem.images[start : start + 10], problem.labels[start : start + 10])
    for start in range(0, IMAGES, 10)
  ]

  def loss(forward: Any, batch: Any, key: jax.Array) -> jax.Array:
    del key
    images, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(forward(images), labels).mean()

  variables = adapted.init(jax.random.key(1), problem.params)
  allocation = glora_jax.allocate(
    adapted, variables, loss, batches, budget=400, key=jax.random.key(3), progress=False
  )
  return {
    'genome': allocation.genome,
    'params': allocation.count_params(),
    'signal': allocation.signal,
    'scores': {name: digest(scores) for name, scores in allocation.scores._asdict().items()},
    'starting values': digest(allocation.variables['glora']),
  }
