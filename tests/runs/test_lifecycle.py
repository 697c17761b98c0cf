"""The line that a run says of itself when it begins."""

import jax
import jax.numpy as jnp

import glora_jax
from glora_jax.models.vit import ViT
from glora_jax.runs import lifecycle


def test_the_line_about_a_run_counts_what_is_trained():
  model = ViT(3, patch_size=8, width=12, depth=2, num_heads=2, dtype=jnp.bfloat16)
  images, key = jnp.zeros((1, 16, 16, 3)), jax.random.key(0)
  adapted = glora_jax.adapt(model, images)
  variables = jax.eval_shape(lambda: adapted.init(key, model.init(key, images)['params']))
  mesh = jax.make_mesh(
    (1, 1),
    ('data', 'model'),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
    devices=jax.devices()[:1],
  )
  heads = 12 * 3 + 3
  line = lifecycle.describe(adapted, variables, mesh)
  supports, params = (
    sum(leaf.size for leaf in jax.tree.leaves(variables[name])) for name in ('glora', 'params')
  )
  assert line.startswith(f'{jax.device_count()} x cpu, mesh: data 1, model 1; ')
  assert f'{supports:,} in supports, {heads} in heads (float32)' in line
  assert f'{params - heads:,} frozen (float32)' in line
  assert line.endswith('computed in bfloat16')
