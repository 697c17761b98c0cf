"""The structures' benchmark on a larger backbone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.structures import backbones, laboratory, on_vit_s, training
from benchmarks.structures.jobs import Job, Store
from glora_jax.data.pipeline import Split
from glora_jax.method.adapt import adapt
from glora_jax.method.genomes import count_params
from glora_jax.method.presets import preset
from glora_jax.method.space import SearchSpace
from glora_jax.models import weights
from glora_jax.models.vit import vit


def test_budgets_are_those_of_their_largest_fixed_methods():
  model = vit('S', 10, patch_size=14, layer_scale=1.0)
  space = SearchSpace(ranks=backbones.ALL_RANKS)
  adapted = adapt(model, jnp.zeros((1, 56, 56, 3)), space=space)
  for budget, names in on_vit_s.FIXED.items():
    sizes = [count_params(adapted.spec, preset(adapted.spec, name)) for name in names]
    assert max(sizes) == budget
    assert all(size <= budget for size in sizes)


def test_images_are_enlarged_between_their_own_values():
  images = np.arange(28, dtype=np.uint8)[None, :, None, None].repeat(28, 2).repeat(3, 3)
  seen = backbones.as_seen_by(backbones.VIT_S, Split(images, np.zeros(1, np.int32)))
  assert seen.images.shape == (1, 56, 56, 3)
  assert seen.images.dtype == jnp.uint8
  rows = np.asarray(seen.images[0, :, 0, 0])
  assert (rows[0], rows[-1]) == (0, 27)
  assert (np.diff(rows.astype(int)) >= 0).all()


def test_without_weights_a_sentence_says_how_to_get_them(monkeypatch, tmp_path):
  monkeypatch.setitem(backbones.FOLDERS, backbones.VIT_S, str(tmp_path / 'none'))
  with pytest.raises(FileNotFoundError, match='prepare --blocks 12 makes it'):
    backbones.load(backbones.VIT_S, 10)


@pytest.mark.full
def test_a_job_trains_the_backbone_that_it_names(monkeypatch, tmp_path):
  monkeypatch.setitem(backbones.FOLDERS, backbones.VIT_S, weights.EMBEDDED_FILE)  # at 56 pixels
  job = on_vit_s.job('digits', ('bitfit', 0), 0, 1e-2, epochs=1)
  path = tmp_path / 'results.jsonl'
  Store(str(path)).add(job, training.run(job))
  [(read, result)] = Store(str(path)).results.items()
  assert read == job != Job(*job[:-1])
  model = laboratory.Model(10, backbone=backbones.VIT_S)
  base = laboratory.backbone(model)
  assert jax.tree.leaves(base.params['pos_embed'])[0].shape[1] == 1 + (56 // 7) ** 2
  assert result['params'] == 5_184
  assert 0 < result['test'][0] <= 1
