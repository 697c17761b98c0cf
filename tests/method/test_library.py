"""The whole method in a training loop of one's own: plain optax, one's own model and score."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import glora_jax
from glora_jax.models.vit import ViT


def glora_by_hand(model, params, inputs, labels, steps, budget):
  """Sample, train, search, fold, in about 30 lines.

  Returns:
    (folded params, loss of the training data before, and after).
  """
  adapted = glora_jax.adapt(model, inputs[:1])
  variables = jax.jit(adapted.init)(jax.random.key(0), params)
  trainable, frozen = adapted.split(variables)
  optimizer = optax.adam(1e-2)

  def cross_entropy(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  def loss(trainable, genome):
    variables = adapted.join(trainable, frozen)
    return cross_entropy(adapted.apply(variables, inputs, genome=genome))

  @jax.jit
  def step(trainable, state, key):
    genome = glora_jax.sample_genome(key, adapted.spec)
    updates, state = optimizer.update(jax.grad(loss)(trainable, genome), state)
    return optax.apply_updates(trainable, updates), state

  state = optimizer.init(trainable)
  for i in range(steps):
    trainable, state = step(trainable, state, jax.random.key(i))

  losses = jax.jit(jax.vmap(functools.partial(loss, trainable)))

  def score(genomes):  # one's own measure; here the loss alone
    return np.zeros(len(genomes), int), losses(genomes)

  settings = glora_jax.Evolution(
    population=12, generations=2, parents=4, mutations=6, crossovers=6, fitness='loss'
  )
  archive = glora_jax.evolve(
    adapted.spec, score, jax.random.key(1), settings, budget=budget, progress=False
  )
  winner = archive.best('loss')
  assert adapted.count_params(winner) <= budget
  folded = jax.jit(adapted.fold)(adapted.join(trainable, frozen), winner)
  plain = jax.jit(lambda params: cross_entropy(model.apply({'params': params}, inputs)))
  return folded, float(plain(params)), float(plain(folded))


def test_an_optax_loop_trains_searches_and_folds_a_vision_model():
  labels = jnp.arange(24) % 3
  classes = jax.random.normal(jax.random.key(1), (3, 16, 16, 3))
  images = classes[labels] + 0.5 * jax.random.normal(jax.random.key(0), (24, 16, 16, 3))
  model = ViT(3, patch_size=8, width=12, depth=2, num_heads=2)
  params = jax.jit(model.init)(jax.random.key(0), images[:1])['params']
  folded, before, after = glora_by_hand(model, params, images, labels, steps=60, budget=600)
  assert after < 0.5 * before
  assert jax.tree.structure(folded) == jax.tree.structure(params)
