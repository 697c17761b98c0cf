"""Structures read off one gradient, against full gradients by `jax.grad`."""

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from comparing import assert_close, random_params
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal
from small_models import Transformer
from trees import normal

import glora_jax
from glora_jax import tree
from glora_jax.search import choice, sketch, transfer, unit_scores
from glora_jax.search.priors import CLEAR, pool, prior_weight
from glora_jax.search.transfer import Transfer

KEY = jax.random.key(5)
SPACE = glora_jax.SearchSpace.distinct((1, 2))


class Mixed(nn.Module):
  """A convolution whose kernel is in a box, three tied layers, and one that is stacked."""

  @nn.compact
  def __call__(self, images):
    boxed = nn.with_partitioning(nn.initializers.lecun_normal(), (None, None, 'in', 'out'))
    x = nn.relu(nn.Conv(6, (2, 2), strides=(2, 2), kernel_init=boxed, name='conv')(images))
    x = x.reshape(len(x), -1, 6)
    query, key, value = (
      nn.Dense(size, name=name)(x) for name, size in [('q', 5), ('k', 5), ('v', 7)]
    )
    weights = nn.softmax(jnp.einsum('bnd,bmd->bnm', query, key))
    x = jnp.einsum('bnm,bmd->bnd', weights, value)
    x = nn.Einsum((3, 7, 8), 'bnd,hdk->bnhk', name='heads')(x)
    return nn.Dense(4, name='head')(jnp.tanh(x).mean((1, 2)))


@functools.cache
def mixed():
  return prepared(Mixed(), (4, 4, 3), convs=True)


@functools.cache
def scanned():
  return prepared(Transformer(4), (4, 4, 3))


def live():
  rngs = nnx.Rngs(0)
  hidden = nnx.Linear(8, 12, use_bias=False, rngs=rngs)
  model = nnx.Sequential(hidden, nnx.gelu, nnx.Linear(12, 4, rngs=rngs))
  batches = drawn_batches(8)
  attached = glora_jax.nnx.attach(
    model, batches[0][0], space=SPACE, heads=None, key=jax.random.key(1)
  )
  return *glora_jax.nnx.as_adapted(attached), batches


def prepared(model, shape, **options):
  """(adapted, variables, batches) with random params."""
  batches = drawn_batches(*shape)
  images = batches[0][0]
  adapted = glora_jax.adapt(model, images, space=SPACE, **options)
  return adapted, adapted.init(jax.random.key(3), random_params(model, images)), batches


def drawn_batches(*shape):
  """Six batches of four random images of a shape, with labels."""
  images = jax.random.normal(jax.random.key(0), (6, 4, *shape))
  return [*zip(images, jax.random.randint(jax.random.key(1), (6, 4), 0, 4), strict=True)]


def loss(forward, batch, key):
  del key
  images, labels = batch
  logits = forward(images).astype(jnp.float32)
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@functools.partial(jax.jit, static_argnums=0)
def gradient(adapted, variables, genome, batch):
  """Of a batch's loss by all variables."""

  def loss_of(variables):
    return loss(lambda x: adapted.apply(variables, x, genome=genome), batch, None)

  return jax.grad(loss_of)(variables)


def mean(trees):
  return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trees)


def square(gradients, adapted):
  """The square of the gradients of all kernels."""
  params = nn.meta.unbox(gradients['params'])
  kernels = [tree.get(params, group.site.kernel_path) for group in adapted.places.groups]
  return sum(np.sum(kernel**2) for kernel in kernels)


def allocated(problem, *, loss=loss, **options):
  options = {'budget': 150, 'max_rank': 2, 'progress': False} | options
  adapted, variables, batches = problem
  return glora_jax.allocate(adapted, variables, loss, batches, **{'key': KEY, **options})


@pytest.mark.parametrize('make', [mixed, scanned, live])
def test_scores_are_squared_gradients_of_units_at_their_starting_values(make):
  adapted, variables, batches = make()
  found = allocated((adapted, variables, batches))

  def gradients_of(*forms):
    genome = np.tile(np.int8(forms), (len(adapted.spec), 1))
    every = [gradient(adapted, found.variables, genome, batch) for batch in batches]
    return jax.device_get(every)

  of_vectors, of_loras = gradients_of(2, 4, 1, 0, 2), gradients_of(4, 0, 0, 0, 0)
  vectors, loras = mean(of_vectors), mean(of_loras)
  for group in adapted.places.groups:
    own, of_A = (group.arrays(each['glora']) for each in (vectors, loras))
    for index, row in group.slices():
      units = {'A_vector': own['A_up'][index][0], 'A_lora': of_A['A_up'][index]}
      units |= {'B_lora': own['B_up'][index], 'C_vector': np.zeros(1), 'E_vector': np.zeros(1)}
      if group.has_bias:
        units |= {'C_vector': own['C_down'][index][:, 0], 'E_vector': own['E'][index]}
      for name, of_unit in units.items():
        squares = (of_unit**2).sum(-1)
        # The key's bias moves all of a softmax's logits alike, so that its gradient is rounding.
        atol = 4e-4 * squares.max() + 1e-17
        assert_allclose(getattr(found.scores, name)[row], squares, rtol=0, atol=atol)
  whole = square(loras, adapted)
  noise = (np.mean([square(each, adapted) for each in of_loras]) - whole) / (len(batches) - 1)
  assert_allclose(found.signal, 1 - noise / whole, rtol=1e-4)


