"""Dropout of LoRA inputs: what is dropped, where it acts, and that its mean is the model."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparing import assert_close, random_variables, ready
from function_zoo import EXAMPLES as FUNCTIONS
from numpy.testing import assert_allclose, assert_array_equal
from trees import normal

import glora_jax
from glora_jax import Forward

KEY, X = jax.random.key(0), normal(2, 3, 4)


def dropped(adapted, variables, x, genome=None, probability=0.5):
  """What a model returns that drops inputs of its LoRAs, or with None, that does not."""

  @jax.jit
  def run(variables, x, genome):
    forward = Forward(adapted, variables, genome)
    return (forward if probability is None else forward.dropping_inputs(KEY, probability))(x)

  return run(variables, x, genome)


def test_each_number_of_each_example_is_dropped_or_grows_and_the_base_gets_all():
  x = jnp.broadcast_to(X[0, 0], (500, 2, 4))
  adapted, variables = ready(nn.Dense(4), x, structure='lora:4', heads=None, scale=3.0)
  variables['glora'] = {'B_down': jnp.eye(4), 'B_up': jnp.eye(4)}
  change = dropped(adapted, variables, x, probability=0.3) - nn.Dense(4).apply(variables, x)
  grown, zero = (np.isclose(change, kept, atol=1e-5) for kept in (3 / 0.7 * x, 0))
  assert (grown ^ zero).all()
  assert_allclose(grown.mean(0), 0.7, atol=0.1)  # in every position of an example


@pytest.mark.parametrize(
  'name, structure',
  [
    ('unrolled_stack', 'full'),  # which merges a LoRA of A
    ('attention_kernels', {'q': 'lora:2', 'out': 'full'}),
    ('control_flow', {'loop': 'full', 'true': 'lora:2'}),
    ('experts_by_einsum', 'dora:2'),
    ('dataclasses_called_one_example_at_a_time', 'full'),
  ],
)
def test_layers_of_all_kinds_drop(name, structure):
  """Nothing with a probability near 0, and something with 0.5."""
  example = FUNCTIONS[name]()
  options = {'structure': structure, 'heads': None, **example.options}
  adapted = glora_jax.adapt_function(example.apply, example.params, *example.inputs, **options)

  @jax.jit
  def run(variables):
    forward = Forward(adapted, variables)
    forwards = forward, *(forward.dropping_inputs(KEY, each) for each in (1e-9, 0.5))
    return [each(*example.inputs) for each in forwards]

  plain, nearly_plain, dropped = run(random_variables(adapted, example.params))
  assert_close(nearly_plain, plain, 2e-4)
  assert np.abs(dropped - plain).max() > 1e-3


def layer_by_layer(params, x):
  return jnp.stack([x @ params['w'][0], x @ params['w'][1]])


def scanned(params, x):
  return jax.lax.scan(lambda x, w: (x, x @ w), x, params['w'])[1]


def identity_stack(function, x):
  """(A function of two kernels of zeros, adapted; variables with the identity as their LoRAs)."""
  params, factors = {'w': jnp.zeros((2, 4, 4))}, jnp.stack([jnp.eye(4)] * 2)
  adapted = glora_jax.adapt_function(function, params, x, structure='lora:4', heads=None)
  return adapted, {'params': params, 'glora': {'w': {'B_down': factors, 'B_up': factors}}}


def test_layers_of_a_stack_draw_on_their_own_and_as_unrolled():
  unrolled, stacked = (
    dropped(*identity_stack(function, X), X) for function in (layer_by_layer, scanned)
  )
  assert_array_equal(unrolled, stacked)
  assert (stacked[0] != stacked[1]).any()


def test_a_free_structure_drops_the_inputs_of_loras_alone_with_a_key_for_each_path():
  space = glora_jax.SearchSpace(ranks=(4,))
  adapted, variables = ready(nn.Dense(4), X, space=space, heads=None)
  genomes = jnp.array([[0, 3, 0, 0, 0], [0, 3, 0, 0, 0], [2, 2, 1, 2, 2], [1, 1, 0, 0, 0]])

  def paths(x, probability):
    outputs = dropped(adapted, variables, x, genomes[:, None], probability)
    return np.split(np.asarray(outputs), 4)

  x = jnp.concatenate([X[:1]] * 4)
  plain, output = paths(x, None), paths(x, 0.5)
  assert (output[0] != plain[0]).any()
  assert_allclose(output[2:], plain[2:], rtol=1e-5, atol=1e-5)
  assert (output[0] != output[1]).any()


def test_each_step_of_a_training_drops_others():
  x = normal(64, 4)
  adapted, variables = ready(nn.Dense(4), x, structure='lora:2', heads=None)

  def loss(forward, batch, key):
    return jnp.mean((forward(batch) - batch) ** 2)

  def losses(**options):
    recipe, seen = glora_jax.Recipe(epochs=3, batch_size=64, warmup=0.0, **options), []
    options = {'key': KEY, 'progress': False, 'every': 1}
    options['callback'] = lambda step, metrics: seen.append(metrics['loss'])
    glora_jax.fit(adapted, variables, loss, x, recipe, **options)
    return seen

  dropped = losses(lora_dropout=0.5)
  assert len(set(np.round(dropped, 2))) == 3  # drawn anew in each step
  assert dropped != losses()


def test_a_kernel_that_is_used_otherwise_than_in_a_product_is_refused():
  def penalized(params, x):
    return x @ params['w'] + (params['w'] ** 2).sum()

  params, options = {'w': jnp.eye(4)}, {'structure': 'lora:2', 'heads': None}
  images = normal(2, 4, 4, 3)
  adapted = glora_jax.adapt_function(penalized, params, X, **options)
  for name, x, (model, variables) in (
    ('w', X, (adapted, adapted.init(KEY, params))),
    ('Conv', images, ready(nn.Conv(4, (2, 2)), images, convs=True, **options)),
  ):
    with pytest.raises(ValueError, match=f'lora_dropout: {name} is used other than in a product'):
      Forward(model, variables).dropping_inputs(KEY, 0.5)(x)


def test_each_token_that_selects_an_expert_drops_inputs_of_its_own():
  def select(params, x):
    experts = jnp.zeros(len(x), int) + (x[:, 0] > 9)
    return jnp.einsum('bi,bio->bo', x, params['w'][experts])

  outputs = dropped(*identity_stack(select, x := jnp.ones((500, 4))), x)
  assert set(np.unique(outputs)) == {0, 2}
  assert_allclose(outputs.mean(0), 1, atol=0.2)


def test_an_embedding_table_drops_nothing():
  adapted, variables = ready(
    nn.Embed(5, 4), jnp.arange(3), structure='lora:2', heads=None, embeddings=True
  )
  assert_array_equal(
    *(dropped(adapted, variables, jnp.arange(3), probability=p) for p in (None, 0.5))
  )
