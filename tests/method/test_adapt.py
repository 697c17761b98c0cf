"""Adapting our ViT: parity with the official model, identity, fold, split, errors.

Other models are in test_adapt_models.py.
"""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparing import random_params, random_variables
from flax import nnx

import glora_jax
from glora_jax.method import draws, presets
from glora_jax.models.vit import ViT

MERGES = ('up_front', 'lazy')


@pytest.fixture(scope='module')
def small():
  """(adapted with two ranks, variables with random supports, images) of a small ViT."""
  model = ViT(5, patch_size=8, width=12, depth=3, num_heads=2)
  images = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))
  adapted = glora_jax.adapt(model, images, space=glora_jax.SearchSpace(ranks=(2, 4)))
  return adapted, random_variables(adapted, random_params(model, images)), images


@pytest.fixture(scope='module')
def base(small):
  """Logits of the small ViT before it was adapted."""
  adapted, variables, images = small
  return jax.jit(adapted.model.apply)({'params': variables['params']}, images)


@pytest.fixture(scope='module')
def population(small):
  """By way of merging, a compiled function of variables and genomes to logits [genome, ...]."""
  adapted, _, images = small

  def logits(merge, variables, genome):
    return adapted.apply(variables, images, genome=genome, merge=merge)

  return {merge: jax.jit(jax.vmap(functools.partial(logits, merge), (None, 0))) for merge in MERGES}


def random_genomes(spec, number, seed=0):
  return draws.random_genomes(np.random.default_rng(seed), spec, number)


@pytest.mark.parametrize('merge', MERGES)
@pytest.mark.parametrize('dtype, tolerance', [('float64', 1e-12), ('float32', 1e-5)])
def test_all_golden_genomes_give_the_official_logits_and_counts(
  golden_vit, merge, dtype, tolerance
):
  with jax.enable_x64(dtype == 'float64'):
    variables, images = jax.tree.map(
      lambda value: jnp.asarray(value, dtype),
      ({name: golden_vit[name] for name in ('params', 'glora')}, golden_vit['x']),
    )
    adapted = glora_jax.adapt(ViT(7, **golden_vit['shape']), images, merge=merge)
    apply = jax.vmap(lambda genome: adapted.apply(variables, images, genome=genome))
    logits = np.asarray(jax.jit(apply)(golden_vit['genomes']))
  assert logits.dtype == dtype
  official = golden_vit['logits']
  assert np.abs(logits - official).max() <= tolerance * np.abs(official).max()
  np.testing.assert_array_equal(
    adapted.count_params(golden_vit['genomes']), golden_vit['param_count']
  )


@pytest.mark.parametrize('merge', MERGES)
def test_at_initialization_every_genome_is_the_base_model(small, base, population, merge):
  adapted, variables, _ = small
  fresh = jax.jit(adapted.init)(jax.random.key(3), variables['params'])
  logits = population[merge](fresh, random_genomes(adapted.spec, 8))
  np.testing.assert_allclose(logits, np.broadcast_to(base, logits.shape), atol=1e-6)


def test_fold_equals_apply(small, population):
  adapted, variables, images = small
  genomes = random_genomes(adapted.spec, 8)

  @jax.jit
  @jax.vmap
  def plain(genome):
    return adapted.model.apply({'params': adapted.fold(variables, genome)}, images)

  expected = plain(genomes)
  for merge in MERGES:
    logits = population[merge](variables, genomes)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_subnets_differ_from_each_other_and_from_the_base(small, base, population):
  adapted, variables, _ = small
  logits = population['up_front'](variables, random_genomes(adapted.spec, 8))
  everything = [*logits, base]
  for i, subnet in enumerate(everything):
    assert all(np.abs(subnet - other).max() > 1e-3 for other in everything[:i])


def test_rows_run_block_by_block_through_a_scan(small):
  adapted, _, _ = small
  assert [layer.name for layer in adapted.spec] == [
    f'blocks/{layer}[{block}]'
    for block in range(3)
    for layer in ('attn/qkv', 'attn/proj', 'mlp/fc1', 'mlp/fc2')
  ]
  assert len(adapted.spec) == 12
  sizes = [(layer.in_features, layer.out_features) for layer in adapted.spec]
  assert sizes == [(12, 36), (12, 12), (12, 48), (48, 12)] * 3


def test_supports_lie_beside_their_modules_with_the_stack_first(small):
  _, variables, _ = small
  qkv = variables['glora']['blocks']['attn']['qkv']
  assert {name: value.shape for name, value in qkv.items()} == {
    'A_down': (3, 12, 4),
    'A_up': (3, 4, 36),
    'B_down': (3, 12, 4),
    'B_up': (3, 4, 36),
    'C_down': (3, 12, 4),
    'C_up': (3, 4, 1),
    'D': (3, 36),
    'E': (3, 36),
  }
  assert all(value.dtype == jnp.float32 for value in qkv.values())


def test_split_separates_heads_and_supports_and_join_puts_them_back(small):
  adapted, variables, _ = small
  trainable, frozen = adapted.split(variables)
  assert trainable['params'].keys() == {'head'}
  assert 'head' not in frozen['params']
  assert trainable.keys() == {'params', 'glora'}
  chex.assert_trees_all_equal(adapted.join(trainable, frozen), variables)
  probe, rest = adapted.split(variables, supports=False)
  assert probe.keys() == {'params'}
  chex.assert_trees_all_equal(adapted.join(probe, rest), variables)


