"""GLoRA on pure functions: any pytree of parameters, from adapting to an adapter file."""

import flax.linen as nn
import function_zoo
import jax
import jax.numpy as jnp
import pytest
from comparing import assert_close
from flax import nnx
from numpy.testing import assert_array_equal
from trees import normal, randomized
from zoo_cases import case_of

import glora_jax
from glora_jax import tree

D, H, C = 4, 6, 3
X, W1, W2, W3 = normal(5, D, seed=0), normal(D, H), normal(H, H), normal(H, C)


@pytest.mark.parametrize('name', function_zoo.EXAMPLES)
def test_a_function_is_found_whole_starts_as_itself_folds_by_the_equation_and_has_gradients(name):
  model = case_of(function_zoo.EXAMPLES[name](), heads=None)
  model.check_layers()
  model.check_results()


def activated(params, x):
  layer, head = params
  return jax.vmap(head)(layer['activation'](x @ layer['w']) * (1 + layer['eps']))


def test_heads_are_trained_and_files_read_of_a_tree_in_which_something_is_no_array(tmp_path):
  params = {'activation': jnp.tanh, 'eps': 1e-2, 'w': W1}, function_zoo.Affine(W3.T, None, 'head')
  adapted = glora_jax.adapt_function(
    activated, params, X, structure='scale_shift_lora:2', heads='^1'
  )
  start = adapted.init(jax.random.key(0), params)
  assert glora_jax.check(adapted, start, X).ok
  trainable, frozen = adapted.split(start)
  variables, path = adapted.join(randomized(trainable), frozen), tmp_path / 'adapter'
  old, new = (tree.flatten(whole) for whole in (params, variables['params']))
  assert {path for path in old if new[path] is not old[path]} == {('1', 'weight')}
  outputs = adapted.apply(variables, X)
  assert_close(activated(adapted.fold(variables), X), outputs)
  glora_jax.save_adapter(path, adapted, variables)
  fixed, loaded = glora_jax.load_adapter(path, adapted, params)
  assert_array_equal(fixed.apply(loaded, X), outputs)


def test_a_kernel_beside_other_kernels_is_named_by_itself():
  params = {'cell': {'kernel': W1, 'recurrent': W2, 'out': {'kernel': W3}}}

  def function(params, x):
    cell = params['cell']
    return jnp.tanh(jnp.tanh(x @ cell['kernel']) @ cell['recurrent']) @ cell['out']['kernel']

  adapted = glora_jax.adapt_function(function, params, X)
  assert [layer.name for layer in adapted.spec] == ['cell/kernel', 'cell/recurrent', 'cell/out']


@pytest.mark.parametrize('wrong', [KeyError('z'), OSError(2, 'gone')], ids=repr)
def test_what_a_model_raises_is_raised_as_it_is_with_a_note_on_its_inputs(wrong):
  def fail(x):
    raise wrong

  live = nnx.Sequential(nnx.Linear(D, 3, rngs=nnx.Rngs(0)), fail)
  for adapt in (
    lambda: glora_jax.adapt_function(lambda params, x: fail(x), {'w': W1}, X),
    lambda: glora_jax.adapt(nn.Sequential([nn.Dense(3), fail]), X),
    lambda: glora_jax.nnx.attach(live, X),
  ):
    with pytest.raises(type(wrong)) as caught:
      adapt()
    assert caught.value is wrong
    assert caught.traceback[-1].name == 'fail'
    assert 'does not run on the sample inputs (float32[5, 4])' in wrong.__notes__.pop()
