"""Rows with C or E but never both, wherever genomes come from."""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from glora_jax.method.draws import random_genomes, sample_genome
from glora_jax.method.genomes import check_genome, count_params, largest_genome, smallest_genome
from glora_jax.method.space import TENSORS, Layer, SearchSpace, Spec
from glora_jax.search.evolution import cross, mutate

C, E = 2, 4
DISTINCT = SearchSpace.distinct((1, 2))
SPEC = Spec(
  (
    Layer('wide', 6, 9, space=DISTINCT),
    Layer('narrow', 9, 6, space=DISTINCT),
    Layer('no_bias', 6, 9, bias=False, space=DISTINCT),
    Layer('constants', 4, 9, space=SearchSpace((2,), E=('none', 'constant'), one_shift=True)),
  )
)
seeds = st.integers(0, 2**32 - 1)
budgets = st.integers(0, 120)
draw = jax.jit(sample_genome, static_argnums=(1, 2))


def assert_distinct(genomes):
  """No row has C and E, C stands only where in < out, and every form is on offer."""
  check_genome(SPEC, genomes)
  assert not ((genomes[..., C] > 0) & (genomes[..., E] > 0)).any()
  assert not genomes[..., [1, 2], C].any()
  for row, layer in enumerate(SPEC):
    for column, tensor in enumerate(TENSORS):
      assert set(np.unique(genomes[..., row, column])) <= set(layer.choices(tensor))


@given(seed=seeds, budget=budgets, share=st.floats(0, 1))
@settings(deadline=None)
def test_genomes_have_one_shift_wherever_they_come_from(seed, budget, share):
  rng = np.random.default_rng(seed)
  drawn = random_genomes(rng, SPEC, 8, budget)
  assert drawn.shape == (8, len(SPEC), 5)
  assert count_params(SPEC, drawn).max() <= budget
  assert_distinct(drawn)
  assert_distinct(mutate(rng, SPEC, drawn, 8, share))
  assert_distinct(cross(rng, SPEC, drawn, 8))
  assert_distinct(np.asarray(draw(jax.random.key(seed), SPEC, round(2 * share) / 2)))


def test_the_largest_genome_keeps_the_larger_shift():
  largest = largest_genome(SPEC)
  assert largest[:, [C, E]].tolist() == [[0, 2], [0, 2], [0, 0], [2, 0]]
  assert_distinct(largest)
  assert_distinct(smallest_genome(SPEC))
  always = draw(jax.random.key(0), SPEC, 1)
  np.testing.assert_array_equal(always, largest)
