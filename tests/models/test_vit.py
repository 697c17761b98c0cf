"""The plain ViT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glora_jax.models import blocks, vit
from glora_jax.models.vit import ViT

IMAGES = jax.random.normal(jax.random.key(0), (3, 16, 16, 3))
SHAPE = {'patch_size': 8, 'width': 12, 'depth': 2, 'num_heads': 3}


def run(images=IMAGES, **fields):
  model = ViT(**{'num_classes': 5, **SHAPE, **fields})
  variables = model.init(jax.random.key(1), images)
  return model, variables, model.apply(variables, images)


def test_published_sizes_have_the_published_numbers_of_parameters():
  """ViT-B/16 and ViT-L/16 at 224 with 1,000 classes: 86.6 and 304.3 million (timm's model table)."""
  for size, millions in (('Ti', 5.7), ('S', 22.1), ('B', 86.6), ('L', 304.3)):
    shapes = jax.eval_shape(
      vit.vit(size, 1000).init, jax.random.key(0), jnp.zeros((1, 224, 224, 3))
    )
    assert round(sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6, 1) == millions


@pytest.mark.parametrize(
  'fields',
  [
    {},
    {'pool': 'gap'},
    {'pool': 'gap', 'class_token': False},
    {'pre_logits': 7},
    {'layer_scale': 0.1},
    {'remat': 'dots_saveable'},
  ],
)
def test_every_variant_gives_logits_and_gradients_everywhere(fields):
  model, variables, logits = run(**fields)
  assert logits.shape == (3, 5)
  assert logits.dtype == jnp.float32
  variables = jax.tree.map(
    lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape), variables
  )
  gradient = jax.grad(lambda v: jnp.sum(model.apply(v, IMAGES) ** 2))(variables)
  flat = jax.tree_util.tree_leaves_with_path(gradient)
  # A class token that only 'gap' skips still takes part through attention.
  assert all(np.any(leaf) for _, leaf in flat), [path for path, leaf in flat if not np.any(leaf)]


def test_the_head_starts_at_zero_and_features_come_without_it():
  assert not np.any(run()[2])
  assert run(num_classes=0)[2].shape == (3, 12)


def test_bfloat16_computation_keeps_float32_parameters_and_logits():
  _, variables, logits = run(dtype=jnp.bfloat16)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
  assert logits.dtype == jnp.float32


def test_remat_changes_no_number():
  model, variables, _ = run()
  variables = jax.tree.map(lambda x: x + 0.1, variables)
  loss = lambda model: jax.grad(lambda v: jnp.sum(model.apply(v, IMAGES) ** 2))(variables)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    loss(model),
    loss(model.clone(remat='nothing_saveable')),
  )


def test_drop_path_keeps_the_mean_and_drops_whole_examples():
  x = jnp.ones((20_000, 2, 3))
  dropped = np.asarray(blocks.drop_path(jax.random.key(0), x, 0.3))
  assert set(np.unique(dropped)) == {0, np.float32(1) / np.float32(0.7)}
  assert (dropped == dropped[:, :1, :1]).all()
  assert abs(dropped.mean() - 1) < 0.02


def test_drop_path_acts_in_training_only_and_differs_between_examples_and_keys():
  model, variables, _ = run(drop_path=0.5, depth=4)
  variables = jax.tree.map(
    lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape), variables
  )
  same = jnp.broadcast_to(IMAGES[:1], (8, *IMAGES.shape[1:]))
  evaluated = model.apply(variables, same)
  np.testing.assert_allclose(evaluated, np.broadcast_to(evaluated[:1], evaluated.shape), atol=1e-5)
  first, second = (
    model.apply(variables, same, train=True, rngs={'drop_path': jax.random.key(k)})
    for k in range(2)
  )
  assert len(np.unique(np.asarray(first)[:, 0].round(4))) > 1
  assert np.abs(first - second).max() > 1e-4


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'num_heads': 5}, 'width=12 is not a multiple of num_heads=5'),
    ({'pool': 'max'}, 'one of token, gap'),
    ({'class_token': False}, 'class_token=False'),
    ({'patch_size': 7}, 'multiples of patch_size=7'),
  ],
)
def test_wrong_shapes_are_explained(fields, message):
  with pytest.raises(ValueError, match=message):
    run(**fields)


def test_unknown_sizes_are_explained():
  with pytest.raises(ValueError, match='Ti, S, B, L'):
    vit.vit('XL', 10)


def test_describe_rebuilds_the_same_parameters():
  model, variables, _ = run(layer_scale=0.1, drop_path=0.2, dtype=jnp.bfloat16)
  again = ViT(**vit.describe(model)).init(jax.random.key(1), IMAGES)
  assert jax.tree.map(jnp.shape, again) == jax.tree.map(jnp.shape, variables)
