"""Scoring a population: exact, whatever the chunk, the block and the way of merging."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import randomized

import glora_jax
from glora_jax import space
from glora_jax.models.vit import ViT


@pytest.fixture(scope='module')
def problem():
  model = ViT(4, patch_size=8, width=12, depth=2, num_heads=2)
  images = jax.random.normal(jax.random.key(0), (23, 16, 16, 3))
  labels = jax.random.randint(jax.random.key(1), (23,), 0, 4)
  params = randomized(model.init(jax.random.key(2), images[:1])['params'], 1)
  scored = {}
  for merge in ('up_front', 'lazy'):
    adapted = glora_jax.adapt(model, images[:1], merge=merge)
    variables = adapted.init(jax.random.key(3), params)
    scored[merge] = adapted, {**variables, 'glora': randomized(variables['glora'], 2)}
  genomes = space.random_genomes(np.random.default_rng(0), adapted.spec, 7)
  return scored, genomes, images, labels


def test_scores_are_those_of_the_folded_models(problem):
  scored, genomes, images, labels = problem
  adapted, variables = scored['up_front']
  correct, loss = glora_jax.score(adapted, variables, genomes, images, labels)
  assert (correct.dtype, loss.dtype) == (jnp.int32, jnp.float32)
  plain = jax.jit(lambda genome: adapted.model.apply({'params': adapted.fold(variables, genome)}, images))
  for genome, right, total in zip(genomes, correct, loss, strict=True):
    logits = plain(genome)
    assert right == np.sum(logits.argmax(-1) == labels)
    np.testing.assert_allclose(total, optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum(), rtol=1e-5)
  assert len(set(np.asarray(correct).tolist())) > 1


@pytest.mark.parametrize('merge', ['up_front', 'lazy'])
@pytest.mark.parametrize('chunk, block', [(1, 23), (3, 8), (7, 5), (4, 256)])
def test_chunks_blocks_and_merging_change_no_score(problem, merge, chunk, block):
  scored, genomes, images, labels = problem
  expected = glora_jax.score(*scored['up_front'], genomes, images, labels)
  found = glora_jax.score(*scored[merge], genomes, images, labels, chunk=chunk, block=block)
  np.testing.assert_array_equal(found[0], expected[0])
  np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)


def test_one_compilation_serves_every_population_of_a_size(problem):
  scored, genomes, images, labels = problem
  traces = []
  score = glora_jax.make_scorer(scored['up_front'][0], lambda x: (traces.append(None), x)[1])
  for _ in range(3):
    score(scored['up_front'][1], genomes, images, labels)
    genomes = genomes[::-1].copy()
  assert len(traces) == 1
