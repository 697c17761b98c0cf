"""GLoRA on pure functions: any pytree of parameters, from adapting to an adapter file."""

import flax.linen as nn
import function_zoo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparing import assert_close, assert_folds, trained_variables, vector
from flax import nnx
from numpy.testing import assert_array_equal
from trees import normal, randomized

import glora_jax
from glora_jax import tree

D, H, C = 4, 6, 3
X, W1, W2, W3 = normal(5, D, seed=0), normal(D, H), normal(H, H), normal(H, C)
HEADS = {'list_of_layers': 'layers/2', 'dataclasses_called_one_example_at_a_time': '^1'}


@pytest.mark.parametrize('name', HEADS)
def test_a_function_has_its_heads_trained_and_is_written_and_read(name, tmp_path):
  example = function_zoo.EXAMPLES[name]()
  (x,) = example.inputs
  adapted = glora_jax.adapt_function(
    example.apply, example.params, x, structure='scale_shift_lora:2', heads=HEADS[name]
  )
  trained = trained_variables(adapted, example.params)
  old, new = (tree.flatten(whole) for whole in (example.params, trained['params']))
  changed = {path for path in old if not np.array_equal(old[path], new[path])}
  assert changed == adapted.places.head_paths != set()
  outputs = assert_folds(adapted, trained, x)
  glora_jax.save_adapter(tmp_path / 'adapter', adapted, trained)
  fixed, loaded = glora_jax.load_adapter(tmp_path / 'adapter', adapted, example.params)
  assert_close(vector(fixed.apply(loaded, x)), outputs)


def activated(layers, x):
  (layer,) = layers
  return layer['activation'](x @ layer['w']) * (1 + layer['eps'])


def test_an_adapter_goes_onto_params_in_which_something_is_no_array(tmp_path):
  params = [{'activation': jnp.tanh, 'eps': 1e-2, 'w': W1}]
  adapted = glora_jax.adapt_function(activated, params, X, structure='lora')
  variables, path = adapted.init(jax.random.key(0), params), tmp_path / 'adapter'
  variables['glora'] = randomized(variables['glora'])
  glora_jax.save_adapter(path, adapted, variables)
  fixed, loaded = glora_jax.load_adapter(path, adapted, params)
  assert_array_equal(fixed.apply(loaded, X), adapted.apply(variables, X))


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
