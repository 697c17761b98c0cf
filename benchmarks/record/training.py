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
from benchmarks.record.comparing import Values, digest
from glora_jax.vision.data.augment import mixup
from glora_jax.vision.models.vit import ViT

STEPS, BATCH, IMAGES, CLASSES, SIDE = 20, 16, 80, 3, 16
RECIPE = glora_jax.Recipe(epochs=4, batch_size=BATCH, warmup_epochs=1, learning_rate=3e-3)
CONSISTENCY = glora_jax.Consistency(weight=0.5)
SUPERNETS: dict[str, tuple[Values, Values]] = {  # fields of a recipe, and options of a loss
  'supernet': ({}, {}),
  'supernet, paths': ({}, {'sampling': glora_jax.Sampling(paths=2, largest=0.3)}),
  'supernet, used alone': ({'update_used_only': True}, {}),
  'supernet, accumulated': ({'accumulate': 2}, {}),
  'supernet, bounded': ({'max_grad_norm': 0.5}, {}),
  'supernet, mixed': ({}, {'mix': functools.partial(mixup, alpha=0.8)}),
  'supernet, consistency': ({}, {'consistency': CONSISTENCY}),
}
FIXED: dict[str, tuple[str, Values]] = {
  'fixed, lora:2': ('lora:2', {}),
  'fixed, bitfit': ('bitfit', {}),
  'fixed, full': ('full', {}),
  'fixed, scale_shift_lora:2': ('scale_shift_lora:2', {}),
  'fixed, component dropout': ('lora:4', {'component_dropout': 0.3}),
  'fixed, consistency': ('lora:4', {'consistency': CONSISTENCY}),
}


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

  def fit(self, learner: Any, options: Values, recipe: Any = RECIPE, sample: Any = None) -> Values:
    """The loss of every step, and what is trained at the end."""
    losses: list[float] = []
    state = glora_jax.fit(
      learner,
      self.variables,
      glora_jax.classification(train=True, **options),
      (self.images, self.labels),
      recipe,
      key=jax.random.key(4),
      sample=sample,
      steps_per_dispatch=1,
      on_dispatch=lambda _, means: losses.append(means['loss']),
      progress=False,
    )
    assert len(losses) == STEPS
    return {'losses': losses, 'trained': digest(state.trainable)}


def record() -> Iterator[tuple[str, Values]]:
  """Names and entries, one after the other."""
  problem = Problem()
  adapted = problem.adapted
  for name, (fields, given) in SUPERNETS.items():
    options = dict(given)
    recipe = dataclasses.replace(RECIPE, **fields)
    sampling = options.pop('sampling', glora_jax.Sampling())
    draw = functools.partial(sampling.draw, spec=adapted.spec)
    yield f'training/{name}', problem.fit(adapted, options, recipe, draw)
  for name, (preset, options) in FIXED.items():
    fixed = adapted.fix(preset)
    yield f'training/{name}', problem.fit(fixed, options)
  yield 'scores', _scores(problem)
  yield 'allocation', _allocation(problem)


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