def test_selection_restricts_the_rows_and_what_fold_changes(small):
  full, variables, images = small
  adapted = glora_jax.adapt(full.model, images, select=r'mlp')
  assert [layer.name for layer in adapted.spec][:3] == [
    'blocks/mlp/fc1[0]',
    'blocks/mlp/fc2[0]',
    'blocks/mlp/fc1[1]',
  ]
  chosen = random_variables(adapted, variables['params'])
  folded = jax.jit(adapted.fold)(chosen, presets.preset(adapted.spec, 'full'))
  changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), folded, variables['params'])
  assert changed['blocks']['mlp'] == {
    'fc1': {'kernel': True, 'bias': True},
    'fc2': {'kernel': True, 'bias': True},
  }
  changed['blocks'].pop('mlp')
  assert not any(jax.tree.leaves(changed))


@pytest.mark.parametrize(
  'arguments, message',
  [
    (
      {'select': 'conv'},
      'select=.conv. matches no linear layer of ViT; there are: blocks/attn/qkv, blocks/attn/proj',
    ),
    ({'select': '('}, 'not a regular expression'),
    ({'merge': 'late'}, "'auto', 'up_front' or 'lazy'"),
  ],
)
def test_wrong_arguments_are_explained(small, arguments, message):
  adapted, _, images = small
  with pytest.raises(ValueError, match=message):
    glora_jax.adapt(adapted.model, images, **arguments)


def test_sample_inputs_that_do_not_fit_are_noted(small):
  with pytest.raises(
    Exception, match=r'does not run on the sample inputs \(float32\[1, 17, 17, 3\]\)'
  ):
    glora_jax.adapt(small[0].model, jnp.zeros((1, 17, 17, 3)))


class Holder:
  """What transformers gives for a Flax model: a module, its parameters, a call of its own."""

  def __init__(self, module, params):
    self.module, self.params = module, params


def test_an_object_that_holds_a_linen_model_is_adapted_as_that(small):
  adapted, variables, images = small
  holder = Holder(adapted.model, variables['params'])
  held = glora_jax.adapt(holder, images, space=glora_jax.SearchSpace(ranks=(2, 4)))
  assert held.spec == adapted.spec
  assert held.model is adapted.model
  held.init(jax.random.key(0), holder.params)


@pytest.mark.parametrize(
  'model, message',
  [
    (Holder, 'Holder is no instance of a linen model; for a function'),
    (Holder(print, {}), 'Holder is no instance of a linen model; for a function'),
    (nn.Dense, 'Dense is no instance of a linen model'),
    (nnx.Linear(3, 4, rngs=nnx.Rngs(0)), r'Linear is an NNX model.*glora_jax\.nnx\.attach'),
    (
      nnx.bridge.ToNNX(nn.Dense(3), rngs=nnx.Rngs(0)),
      r'ToNNX is an NNX model.*glora_jax\.nnx\.attach',
    ),
  ],
)
def test_what_is_no_linen_model_is_told_where_to_go(model, message):
  with pytest.raises(ValueError, match=message):
    glora_jax.adapt(model, jnp.zeros((1, 3)))


def test_a_model_without_linear_layers_is_refused():
  with pytest.raises(ValueError, match='LayerNorm has no linear layer'):
    glora_jax.adapt(nn.LayerNorm(), jnp.zeros((1, 4)))


def test_kernels_of_integers_are_refused():
  class Counting(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3, param_dtype=jnp.int8, kernel_init=nn.initializers.zeros, name='fc')(x)

  with pytest.raises(ValueError, match=r'^fc has a kernel of int8, and supports are merged into'):
    glora_jax.adapt(Counting(), jnp.ones((2, 4)))


def test_params_of_another_model_are_refused_with_all_differences(small):
  adapted, variables, _ = small
  params = {
    **variables['params'],
    'extra': {'bias': jnp.zeros(3)},
    'head': {'kernel': jnp.zeros((12, 6))},
  }
  with pytest.raises(
    ValueError,
    match=r'missing: head/bias; unexpected: extra/bias; misshaped: head/kernel is \(12, 6\) '
    'and should be',
  ):
    adapted.init(jax.random.key(0), params)


def test_params_of_8_bits_are_refused_where_the_models_are_longer(small):
  adapted, variables, _ = small
  head = jax.tree.map(lambda leaf: leaf.astype(jnp.float8_e4m3fn), variables['params']['head'])
  with pytest.raises(ValueError, match='of less than 16 bits: head/bias is float8_e4m3fn'):
    adapted.init(jax.random.key(0), {**variables['params'], 'head': head})


def test_variables_and_genomes_that_do_not_fit_are_refused(small):
  adapted, variables, images = small
  genome = random_genomes(adapted.spec, 1)[0]
  with pytest.raises(ValueError, match="no 'glora'"):
    adapted.apply({'params': variables['params']}, images, genome=genome)
  with pytest.raises(ValueError, match=r'missing: .*; unexpected: vit/'):
    adapted.fold({**variables, 'params': {'vit': variables['params']}}, genome)
  with pytest.raises(ValueError, match='12 adapted layers'):
    adapted.apply(variables, images, genome=genome[:-1])
  with pytest.raises(ValueError, match='12 adapted layers'):
    jax.jit(lambda g: adapted.apply(variables, images, genome=g))(genome[:-1])
  with pytest.raises(ValueError, match=r'jax\.vmap'):
    adapted.apply(variables, images, genome=genome[None])
  with pytest.raises(ValueError, match='The genome says 9 for A of layer 0'):
    adapted.fold(variables, np.full_like(genome, 9))


def test_one_compilation_serves_all_genomes(small):
  adapted, variables, images = small

  @jax.jit
  @chex.assert_max_traces(n=1)
  def apply(genome):
    return adapted.apply(variables, images, genome=genome)

  for genome in random_genomes(adapted.spec, 4):
    apply(genome)
