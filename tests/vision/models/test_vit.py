"""The plain ViT."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import normal, randomized

from benchmarks.machinery.vits import vit as published
from glora_jax.vision.models.vit import ViT, drop_path

IMAGES = normal(3, 16, 16, 3)
SHAPE = {'patch_size': 8, 'width': 12, 'depth': 2, 'num_heads': 3}


def build(**fields):
  return ViT(**{'num_classes': 5, **SHAPE, **fields})


def shapes(model, images=IMAGES):
  """Shapes and types of (logits, variables)."""
  return jax.eval_shape(model.init_with_output, jax.random.key(1), images)


def variables_of(model):
  return randomized(shapes(model)[1])


@functools.cache
def logits_and_gradients(model):
  """Logits, and the gradients of their squares' sum by all parameters."""

  def loss(variables):
    logits = model.apply(variables, IMAGES)
    return jnp.sum(logits**2), logits

  (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables_of(model))
  return logits, gradients


def test_published_sizes_have_the_published_numbers_of_parameters():
  """ViT-B/16 and ViT-L/16 at 224 with 1,000 classes: 86.6 and 304.3 million (timm's table)."""
  for size, millions in (('Ti', 5.7), ('S', 22.1), ('B', 86.6), ('L', 304.3)):
    _, variables = shapes(published(size, 1000), jnp.zeros((1, 224, 224, 3)))
    assert round(sum(leaf.size for leaf in jax.tree.leaves(variables)) / 1e6, 1) == millions


def test_bfloat16_computation_keeps_float32_parameters_and_logits_which_start_at_zero():
  model = build(dtype=jnp.bfloat16)
  logits, variables = jax.jit(model.init_with_output)(jax.random.key(1), IMAGES)
  assert not np.any(logits)
  assert {leaf.dtype for leaf in jax.tree.leaves((logits, variables))} == {np.dtype('float32')}
  assert 'bf16' in str(jax.make_jaxpr(model.apply)(variables, IMAGES))


@pytest.mark.parametrize('fields', [{'unroll': 100}, {'unroll': 2, 'remat': 'dots_saveable'}])
def test_how_blocks_are_run_changes_no_number(fields):
  jax.tree.map(
    lambda plain, other: np.testing.assert_allclose(plain, other, rtol=1e-4, atol=1e-4),
    logits_and_gradients(build()),
    logits_and_gradients(build(**fields)),
  )


def test_drop_path_keeps_the_mean_and_drops_whole_examples():
  x = jnp.ones((20_000, 2, 3))
  dropped = np.asarray(drop_path(jax.random.key(0), x, 0.3))
  assert set(np.unique(dropped)) == {0, np.float32(1) / np.float32(0.7)}
  assert (dropped == dropped[:, :1, :1]).all()
  assert abs(dropped.mean() - 1) < 0.02


def test_drop_path_acts_in_training_only_and_differs_between_examples():
  model = build(drop_path=0.5, depth=4)
  variables = variables_of(model)
  same = jnp.broadcast_to(IMAGES[:1], (8, *IMAGES.shape[1:]))
  evaluated, expected = (jax.jit(x.apply)(variables, same) for x in (model, build(depth=4)))
  np.testing.assert_array_equal(evaluated, expected)
  apply = jax.jit(functools.partial(model.apply, train=True))
  trained = apply(variables, same, rngs={'drop_path': jax.random.key(0)})
  assert jnp.ptp(trained, axis=0).max() > 1e-4
