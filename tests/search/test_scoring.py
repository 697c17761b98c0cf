"""Scoring a population: exact, whatever the chunk, the block and the way of merging."""

import os
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import program, randomized

import glora_jax
from glora_jax.method.genomes import random_genomes
from glora_jax.models.vit import ViT
from glora_jax.search import early_stopping, scoring


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
  genomes = random_genomes(np.random.default_rng(0), adapted.spec, 7)
  return scored, genomes, images, labels


def test_scores_are_those_of_the_folded_models(problem):
  scored, genomes, images, labels = problem
  adapted, variables = scored['up_front']
  correct, loss = glora_jax.score(adapted, variables, genomes, images, labels)
  assert (correct.dtype, loss.dtype) == (jnp.int32, jnp.float32)
  plain = jax.jit(
    lambda genome: adapted.model.apply({'params': adapted.fold(variables, genome)}, images)
  )
  for genome, right, total in zip(genomes, correct, loss, strict=True):
    logits = plain(genome)
    assert right == np.sum(logits.argmax(-1) == labels)
    np.testing.assert_allclose(
      total, optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum(), rtol=1e-5
    )
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


def test_image_scores_add_up(problem):
  scored, genomes, images, labels = problem
  right, losses = scoring.make_image_scorer(scored['lazy'][0], chunk=3, block=8)(
    scored['lazy'][1], genomes, images, labels
  )
  correct, loss = glora_jax.score(*scored['up_front'], genomes, images, labels)
  np.testing.assert_array_equal(right.sum(1), correct)
  np.testing.assert_allclose(losses.sum(1), loss, rtol=1e-5)


@pytest.mark.parametrize('merge, block', [('up_front', 8), ('lazy', 23)])
def test_predictions_are_the_most_probable_of_the_classes_that_count(problem, merge, block):
  scored, genomes, images, labels = problem
  adapted, variables = scored[merge]
  logits, answers = np.array(jax.jit(adapted.apply)(variables, images, genome=genomes[1])), []
  for classes in (None, np.array([True, False, True, True])):
    logits[:, [] if classes is None else ~classes] = -np.inf
    found = scoring.make_predictor(adapted, block=block, classes=classes)(
      variables, genomes[1], images
    )
    np.testing.assert_array_equal(found.classes, logits.argmax(-1))
    np.testing.assert_allclose(found.probabilities, jax.nn.softmax(logits).max(-1), rtol=1e-5)
    correct, _ = glora_jax.score(adapted, variables, genomes[1:2], images, labels, classes=classes)
    assert correct[0] == (found.classes == labels).sum()
    answers.append(set(np.asarray(found.classes).tolist()))
  assert len(answers[0]) > 1
  assert answers[0] - answers[1] == {1}


def test_the_images_that_most_get_wrong_come_first():
  wrong = np.array([[0, 1, 1, 0], [0, 1, 0, 0], [0, 1, 1, 1]], bool)
  assert early_stopping.hardest_first(wrong).tolist() == [1, 2, 3, 0]


def test_the_chunk_is_the_largest_that_fits_into_memory(problem):
  scored, genomes, images, labels = problem
  adapted, variables = scored['lazy']
  of_chunk = lambda chunk: scoring.make_scorer(adapted, chunk=chunk, block=8)
  arguments = variables, np.concatenate([genomes, genomes]), images, labels
  taken = lambda chunk: (
    of_chunk(chunk).lower(*arguments).compile().memory_analysis().temp_size_in_bytes
  )
  for memory in (taken(1), taken(3), taken(7)):
    chunk = scoring.fitting_chunk(of_chunk, arguments, 14, memory)
    assert taken(chunk) <= 1.1 * memory
    larger = next((n for n in range(chunk + 1, 15) if -(-14 // n) < -(-14 // chunk)), None)
    assert larger is None or taken(larger) > 0.9 * memory
  assert scoring.fitting_chunk(of_chunk, arguments, 14, 0) == 1
  found = scoring.make_scorer(adapted, block=8, memory=taken(3))(*arguments)
  np.testing.assert_array_equal(found[0], of_chunk(1)(*arguments)[0])


@pytest.mark.parametrize('chunk', [1, 3])
@pytest.mark.parametrize('fitness', ['accuracy', 'loss'])
def test_stopping_early_selects_the_parents_of_full_evaluation(problem, chunk, fitness):
  scored, _, images, labels = problem
  adapted, variables = scored['up_front']
  genomes = random_genomes(np.random.default_rng(4), adapted.spec, 24)
  valid = np.arange(24) < 21
  correct, loss = (
    np.asarray(x)[:21] for x in glora_jax.score(adapted, variables, genomes, images, labels)
  )
  worst, parents = (np.inf if fitness == 'loss' else -np.inf), 4
  stop = early_stopping.make_stopping_scorer(adapted, fitness=fitness, chunk=chunk, block=3)
  values = loss if fitness == 'loss' else -correct
  for before in (
    np.full(parents, worst),
    np.sort(values)[2 : 2 + parents] * (1 if fitness == 'loss' else -1),
  ):
    found_correct, found_loss, exact = (
      np.asarray(x)[:21] for x in stop(variables, genomes, images, labels, valid, before)
    )
    np.testing.assert_array_equal(found_correct[exact], correct[exact])
    np.testing.assert_allclose(found_loss[exact], loss[exact], rtol=1e-5)
    assert (found_correct >= correct).all()
    assert (found_loss <= loss + 1e-4).all()
    bar = np.sort(np.concatenate([values, before * (1 if fitness == 'loss' else -1)]))[parents - 1]
    assert exact[values <= bar - 1e-4].all()  # whoever can be a parent was scored to the end
    assert fitness == 'loss' or not exact.all()


def test_sharded_scores_are_unsharded_ones_with_at_most_one_collective_a_block():
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': os.environ['XLA_FLAGS'] + ' --xla_force_host_platform_device_count=8',
  }
  ran = subprocess.run(program('sharded_scores'), env=environment, capture_output=True, text=True)
  assert ran.returncode == 0, ran.stderr[-3000:]
  lines = ran.stdout.strip().splitlines()
  assert len(lines) == 4
  assert all(int(line.split()[-1]) <= 1 for line in lines), ran.stdout
