"""The structures' benchmark on a larger backbone."""

import jax.numpy as jnp

from benchmarks.structures import laboratory, on_vit_s
from glora_jax.method.adapt import adapt
from glora_jax.method.genomes import count_params
from glora_jax.method.presets import preset
from glora_jax.method.space import SearchSpace
from glora_jax.models.vit import vit


def test_budgets_are_those_of_their_largest_fixed_methods():
  model = vit('S', 10, patch_size=14, layer_scale=1.0)
  space = SearchSpace(ranks=laboratory.ALL_RANKS)
  adapted = adapt(model, jnp.zeros((1, 56, 56, 3)), space=space)
  for budget, names in on_vit_s.FIXED.items():
    sizes = [count_params(adapted.spec, preset(adapted.spec, name)) for name in names]
    assert max(sizes) == budget
    assert all(size <= budget for size in sizes)
