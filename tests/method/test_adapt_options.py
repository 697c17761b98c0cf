"""Spaces by pattern, nn.Einsum, nn.Conv, boxes, fixed subnets, halves, the summary."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import model_zoo
import numpy as np
import pytest
from comparing import (
  THIN,
  assert_folds,
  assert_trees_close,
  assert_trees_equal,
  random_params,
  random_variables,
  ready,
)
from small_models import Mlp, Transformer
from trees import normal

import glora_jax
from glora_jax import SearchSpace
from glora_jax.method import presets

X = normal(3, 5, 12)


SPACE = SearchSpace((2, 4))


def checked(model, inputs=X, **options):
  """A model adapted, of which the largest structure folds and a thin one."""
  adapted, variables = ready(model, inputs, space=SPACE, **options)
  for structure in ('full', THIN):
    assert_folds(adapted, variables, inputs, structure=structure)
  return adapted


def population(adapted, variables, inputs):
  """A compiled function of genomes to outputs [genome, ...]."""
  return jax.jit(jax.vmap(lambda genome: adapted.apply(variables, inputs, genome=genome)))


class Attention(nn.Module):
  """As `nn.MultiHeadDotProductAttention`: the path ends are query, key, value, out."""

  @nn.compact
  def __call__(self, x):
    y = nn.MultiHeadDotProductAttention(num_heads=2, name='attn')(x, x)
    return nn.Dense(7, name='mlp')(y + nn.Dense(12, name='other')(y))


def test_spaces_by_pattern_give_each_layer_its_own_and_leave_others_alone():
  spaces = {'mlp': SearchSpace((8,)), 'attn/(query|out)': SearchSpace((2,), A=0)}
  adapted = glora_jax.adapt(Attention(), X, space=spaces)
  assert {layer.name: layer.space.ranks for layer in adapted.spec} == {
    'attn/query': (2,),
    'attn/out': (2,),
    'mlp': (8,),
  }
  assert adapted.spec.layers[0].choices('A') == (0,)


class Einsums(nn.Module):
  """Shapes as Gemma writes them, kernels with the output first, a stack letter, a bias in an order
  that is not the kernel's."""

  equation: str
  shape: tuple[int, ...]
  use_bias: bool = True
  at_call: bool = False

  @nn.compact
  def __call__(self, x):
    if self.at_call:
      return nn.Einsum(self.shape, use_bias=self.use_bias, name='einsum')(x, self.equation)
    init = nn.initializers.normal(1.0)  # the default one wants two dimensions
    return nn.Einsum(
      self.shape, self.equation, use_bias=self.use_bias, kernel_init=init, name='einsum'
    )(x)


@pytest.mark.parametrize(
  'equation, shape, sizes, rows, use_bias, at_call',
  [
    ('btd,ndh->btnh', (2, 12, 3), (12, 6), 1, True, False),
    ('btd,fd->btf', (7, 12), (12, 7), 1, False, True),
    ('btd,dtf->bft', (12, 5, 4), (12, 4), 5, True, False),
  ],
)
def test_einsums_are_linear_layers(equation, shape, sizes, rows, use_bias, at_call):
  adapted = checked(Einsums(equation, shape, use_bias, at_call))
  assert [(layer.in_features, layer.out_features, layer.bias) for layer in adapted.spec] == [
    (*sizes, use_bias)
  ] * rows


class StandardizedConv(nn.Conv):
  """A class of one's own, as the convolutions of BiT are."""


