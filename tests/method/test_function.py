"""GLoRA on pure functions: any pytree of parameters, from adapting to an adapter file."""

import flax.linen as nn
import function_zoo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal
from trees import normal, randomized

import glora_jax
from glora_jax import tree

D, H, C = 4, 6, 3
X, W1, W2, W3 = normal(5, D, seed=0), normal(D, H), normal(H, H), normal(H, C)
SPACE = glora_jax.SearchSpace(ranks=(1, 2))
HEADS = {
  'list_of_layers': 'layers/2',
  'names_with_slashes': 'linear_1',
  'dataclasses_called_one_example_at_a_time': '^1',
}


def ready(name='list_of_layers'):
  """(example, its function adapted with a head, variables)."""
  example = function_zoo.EXAMPLES[name]()
  adapted = glora_jax.adapt_function(
    example.apply, example.params, *example.inputs, space=SPACE, heads=HEADS[name]
  )
  return example, adapted, adapted.init(jax.random.key(0), example.params)


@pytest.mark.parametrize('name', HEADS)
def test_a_function_is_trained_written_and_read(name, tmp_path):
  example, adapted, variables = ready(name)
  (x,) = example.inputs
  genome = glora_jax.random_genomes(np.random.default_rng(3), adapted.spec, 1)[0]
  variables = {**variables, 'glora': randomized(variables['glora'])}
  trainable, frozen = adapted.split(variables)
  optimizer, labels = optax.adam(0.1), jnp.ones(x.shape[:-1], int)
  logits = adapted.apply(variables, x, genome=genome)
  expected = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
  loss_fn = glora_jax.make_loss(adapted, sample=lambda key: genome)
  value_and_grad = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
  (loss, _), gradient = value_and_grad(trainable, frozen, (x, labels), jax.random.key(0))
  assert_allclose(loss, expected, rtol=1e-5)
  updates, _ = optimizer.update(gradient, optimizer.init(trainable))
  trained = adapted.join(optax.apply_updates(trainable, updates), frozen)
  old, new = (tree.flatten(whole) for whole in (example.params, trained['params']))
  changed = {path for path in old if not np.array_equal(old[path], new[path])}
  assert changed == adapted.head_paths != set()

  outputs = adapted.apply(trained, x, genome=genome)
  glora_jax.save_adapter(tmp_path / 'adapter', adapted, trained, genome)
  fixed, loaded = glora_jax.load_adapter(tmp_path / 'adapter', adapted, example.params)
  assert_allclose(fixed.apply(loaded, x), outputs, atol=1e-6)


def activated(layers, x):
  (layer,) = layers.values() if isinstance(layers, dict) else layers
  return layer['activation'](x @ layer['w']) * (1 + layer['eps'])


@pytest.mark.parametrize('wrap', [lambda layer: {'layer': layer}, lambda layer: [layer]])
def test_an_adapter_goes_onto_params_in_which_something_is_no_array(wrap, tmp_path):
  params = wrap({'activation': jnp.tanh, 'eps': 1e-2, 'w': W1})
  adapted = glora_jax.adapt_function(activated, params, X)
  variables = adapted.init(jax.random.key(0), params)
  variables = {**variables, 'glora': randomized(variables['glora'])}
  path, genome = tmp_path / 'adapter', glora_jax.preset(adapted.spec, 'lora')
  glora_jax.save_adapter(path, adapted, variables, genome)
  fixed, loaded = glora_jax.load_adapter(path, adapted, params)
  assert_array_equal(fixed.apply(loaded, X), fixed.apply(variables, X))


def test_a_kernel_beside_other_kernels_is_named_by_itself():
  params = {'cell': {'kernel': W1, 'recurrent': W2, 'out': {'kernel': W3}}}

  def function(params, x):
    cell = params['cell']
    return jnp.tanh(jnp.tanh(x @ cell['kernel']) @ cell['recurrent']) @ cell['out']['kernel']

  adapted = glora_jax.adapt_function(function, params, X, space=SPACE)
  assert [layer.name for layer in adapted.spec] == ['cell/kernel', 'cell/recurrent', 'cell/out']


@pytest.mark.parametrize('wrong', [KeyError('z'), OSError(2, 'gone')], ids=repr)
def test_what_a_model_raises_is_raised_as_it_is_with_a_note_on_its_inputs(wrong):
  def function(params, x):
    raise wrong

  class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
      raise wrong

  class Live(nnx.Module):
    def __init__(self):
      self.linear = nnx.Linear(D, 3, rngs=nnx.Rngs(0))

    def __call__(self, x):
      raise wrong

  for adapt in (
    lambda: glora_jax.adapt_function(function, {'w': W1}, X),
    lambda: glora_jax.adapt(Model(), X),
    lambda: glora_jax.nnx.attach(Live(), X),
  ):
    with pytest.raises(type(wrong)) as caught:
      adapt()
    assert caught.value is wrong
    assert caught.traceback[-1].name in ('function', '__call__')
    assert 'does not run on the sample inputs (float32[5, 4])' in wrong.__notes__.pop()
