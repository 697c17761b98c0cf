"""Scores of two losses as one."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from glora_jax.search.priors import pool, prior_weight
from glora_jax.search.unit_scores import UnitScores

signals = st.floats(-1, 1)


def random_scores(seed):
  rng = np.random.default_rng(seed)
  return UnitScores(*(rng.random(shape) for shape in ((3,), (3, 2), (3, 2), (3,), (3,))))


@given(signal=signals, other=signals)
def test_a_priors_weight_falls_as_the_own_signal_grows(signal, other):
  weight = prior_weight(signal, other)
  assert 0 <= weight <= 1
  assert (weight > 0) == (other > max(signal, 0))
  assert prior_weight(signal + 0.1, other) <= weight


@settings(max_examples=25)
@given(seed=st.integers(0, 2**16), scale=st.floats(1e-6, 1e6), weight=st.floats(0, 1))
def test_the_priors_scale_does_not_matter(seed, scale, weight):
  scores, prior = random_scores(seed), random_scores(seed + 1)
  found = pool(scores, prior, weight)
  scaled = pool(scores, UnitScores(*(scale * field for field in prior)), weight)
  for part, same in zip(found, scaled, strict=True):
    assert_allclose(part, same, rtol=1e-9, atol=1e-9)
