"""Values of two losses as one."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from glora_jax.search.allocated import pooled, share_of
from glora_jax.search.allocation import Values

signals = st.floats(-1, 1)


def values(seed):
  rng = np.random.default_rng(seed)
  return Values(*(rng.random(shape) for shape in ((3,), (3, 2), (3, 2), (3,), (3,))))


@given(signal=signals, other=signals)
def test_a_share_is_one_and_falls_as_the_own_signal_grows(signal, other):
  share = share_of(signal, other)
  assert 0 <= share <= 1
  assert (share > 0) == (other > max(signal, 0))
  assert share_of(signal + 0.1, other) <= share


@settings(max_examples=25)
@given(seed=st.integers(0, 2**16), scale=st.floats(1e-6, 1e6), share=st.floats(0, 1))
def test_the_other_losss_scale_does_not_matter(seed, scale, share):
  own, other = values(seed), values(seed + 1)
  found = pooled(own, other, share)
  scaled = pooled(own, Values(*(scale * part for part in other)), share)
  for part, same in zip(found, scaled, strict=True):
    assert_allclose(part, same, rtol=1e-9, atol=1e-9)
