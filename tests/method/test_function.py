"""GLoRA on pure functions: any pytree of parameters, from adapting to folding."""

import dataclasses
import logging
import warnings
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from trees import randomized

import glora_jax
from glora_jax import tree

D, H, C = 4, 6, 3
X = jnp.asarray(np.random.default_rng(0).normal(size=(5, D)), jnp.float32)
SPACE = glora_jax.SearchSpace(ranks=(1, 2))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Linear:
  weight: Any  # [out, in]
  bias: Any

  def __call__(self, x):
    y = x @ self.weight.T
    return y if self.bias is None else y + self.bias


def arrays(*shapes):
  rng = np.random.default_rng(1)
  return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


W1, B1, W2, W3 = arrays((H, D), (H,), (H, H), (C, H))


def of_list(params, x):
  first, hidden, last = params
  return last(jnp.tanh(hidden(jnp.tanh(first(x)))))


def of_slashes(params, x):
  first, hidden = params['mlp/~/linear_0'], params['mlp/~/linear_1']
  x = jnp.tanh(x @ first['w'] + first['b'])
  return jnp.tanh(x @ hidden['w']) @ params['head']['w']


def of_mixed(params, x):
  x = jnp.tanh(Linear(*params['layers'][0])(x))
  x = jnp.tanh(Linear(*params['layers'][1])(x))
  return x @ params['head'].T


LAYERS = [Linear(W1, B1), Linear(W2, None), Linear(W3, None)]
# Each with the names of its layers and its head.
FUNCTIONS = {
  'dataclasses in a list': (of_list, LAYERS, ['0/weight', '1/weight'], '^2'),
  'slashes in keys': (
    of_slashes,
    {
      'mlp/~/linear_0': {'w': W1.T, 'b': B1},
      'mlp/~/linear_1': {'w': W2.T},
      'head': {'w': W3.T},
    },
    ['mlp/~/linear_0/w', 'mlp/~/linear_1/w'],
    'head',
  ),
  'None, tuples and empty dictionaries': (
    of_mixed,
    {'layers': [(W1, B1), (W2, None)], 'state': {}, 'head': W3},
    ['layers/0/0', 'layers/1/0'],
    '^head$',
  ),
}


@pytest.fixture(params=FUNCTIONS)
def case(request):
  function, params, names, head = FUNCTIONS[request.param]
  adapted = glora_jax.adapt_function(function, params, X, space=SPACE, heads=head)
  variables = adapted.init(jax.random.key(0), params)
  variables['glora'] = randomized(variables['glora'])
  return function, params, names, adapted, variables


def mixed(adapted):
  """A genome with other alleles in each row."""
  return glora_jax.random_genomes(np.random.default_rng(3), adapted.spec, 1)[0]


def test_layers_have_the_names_of_their_parameters(case):
  _, _, names, adapted, _ = case
  assert [layer.name for layer in adapted.spec] == names
  assert [layer.bias for layer in adapted.spec] == [True, False]


def test_folded_params_are_for_the_untouched_function(case):
  function, params, _, adapted, variables = case
  genome = mixed(adapted)
  outputs = adapted.apply(variables, X, genome=genome)
  folded = adapted.fold(variables, genome)
  assert jax.tree.structure(folded) == jax.tree.structure(params)
  np.testing.assert_allclose(function(folded, X), outputs, atol=1e-5)
  np.testing.assert_allclose(adapted.fix(genome).apply(variables, X), outputs, atol=1e-5)
  assert np.abs(outputs - function(params, X)).max() > 0.01


def test_a_step_trains_supports_and_heads_alone(case):
  _, params, _, adapted, variables = case
  trainable, frozen = adapted.split(variables)
  genome = mixed(adapted)
  optimizer = optax.adam(0.1)

  def loss(trainable):
    return (adapted.apply(adapted.join(trainable, frozen), X, genome=genome) ** 2).mean()

  gradient = jax.grad(loss)(trainable)
  updates, _ = optimizer.update(gradient, optimizer.init(trainable))
  joined = adapted.join(optax.apply_updates(trainable, updates), frozen)
  old, new = (tree.flatten(whole) for whole in (params, joined['params']))
  changed = {path for path in old if not np.array_equal(old[path], new[path])}
  assert changed == adapted.head_paths
  assert len(changed) == 1


def test_an_adapter_is_written_and_read(case, tmp_path):
  _, params, _, adapted, variables = case
  path, genome = tmp_path / 'adapter.safetensors', mixed(adapted)
  variables['params'] = tree.map_with_path(
    lambda path, leaf: 2 * leaf if path in adapted.head_paths else leaf, params
  )
  glora_jax.save_adapter(path, adapted, variables, genome)
  loaded, read = glora_jax.load_adapter(path, adapted, params)
  expected = adapted.apply(variables, X, genome=genome)
  np.testing.assert_allclose(adapted.apply(loaded, X, genome=read), expected, atol=1e-6)


def test_adapted_functions_go_through_search_and_allocation():
  function, params, _, head = FUNCTIONS['dataclasses in a list']
  adapted = glora_jax.adapt_function(function, params, X, space=SPACE, heads=head)
  variables = adapted.init(jax.random.key(0), params)

  def loss(forward, batch, key):
    return (forward(batch) ** 2).mean()

  allocation = glora_jax.allocate(
    adapted, variables, loss, [X, X + 1], budget=40, key=jax.random.key(0), folds=2, progress=False
  )
  assert 0 < adapted.count_params(allocation.genome) <= 40
  outputs = adapted.apply(allocation.variables, X, genome=allocation.genome)
  np.testing.assert_allclose(outputs, function(params, X), atol=1e-5)


