"""Search spaces and layers: what is on offer, and what is refused."""

import numpy as np
import pytest

from glora_jax.method.genomes import canonicalize, count_params, largest_genome
from glora_jax.method.presets import preset
from glora_jax.method.space import MOST_RANKS, TENSORS, Layer, SearchSpace, Spec


def test_spaces_take_names_or_codes():
  assert SearchSpace((4,), A=('lora', 'none')) == SearchSpace(4, A=(0, 3))
  assert hash(Spec((Layer('a', 1, 1),))) == hash(Spec((Layer('a', 1, 1),)))


def test_a_genome_has_a_code_for_the_last_of_the_most_ranks():
  space = SearchSpace(range(1, MOST_RANKS + 1))
  spec = Spec((Layer('a', 200, 300, space=space),))
  assert max(len(space.names(tensor)) for tensor in TENSORS) == 2**7  # codes of an int8 from 0 on
  assert count_params(spec, preset(spec, 'lora')) == MOST_RANKS * (200 + 300)
  largest = largest_genome(spec)
  assert largest.dtype == np.int8
  np.testing.assert_array_equal(canonicalize(spec, largest), largest)
  with pytest.raises(ValueError, match=r'has -128 for B .* codes are 0 to 127: none'):
    count_params(spec, np.array([[0, -128, 0, 0, 0]], np.int8))
