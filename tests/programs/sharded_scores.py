"""Scores a population of transformers on meshes of three shapes, as one device does.

Prints a line for each mesh, which ends with the most collectives in the body of a loop.
"""

import re

import jax
from numpy.testing import assert_allclose, assert_array_equal
from tiny_models import problem, reference_scores

import glora_jax
from glora_jax.search import scoring

COLLECTIVE = re.compile(
  r'(?:all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\('
)
NUM_GENOMES = 11  # neither a multiple of the rows of a mesh nor of a chunk


def most_collectives(text):
  """The largest number of collectives in the body of a loop of a compiled program."""
  parts = {part.split(' ', 1)[0].lstrip('%'): part for part in text.split('\n\n')}
  bodies = [parts[name] for name in re.findall(r'body=%?([\w.-]+)', text)]
  assert bodies
  return max(len(COLLECTIVE.findall(body)) for body in bodies)


def check(shapes):
  adapted, variables, genomes, *data = problem('transformer', NUM_GENOMES)
  arguments = variables, genomes, tuple(data)
  loss = glora_jax.classification()
  correct, summed = reference_scores('transformer', NUM_GENOMES)
  for shape in shapes:
    mesh = jax.make_mesh(shape, ('candidate', 'data'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    score = scoring.make_scorer(adapted, loss, mesh=mesh, chunk=2, block=8)
    for _ in range(3):
      found = score(*arguments)
      assert_array_equal(found.correct, correct)
      assert_allclose(found.loss, summed, rtol=1e-5)
    assert score.__wrapped__.__wrapped__._cache_size() == 1
    assert found.correct.sharding.is_fully_replicated
    text = score.lower(*arguments).compile().as_text()
    print(shape, most_collectives(text))


check([(1, 8), (2, 4), (8, 1)])
scoring._platform_of = lambda mesh: 'tpu'  # where kernels are merged in every pass
check([(2, 4)])
