"""Spaces by pattern, boxes, fixed subnets, halves, the summary."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import model_zoo
import numpy as np
from comparing import (
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


def test_spaces_by_pattern_give_each_layer_its_own_and_leave_others_alone():
  spaces = {'fc': SearchSpace((8,)), 'qkv': SearchSpace((2,), A=0)}
  adapted = glora_jax.adapt(Transformer(5, depth=1), X, space=spaces)
  ranks = {layer.name.split('/')[1]: layer.space.ranks for layer in adapted.spec}
  assert ranks == {'qkv[0]': (2,), 'fc1[0]': (8,), 'fc2[0]': (8,)}
  assert adapted.spec.layers[0].choices('A') == (0,)


def test_a_fixed_subnet_computes_in_the_type_of_a_wide_bias():
  inputs = X.astype(jnp.bfloat16)
  params = random_params(nn.Dense(3), inputs)
  params = {'kernel': params['kernel'].astype(jnp.bfloat16), 'bias': params['bias'] + 0.1}
  adapted = glora_jax.adapt(nn.Dense(3), inputs, space=SearchSpace())
  variables, genome = random_variables(adapted, params), presets.preset(adapted.spec, 'ssf')
  fixed = adapted.fix(genome).apply(variables, inputs)
  folded = adapted.model.apply({'params': adapted.fold(variables, genome)}, inputs)
  assert fixed.dtype == folded.dtype == jnp.float32
  np.testing.assert_allclose(fixed, folded, rtol=2e-2, atol=2e-2)  # folding rounds the kernel


def test_boxed_kernels_get_supports_in_matching_boxes():
  example = model_zoo.EXAMPLES['with_partitioning']
  adapted = glora_jax.adapt(example.model, *example.inputs, space=SearchSpace())
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