def test_the_losses_of_supernets_and_subnets_take_functions():
  function, params, _, head = FUNCTIONS['dataclasses in a list']
  adapted = glora_jax.adapt_function(function, params, X, space=SPACE, heads=head)
  variables = adapted.init(jax.random.key(0), params)
  subnet = adapted.fix(glora_jax.preset(adapted.spec, 'bitfit'))
  labels, key = jnp.arange(len(X)) % C, jax.random.key(0)
  expected = optax.softmax_cross_entropy_with_integer_labels(function(params, X), labels).mean()
  for loss_fn, halves in (
    (glora_jax.supernet_loss(adapted, lambda key, x: x, lambda key: mixed(adapted)), adapted),
    (glora_jax.subnet_loss(subnet, lambda key, x: x), subnet),
  ):
    loss, _ = loss_fn(*halves.split(variables), X, labels, key)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_what_is_no_array_is_taken_as_it_is():
  params = {'activation': jnp.tanh, 'power': 2, 'w': W1.T}

  def function(params, x):
    return params['activation'](x @ params['w']) ** params['power']

  adapted = glora_jax.adapt_function(function, params, X)
  variables = adapted.init(jax.random.key(0), params)
  genome = glora_jax.preset(adapted.spec, 'lora')
  np.testing.assert_allclose(
    adapted.apply(variables, X, genome=genome), function(params, X), atol=1e-6
  )


def activated(layers, x):
  (layer,) = layers.values() if isinstance(layers, dict) else layers
  return layer['activation'](x @ layer['w']) * (1 + layer['eps'])


@pytest.mark.parametrize('wrap', [lambda layer: {'layer': layer}, lambda layer: [layer]])
def test_an_adapter_goes_onto_params_in_which_something_is_no_array(wrap, tmp_path):
  params = wrap({'activation': jnp.tanh, 'eps': 1e-2, 'w': W1.T})
  adapted = glora_jax.adapt_function(activated, params, X)
  variables = adapted.init(jax.random.key(0), params)
  variables = {**variables, 'glora': randomized(variables['glora'])}
  genome = glora_jax.preset(adapted.spec, 'lora')
  path = tmp_path / 'adapter.safetensors'
  glora_jax.save_adapter(path, adapted, variables, genome)
  loaded, _ = glora_jax.load_adapter(path, adapted, params)
  expected = adapted.apply(variables, X, genome=genome)
  np.testing.assert_array_equal(adapted.apply(loaded, X, genome=genome), expected)
  other = wrap({'activation': jnp.tanh, 'eps': 1e-3, 'w': W1.T})
  with pytest.raises(ValueError, match='was trained on other base weights'):
    glora_jax.load_adapter(path, adapted, other)


def test_a_kernel_beside_other_kernels_is_named_by_itself():
  params = {'cell': {'kernel': W1.T, 'recurrent': W2, 'out': {'kernel': W3.T}}}

  def function(params, x):
    cell = params['cell']
    return jnp.tanh(jnp.tanh(x @ cell['kernel']) @ cell['recurrent']) @ cell['out']['kernel']

  adapted = glora_jax.adapt_function(function, params, X, space=SPACE)
  assert [layer.name for layer in adapted.spec] == ['cell/kernel', 'cell/recurrent', 'cell/out']
  variables = adapted.init(jax.random.key(0), params)
  genome = glora_jax.preset(adapted.spec, 'lora')
  np.testing.assert_allclose(
    adapted.apply(variables, X, genome=genome), function(params, X), atol=1e-6
  )


def test_tied_layers_are_named_by_what_differs():
  params = {name: {'w': W2} for name in 'qk'}
  adapted = glora_jax.adapt_function(
    lambda params, x: (x @ params['q']['w']) * (x @ params['k']['w']),
    params,
    jnp.zeros((1, H)),
    ties=[('q/w', 'k/w')],
  )
  assert [layer.name for layer in adapted.spec] == ['q/w+k/w']


@pytest.mark.parametrize('wrong', [KeyError('z'), AssertionError(), OSError(2, 'gone')], ids=repr)
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
    lambda: glora_jax.adapt_function(function, {'w': W1.T}, X),
    lambda: glora_jax.adapt(Model(), X),
    lambda: glora_jax.nnx.attach(Live(), X),
  ):
    with pytest.raises(type(wrong)) as caught:
      adapt()
    assert caught.value is wrong
    assert caught.traceback[-1].name in ('function', '__call__')
    assert 'does not run on the sample inputs (float32[5, 4])' in wrong.__notes__.pop()


def test_layers_without_bias_are_told(caplog):
  with caplog.at_level(logging.WARNING):
    glora_jax.adapt_function(lambda params, x: x @ params['w'], {'w': W1.T}, X)
  assert 'No C, D, E for the 1 layers without bias: w.' in caplog.text


def test_params_of_numpys_own_type_are_adapted_without_a_warning():
  params, x = {'w': np.ones((4, 3)), 'b': np.ones(3)}, jnp.ones((2, 4))

  def affine(params, x):
    return x @ params['w'] + params['b']

  adapted = glora_jax.adapt_function(affine, params, x)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    variables = adapted.init(jax.random.key(0), params)
    folded = adapted.fold(variables, glora_jax.preset(adapted.spec, 'full'))
  np.testing.assert_allclose(affine(folded, x), affine(params, x), rtol=1e-6)
