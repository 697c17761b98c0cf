"""The whole method inside somebody else's training loop: plain optax, their own model, their own score function."""

import jax
import jax.numpy as jnp
import model_zoo
import numpy as np
import optax

import glora_jax
from glora_jax import tree
from glora_jax.models.vit import ViT


def glora_by_hand(model, params, inputs, labels, steps, budget):
  """Sample, train, search, fold, in under 30 lines; (folded params, loss before, loss after) of the training data."""
  adapted = glora_jax.adapt(model, inputs[:1])
  variables = adapted.init(jax.random.key(0), params)
  trainable, frozen = adapted.split(variables)
  optimizer = optax.adam(1e-2)
  cross_entropy = lambda logits: optax.softmax_cross_entropy_with_integer_labels(
    logits, labels
  ).mean()

  @jax.jit
  def step(trainable, state, key):
    genome = glora_jax.sample_genome(key, adapted.spec)
    loss = lambda t: cross_entropy(adapted.apply(adapted.join(t, frozen), inputs, genome=genome))
    updates, state = optimizer.update(jax.grad(loss)(trainable), state)
    return optax.apply_updates(trainable, updates), state

  state = optimizer.init(trainable)
  for i in range(steps):
    trainable, state = step(trainable, state, jax.random.key(i))
  variables = adapted.join(trainable, frozen)

  losses = jax.jit(
    jax.vmap(lambda genome: cross_entropy(adapted.apply(variables, inputs, genome=genome)))
  )
  score = lambda genomes: (
    np.zeros(len(genomes), int),
    losses(genomes),
  )  # one's own measure; here the loss alone
  small = glora_jax.Evolution(
    population=12, generations=2, parents=4, mutations=6, crossovers=6, fitness='loss'
  )
  winner = glora_jax.evolve(
    adapted.spec, score, jax.random.key(1), small, budget=budget, progress=False
  ).best('loss')
  assert adapted.count_params(winner) <= budget
  folded = adapted.fold(variables, winner)
  return folded, *(
    float(cross_entropy(model.apply({'params': p}, inputs))) for p in (params, folded)
  )


def test_an_optax_loop_trains_searches_and_folds_a_vision_model():
  labels = jnp.arange(24) % 3
  images = jax.random.normal(jax.random.key(1), (3, 16, 16, 3))[labels] + 0.5 * jax.random.normal(
    jax.random.key(0), (24, 16, 16, 3)
  )
  model = ViT(3, patch_size=8, width=12, depth=2, num_heads=2)
  params = model.init(jax.random.key(0), images[:1])['params']
  folded, before, after = glora_by_hand(model, params, images, labels, steps=60, budget=600)
  assert after < 0.5 * before
  assert jax.tree.structure(folded) == jax.tree.structure(params)


def test_the_same_loop_adapts_a_language_model_to_new_text():
  """Next-token prediction: a sequence that repeats is learned by supports alone, the embeddings stay."""
  model = model_zoo.language_model().model
  tokens = jnp.tile(jnp.array([[1, 4, 2, 3, 0, 5]]), (4, 2))
  params = model.init(jax.random.key(0), tokens[:1, :-1])['params']
  folded, before, after = glora_by_hand(
    model, params, tokens[:, :-1], tokens[:, 1:], steps=150, budget=1500
  )
  assert after < 0.7 * before
  embedding = [
    path
    for path in jax.tree_util.tree_leaves_with_path(params)
    if 'embedding' in jax.tree_util.keystr(path[0])
  ]
  assert embedding
  for path, value in embedding:
    np.testing.assert_array_equal(tree.get(folded, tuple(p.key for p in path)), value)
