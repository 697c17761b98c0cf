"""Scoring a population: exact, whatever the chunk, the block and the way of merging."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from joining import run_on_eight
from numpy.testing import assert_allclose, assert_array_equal
from tiny_models import problem, reference_scores

import glora_jax
from glora_jax.search import scoring

pytestmark = pytest.mark.accelerator

LOSS = glora_jax.classification()


def assert_same_scores(found, expected):
  assert_array_equal(found[0], expected[0])
  assert_allclose(found[1], expected[1], rtol=1e-5)


def score(problem, loss=LOSS, **options):
  adapted, variables, genomes, images, labels = problem
  return scoring.make_scorer(adapted, loss, **options)(variables, genomes, (images, labels))


def pretend(monkeypatch, platform):
  """Makes scorers those of a platform that may not be here."""
  monkeypatch.setattr(scoring, '_platform_of', lambda mesh: platform)


@pytest.mark.parametrize('platform', ['cpu', 'tpu'])
@pytest.mark.parametrize(
  'model, chunk, block, wide',
  [('mlp', 3, 8, True), ('mlp', 4, 256, False), ('transformer', 7, 8, False)],
)
def test_scores_are_those_of_the_folded_models(model, platform, chunk, block, wide, monkeypatch):
  """Also where JAX counts in 64 bits."""
  pretend(monkeypatch, platform)  # folded once a candidate, or merged in every pass
  given, expected = problem(model), reference_scores(model)
  with jax.enable_x64(wide):
    found = score(given, chunk=chunk, block=block)
  assert_same_scores(found, expected)
  assert (found.correct.dtype, found.loss.dtype) == (jnp.int32, jnp.float32)


def test_images_become_inputs_block_by_block():
  adapted, variables, genomes, images, _ = problem('mlp')

  def as_floats(images, key):
    return jnp.float32(images)

  def temporaries(number):
    many = np.zeros((number, *images.shape[1:]), np.uint8)
    loss = glora_jax.classification(as_floats)
    scorer = scoring.make_scorer(adapted, loss, chunk=1, block=8)
    lowered = scorer.lower(variables, genomes, (many, np.zeros(number, np.int32)))
    return lowered.compile().memory_analysis().temp_size_in_bytes

  assert temporaries(4096) - temporaries(8) < 4096 * 4 * images[0].size / 2


def test_only_classes_that_count_are_answers():
  adapted, variables, genomes, images, labels = problem('mlp')
  classes = np.array([True, False, True, True])
  logits = np.array(jax.jit(adapted.apply)(variables, images, genome=genomes[1]))
  assert (logits.argmax(-1) == 1).any()  # a class that does not count
  logits[:, ~classes] = -np.inf
  masked = glora_jax.classification(classes=classes)
  [correct] = score((adapted, variables, genomes[1][None], images, labels), masked).correct
  assert correct == (logits.argmax(-1) == labels).sum()


def test_the_chunk_is_the_largest_that_fits_into_memory(monkeypatch):
  adapted, variables, genomes, *data = problem('mlp', 12)
  arguments = variables, genomes, tuple(x[:16] for x in data)  # two blocks

  @functools.cache
  def scorer(chunk):
    return scoring.make_scorer(adapted, LOSS, chunk=chunk, block=8)

  @functools.cache
  def size(chunk):
    return scorer(chunk).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

  with monkeypatch.context() as patched:
    pretend(patched, 'tpu')  # where kernels are merged in every pass
    for most, larger in ((1, 2), (3, 4), (6, 12)):  # chunks of equal size
      assert scoring.fitting_chunk(scorer, arguments, 12, size(most)) == most
      assert size(larger) > size(most)
    assert scoring.fitting_chunk(scorer, arguments, 12, 0) == 1
    assert scoring.fitting_chunk(scorer, arguments, 12, 2**40) == 12
  found = score(problem('mlp', 12), block=8, memory=2**20)
  assert_same_scores(found, reference_scores('mlp', 12))


def test_the_chunk_fits_the_images_of_each_call_whatever_the_first_call_had():
  adapted, variables, genomes, *images_and_labels = problem('mlp', 12)
  one, many = (tuple(jnp.resize(x, (n, *x.shape[1:])) for x in images_and_labels) for n in (1, 230))
  lowered = scoring.make_scorer(adapted, LOSS, chunk=1).lower(variables, genomes, many)
  memory = lowered.compile().memory_analysis().temp_size_in_bytes
  used, fresh = (scoring.make_scorer(adapted, LOSS, memory=memory) for _ in range(2))
  used(variables, genomes, one)
  programs = [str(jax.make_jaxpr(scorer)(variables, genomes, many)) for scorer in (used, fresh)]
  assert programs[0] == programs[1]


@pytest.mark.parametrize('number, shards, block', [(23, 1, 8), (24, 1, 7), (5, 8, 8), (100, 8, 16)])
def test_each_example_is_in_one_block_and_blocks_fill_at_least_half(number, shards, block):
  mesh = SimpleNamespace(data_shards=shards, block=block)
  blocks, rest = scoring._Evaluator._blocks(mesh, number)
  assert sorted([*blocks.flat, *rest.flat]) == list(range(number))
  assert blocks.shape[1] == shards
  assert len(rest) in (1, shards)
  assert block / 2 < shards * blocks.shape[2] <= max(block, shards)


@pytest.mark.parametrize('block', [5, 8, 23])
def test_any_loss_of_any_data_is_weighed_by_the_size_of_its_blocks(block):
  adapted, variables, genomes, images, _ = problem('mlp')
  images = images[:21]  # of which the last block has fewer

  def loss(forward, batch, key):
    return jnp.square(forward(batch['x']) - batch['y'][0]).mean()

  found = scoring.make_scorer(adapted, loss, block=block)(
    variables, genomes, {'x': images, 'y': [1.0] * len(images)}
  )
  assert found.correct is None
  for genome, total in zip(genomes, found.loss, strict=True):
    logits = adapted.apply(variables, images, genome=genome)
    assert_allclose(total, len(images) * jnp.square(logits - 1).mean(), rtol=1e-5)


def test_noise_on_the_adapter_reaches_the_scores_of_folded_structures(monkeypatch):
  noisy = glora_jax.classification(component_dropout=0.5)
  merged_once = score(problem('mlp'), noisy)
  pretend(monkeypatch, 'tpu')
  assert_allclose(merged_once.loss, score(problem('mlp'), noisy).loss, rtol=1e-5)
  assert not np.allclose(merged_once.loss, score(problem('mlp')).loss, rtol=1e-3)


@pytest.mark.slow
def test_sharded_scores_are_unsharded_ones_with_at_most_one_collective_a_block():
  lines = run_on_eight('programs/sharded_scores').splitlines()
  assert len(lines) == 4
  assert all(int(line.split()[-1]) <= 1 for line in lines), lines
