"""What an archive says is the best."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from toy_search import SPEC

from glora_jax.search.archive import Archive


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1e4, width=16)), min_size=1, max_size=20))
def test_the_fittest_come_first_and_have_the_least_cost(scores):
  correct, loss = np.array(scores).T
  genomes = np.zeros((len(scores), len(SPEC), 5), np.int8)
  archive = Archive.empty(SPEC).extended(genomes, correct, loss, 0)
  for fitness, keys in (('accuracy', [*zip(-correct, loss, strict=True)]), ('loss', loss)):
    ranked = archive.ranking(fitness)
    assert ranked.tolist() == sorted(range(len(scores)), key=keys.__getitem__)
    assert (np.diff(archive.cost(fitness)[ranked]) >= 0).all()
