"""First-order estimates of every allele, from one backward pass, against the losses themselves."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import MODELS, base_params, images_and_labels
from trees import randomized

import glora_jax
from glora_jax.method.draws import random_genomes
from glora_jax.search import guidance, scoring


def supernet(tied):
  """(adapted, variables) with supports that are small: estimates are exact in the limit only."""
  images, _ = images_and_labels('vit')
  space = glora_jax.SearchSpace((2, 4), tied=tied)
  adapted = glora_jax.adapt(MODELS['vit'], images[:1], space=space)
  shapes = jax.eval_shape(adapted.init, jax.random.key(3), base_params('vit'))
  supports = randomized(shapes['glora'], 2, scale=3e-3)
  return adapted, {'params': base_params('vit'), 'glora': supports}


def changed_genomes(rng, spec, genome, number):
  """Copies of a genome with one gene changed each."""
  genomes = np.repeat(genome[None], number, 0)
  for copy in genomes:
    layer, tensor = rng.integers(len(spec)), rng.integers(5)
    copy[layer, tensor] = rng.integers(spec.num_codes[layer, tensor])
  return genomes


@pytest.mark.parametrize('tied', [True, False])
def test_estimates_are_the_changes_of_the_loss_to_first_order(tied):
  adapted, variables = supernet(tied)
  images, labels = images_and_labels('vit')
  rng = np.random.default_rng(0)
  genome = random_genomes(rng, adapted.spec, 1)[0]
  changed = changed_genomes(rng, adapted.spec, genome, 80)
  genomes = np.concatenate([genome[None], changed])
  score_images = scoring.make_image_scorer(adapted, chunk=1)
  losses = np.asarray(score_images(variables, genomes, images, labels).loss, np.float64)
  for fitness in ('loss', 'accuracy') if tied else ('loss',):
    guide = guidance.make_guide(adapted, fitness=fitness, block=16)
    values = np.asarray(guide(variables, genome, images, labels))
    assert values.shape == (len(adapted.spec), 5, adapted.spec.num_codes.max())
    costs = losses if fitness == 'loss' else 1 - np.exp(-losses)  # the expected error
    assert_first_order(values, genomes, costs.sum(1))


def assert_first_order(values, genomes, costs):
  """The values' differences are those of the costs of the first genome and its neighbours."""
  codes = genomes[..., None].astype(int)
  totals = np.take_along_axis(values[None], codes, -1).sum((1, 2, 3))
  estimates = totals[1:] - totals[0]
  changes = costs[1:] - costs[0]
  assert np.abs(changes).max() > 1e-3
  assert np.corrcoef(estimates, changes)[0, 1] > 0.999
  assert np.abs(estimates - changes).max() < 0.05 * np.abs(changes).max()


def test_no_type_is_promoted_by_itself():
  adapted, variables = supernet(True)
  genome = random_genomes(np.random.default_rng(0), adapted.spec, 1)[0]
  guide = guidance.make_guide(adapted)
  with jax.numpy_dtype_promotion('strict'):
    values = jax.eval_shape(guide.compiled, variables, genome, *images_and_labels('vit'))
  assert values.shape == adapted.spec.cost_table.shape


def test_gradients_of_many_blocks_add_up_where_weights_have_16_bits():
  images, labels = jnp.ones((2048, 3), jnp.bfloat16), jnp.zeros(2048, jnp.int32)
  model = nn.Dense(2, param_dtype=jnp.bfloat16)
  adapted = glora_jax.adapt(model, images[:1], heads=None)
  params = {'kernel': jnp.zeros((3, 2), jnp.bfloat16), 'bias': jnp.zeros(2, jnp.bfloat16)}
  variables = adapted.init(jax.random.key(0), params)
  genome = np.zeros((1, 5), np.int8)
  guide = guidance.make_guide(adapted, fitness='loss', block=2)
  variables['glora']['E'] = jnp.array([1.0, 0.0])  # an image's gradient by it is -0.5
  assert guide(variables, genome, images, labels)[0, 4, 2] == -1024


def test_params_that_are_no_floats_are_left_alone():
  def model(params, x):
    return x[:, params['order']] @ params['kernel']

  params = {'kernel': jnp.eye(4), 'order': jnp.array([1, 0, 2, 3])}
  adapted = glora_jax.adapt_function(model, params, jnp.eye(4), heads=None)
  variables = adapted.init(jax.random.key(0), params)
  genome = glora_jax.preset(adapted.spec, 'lora')
  values = guidance.make_guide(adapted)(variables, genome, jnp.eye(4), jnp.arange(4))
  assert np.isfinite(values).all()
