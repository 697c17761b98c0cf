"""The structures' benchmark on a larger backbone."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.structures import laboratory, on_vit_s, training
from benchmarks.structures.jobs import Job, Store
from glora_jax.method.adapt import adapt
from glora_jax.method.genomes import count_params
from glora_jax.method.presets import preset
from glora_jax.method.space import SearchSpace
from glora_jax.models import weights
from glora_jax.models.vit import vit


def test_budgets_are_those_of_their_largest_fixed_methods():
  model = vit('S', 10, patch_size=14, layer_scale=1.0)
  space = SearchSpace(ranks=laboratory.ALL_RANKS)
  adapted = adapt(model, jnp.zeros((1, 56, 56, 3)), space=space)
  for budget, names in on_vit_s.FIXED.items():
    sizes = [count_params(adapted.spec, preset(adapted.spec, name)) for name in names]
    assert max(sizes) == budget
    assert all(size <= budget for size in sizes)


@pytest.mark.full
def test_a_job_trains_the_backbone_that_it_names(monkeypatch, tmp_path):
  monkeypatch.setitem(laboratory.FOLDERS, laboratory.VIT_S, weights.EMBEDDED_FILE)  # at 56 pixels
  job = on_vit_s.job('digits', ('bitfit', 0), 0, 1e-2, epochs=1)
  path = tmp_path / 'results.jsonl'
  Store(str(path)).add(job, training.run(job))
  [(read, result)] = Store(str(path)).results.items()
  assert read == job != Job(*job[:-1])
  model = laboratory.Model(10, backbone=laboratory.VIT_S)
  base = laboratory.backbone(model)
  assert jax.tree.leaves(base.params['pos_embed'])[0].shape[1] == 1 + (56 // 7) ** 2
  assert result['params'] == 5_184
  assert 0 < result['test'][0] <= 1
