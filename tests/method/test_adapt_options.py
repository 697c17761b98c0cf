"""Spaces by pattern, nn.Einsum, nn.Conv, boxes, fixed subnets, halves, the summary."""

import functools
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


def test_spaces_by_pattern_give_each_layer_its_own_and_leave_others_alone():
  spaces = {'fc': SearchSpace((8,)), 'qkv': SearchSpace((2,), A=0)}
  adapted = glora_jax.adapt(Transformer(5, depth=1), X, space=spaces)
  ranks = {layer.name.split('/')[1]: layer.space.ranks for layer in adapted.spec}
  assert ranks == {'qkv[0]': (2,), 'fc1[0]': (8,), 'fc2[0]': (8,)}
  assert adapted.spec.layers[0].choices('A') == (0,)


class EinsumAtCall(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Einsum((7, 12), use_bias=False, name='einsum')(x, 'btd,fd->btf')


EINSUM = functools.partial(nn.Einsum, kernel_init=nn.initializers.normal(1.0))


@pytest.mark.parametrize(
  'model, sizes, rows',
  [
    (EINSUM((2, 12, 3), 'btd,ndh->btnh'), (12, 6, True), 1),
    (EinsumAtCall(), (12, 7, False), 1),
    (EINSUM((12, 5, 4), 'btd,dtf->bft'), (12, 4, True), 5),
  ],
)
def test_einsums_are_linear_layers(model, sizes, rows):
  """As Gemma writes them, with the output first, with a stack and a bias in another order."""
  layers = checked(model, heads=None).spec
  assert [(layer.in_features, layer.out_features, layer.bias) for layer in layers] == [sizes] * rows


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


def test_boxed_kernels_get_supports_in_matching_boxes():
  example = model_zoo.EXAMPLES['with_partitioning']
  adapted = glora_jax.adapt(example.model, *example.inputs)
  adapter = random_variables(adapted, example.variables()['params'])['glora']
  inputs, outputs = ('layers', 'embed', None), ('layers', None, 'mlp')
  names = [box.names for _, box in sorted(adapter['steps']['up'].items())]
  of_c = [inputs, ('layers', None, None)]
  assert names == [*[inputs, outputs] * 2, *of_c, *[('layers', 'mlp')] * 2]


def test_the_summary_lists_layers_and_totals_that_are_the_sum_of_its_rows():
  few_forms = SearchSpace((2, 4), A='none', B=('none', 'lora:2'), C='none')
  for space in (few_forms, SPACE):
    stacked = glora_jax.adapt(Transformer(5, depth=3), X, space=space)
    _, *lines = stacked.summary().splitlines()
    trained = [int(row.split()[-2].replace(',', '')) for row in lines[: len(stacked.spec)]]
    assert f'trained parameters: {sum(trained):,} in the largest structure' in lines[len(trained)]
  assert '+ 65 in heads' in stacked.summary()
  chosen = stacked.fix('bitfit').summary()
  assert 'trained parameters: 252 in this structure' in chosen


def test_an_object_that_holds_a_linen_model_is_adapted_as_that():
  """Transformers gives a module, its parameters, and a call of its own."""
  adapted, variables = ready(Mlp(), X, space=SPACE)
  holder = types.SimpleNamespace(module=adapted.model, params=variables['params'])
  held = glora_jax.adapt(holder, X, space=SPACE)
  assert held.spec == adapted.spec
  assert held.model is adapted.model
  held.init(jax.random.key(0), holder.params)