def test_convolutions_are_an_option_those_of_a_derived_class_too():
  class Convs(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.Conv(6, (1, 1), use_bias=False, name='pointwise')(
        StandardizedConv(8, (4, 4), strides=4, padding='VALID', name='patches')(x)
      )
      return nn.Dense(3, name='head')(x.mean((1, 2)))

  images = normal(2, 8, 8, 3)
  with pytest.raises(ValueError, match=r'patches/kernel 4x4x3x8 \(convolution; use convs=True\)'):
    glora_jax.adapt(Convs(), images)
  adapted = checked(Convs(), images, convs=True)
  assert [(layer.name, layer.in_features, layer.out_features) for layer in adapted.spec] == [
    ('patches', 48, 8),
    ('pointwise', 8, 6),
  ]


def test_a_fixed_subnet_computes_in_the_type_of_a_wide_bias():
  inputs = X.astype(jnp.bfloat16)
  params = random_params(nn.Dense(3), inputs)
  params = {'kernel': params['kernel'].astype(jnp.bfloat16), 'bias': params['bias'] + 0.1}
  adapted = glora_jax.adapt(nn.Dense(3), inputs)
  variables, genome = random_variables(adapted, params), presets.preset(adapted.spec, 'ssf')
  fixed = adapted.fix(genome).apply(variables, inputs)
  folded = adapted.model.apply({'params': adapted.fold(variables, genome)}, inputs)
  assert fixed.dtype == folded.dtype == jnp.float32
  np.testing.assert_allclose(fixed, folded, rtol=2e-2, atol=2e-2)  # folding rounds the kernel


def test_boxed_kernels_get_supports_in_matching_boxes_which_an_adapter_file_brings_back(tmp_path):
  example = model_zoo.EXAMPLES['with_partitioning']()
  adapted = glora_jax.adapt(example.model, *example.inputs)
  variables = random_variables(adapted, example.variables()['params'])
  full = presets.preset(adapted.spec, 'full')
  glora_jax.save_adapter(tmp_path / 'adapter', adapted, variables, full)
  _, read = glora_jax.load_adapter(tmp_path / 'adapter', adapted, variables['params'])
  assert_trees_close(read, variables, 0)
  adapter = read['glora']
  assert {name: box.names for name, box in adapter['steps']['up'].items()} == {
    'A_down': ('layers', 'embed', None),
    'A_up': ('layers', None, 'mlp'),
    'B_down': ('layers', 'embed', None),
    'B_up': ('layers', None, 'mlp'),
    'C_down': ('layers', 'embed', None),
    'C_up': ('layers', None, None),
    'D': ('layers', 'mlp'),
    'E': ('layers', 'mlp'),
  }


def test_the_summary_lists_layers_and_totals_that_are_the_sum_of_its_rows():
  stacked = glora_jax.adapt(Transformer(5, depth=3), X, space=SPACE)
  few_forms = SearchSpace((2, 4), A='none', B=('none', 'lora:2'), C='none')
  for adapted in (stacked, glora_jax.adapt(Attention(), X, space=few_forms)):
    _, *lines = adapted.summary().splitlines()
    trained = [int(row.split()[-2].replace(',', '')) for row in lines[: len(adapted.spec)]]
    assert f'trained parameters: {sum(trained):,} in the largest structure' in lines[len(trained)]
  assert '+ 65 in heads' in stacked.summary()
  chosen = stacked.summary(presets.preset(stacked.spec, 'bitfit'))
  assert 'trained parameters: 252 in this structure' in chosen


def test_split_separates_heads_and_supports_and_join_puts_them_back():
  adapted, variables = ready(Mlp(), X, space=SPACE)
  trainable, frozen = adapted.split(variables)
  assert trainable['params'].keys() == {'head'}
  assert 'head' not in frozen['params']
  assert trainable.keys() == {'params', 'glora'}
  assert_trees_equal(adapted.join(trainable, frozen), variables)
  probe, rest = adapted.split({'params': variables['params']}, adapter=False)
  assert probe == {'params': trainable['params']}
  assert_trees_equal(adapted.join(probe, rest), {**variables, 'glora': {}})


def test_an_object_that_holds_a_linen_model_is_adapted_as_that():
  """Transformers gives a module, its parameters, and a call of its own."""
  adapted, variables = ready(Mlp(), X, space=SPACE)
  holder = types.SimpleNamespace(module=adapted.model, params=variables['params'])
  held = glora_jax.adapt(holder, X, space=SPACE)
  assert held.spec == adapted.spec
  assert held.model is adapted.model
  held.init(jax.random.key(0), holder.params)