def test_starting_values_change_no_output():
  adapted, variables, [(images, _), *_] = mixed()
  found = allocated(mixed())
  begun = adapted.apply(found.variables, images, genome=found.genome)
  assert_allclose(begun, adapted.model.apply({'params': variables['params']}, images), atol=1e-5)


def test_kernels_of_layers_without_a_bias_stay_on_the_device(monkeypatch):
  copied = []

  def on_host(array):
    copied.append(array.shape)
    return tree.on_host(array)

  monkeypatch.setattr(sketch, 'on_host', on_host)
  allocated(live())
  assert copied == [(12, 4)]  # the kernel of the layer with a bias


def test_a_base_of_numpy_is_not_sent_to_the_device_with_every_batch(monkeypatch):
  def on_the_device(program, *arguments):
    total_probes_base = arguments[:3]
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(total_probes_base))
    return program(*arguments)

  def reported(name, program):
    return functools.partial(on_the_device, program)

  monkeypatch.setattr(sketch, 'reported', reported)
  adapted, variables, batches = live()
  allocated((adapted, jax.device_get(variables), batches))


def test_a_thin_sketch_finds_the_first_directions_of_a_large_kernel():
  images = normal(64, 5) @ normal(5, 150, seed=1)
  images += 0.1 * normal(64, 150, seed=2)  # so that its gradient has full rank
  model = nn.Sequential([nn.Dense(140), nn.tanh, nn.Dense(3)])
  labels = (images @ normal(150, 3, seed=3)).argmax(-1)
  batches = [(images[part::8], labels[part::8]) for part in range(8)]
  adapted = glora_jax.adapt(model, images, space=SPACE)
  variables = adapted.init(jax.random.key(3), random_params(model, images))
  found = allocated((adapted, variables, batches))
  nothing = np.zeros((2, 5), np.int8)
  exact = gradient(adapted, variables, nothing, (images, labels))['params']['layers_0']['kernel']
  squares = np.linalg.svd(exact).S[:2] ** 2
  expected = unit_scores.xavier_norm(150, 2) ** 2 * squares
  assert_allclose(found.scores.B_lora[0], expected, rtol=0.02)


def test_the_genome_is_what_the_scores_choose_without_a_budget_at_the_knee():
  problem = mixed()
  for given in (60, 400, None):
    found = allocated(problem, budget=given)
    budget = given or found.curve.params[found.curve.knee]
    assert_array_equal(found.genome, choice.choose(problem[0].spec, found.scores, budget))
    assert found.count_params() <= budget == found.budget
    assert found.proposed == (given is None)


def test_batches_are_read_once_and_a_single_one_does_not_tell_noise():
  adapted, variables, batches = mixed()
  listed = allocated((adapted, variables, batches))
  generated = allocated((adapted, variables, iter(batches)))
  jax.tree.map(assert_array_equal, listed.scores, generated.scores)
  together = jax.tree.map(lambda *parts: jnp.concatenate(parts), *batches)
  alone = allocated((adapted, variables, [together]))
  assert alone.signal is None
  for scores, same in zip(alone.scores, listed.scores, strict=True):
    assert_close(scores, same, 1e-3)


def test_clear_priors_choose_where_the_own_gradient_is_noise():
  problem = mixed()
  own = allocated(problem)
  assert own.signal < CLEAR  # labels are random
  swapped = own.scores._replace(A_lora=own.scores.B_lora)
  first, second = (
    dataclasses.replace(own, signal=signal, scores=scores)
    for signal, scores in ((0.8, own.scores), (0.9, swapped))
  )
  remembered = Transfer(problem[0].spec, swapped)
  for given, priors in (
    (first, [first]),
    ([first, second], [first, second]),
    (lambda: remembered, [remembered]),
  ):
    found = allocated(problem, prior=given)
    assert found.borrowed == prior_weight(own.signal, np.mean([one.signal for one in priors])) > 0
    assert 'prior' in found.summary()
    other = unit_scores.mean_scores([one.scores for one in priors])
    expected = pool(own.scores, other, found.borrowed)
    jax.tree.map(assert_allclose, found.scores, expected)
    assert_array_equal(found.genome, choice.choose(problem[0].spec, expected, found.budget))
  nothing = allocated(problem, prior=lambda: None)
  assert_array_equal(nothing.genome, own.genome)


@pytest.mark.parametrize('factor', [1e-30, 1e30])
def test_a_loss_in_other_units_has_the_same_signal_and_structure(factor):
  own = allocated(mixed())
  found = allocated(mixed(), loss=lambda *arguments: factor * loss(*arguments))
  assert_allclose(found.signal, own.signal, rtol=1e-4)
  assert_array_equal(found.genome, own.genome)


def test_transferred_scores_are_a_mean_in_a_file_of_the_same_layers(tmp_path):
  problem = mixed()
  spec, path = problem[0].spec, tmp_path / 'transfer.json'
  losses = [allocated(problem, key=jax.random.key(key)).scores for key in (0, 1)]
  transfer.write(path, spec, losses)
  found = transfer.read(path, spec).scores
  jax.tree.map(
    functools.partial(assert_allclose, rtol=1e-3), found, unit_scores.mean_scores(losses)
  )
  with pytest.raises(ValueError, match=r'conv 12 x 6 there'):
    transfer.read(path, scanned()[0].spec)
  content = json.loads(path.read_text())
  content['scores']['E_vector'][0] = -1.0
  path.write_text(json.dumps(content))
  with pytest.raises(ValueError, match='damaged'):
    transfer.read(path, spec)
