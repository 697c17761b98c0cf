"""Structures read off gradients, against full gradients of every fold by `jax.grad`."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from comparing import random_params
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

import glora_jax
from glora_jax import tree
from glora_jax.method.genomes import count_params
from glora_jax.models.vit import ViT
from glora_jax.nnx import functional
from glora_jax.search import allocation, choice
from glora_jax.search.allocate import compile_ahead
from glora_jax.search.allocated import pooled, share_of
from glora_jax.search.fold_gradients import Passes, Settings, measure

FOLDS = 3
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
  return prepared(Mixed(), (4, 4, 3), ties=[('q', 'k', 'v')], convs=True)


@functools.cache
def scanned():
  return prepared(ViT(4, patch_size=4, width=12, depth=2, num_heads=2), (8, 8, 3))


def live():
  rngs = nnx.Rngs(0)
  hidden = nnx.Linear(8, 12, use_bias=False, rngs=rngs)
  model = nnx.Sequential(hidden, nnx.gelu, nnx.Linear(12, 4, rngs=rngs))
  adapted = functional.adapt(model, space=SPACE, heads=None)
  return adapted, adapted.init(jax.random.key(1), functional.params(model)), drawn_batches(8)


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


def slow_gradients(adapted, variables, batches):
  """Every row's full gradients by fold, one fold after the other."""
  params = variables['params']

  @jax.jit
  def gradient(params, batch):
    return jax.grad(
      lambda params: loss(lambda x: adapted.model.apply({'params': params}, x), batch, None)
    )(params)

  folds = []
  for fold in range(FOLDS):
    found = [gradient(params, batch) for batch in batches[fold::FOLDS]]
    folds.append(jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *found))
  by_row = {}
  for group in adapted.groups:
    weights, *kernels = (slow_kernels(group, nn.meta.unbox(x)) for x in (params, *folds))
    kernels, biases = np.stack(kernels, 1), np.stack([slow_biases(group, x) for x in folds], 1)
    for row, matrix, kernel, bias in zip(group.rows, weights, kernels, biases, strict=True):
      scaled, prompt = matrix * kernel, bias @ matrix.T
      by_row[row] = allocation.LayerGradients(kernel, scaled, scaled.sum(1), bias, prompt)
  return by_row


def slow_kernels(group, params):
  parts = [site.layout.matrices(tree.get(params, site.kernel_path)) for site in group.members]
  return np.concatenate(parts, -1).reshape(-1, group.in_features, group.out_features)


def slow_biases(group, params):
  if not group.has_bias:
    return np.zeros((len(group.rows), group.out_features))
  parts = [site.layout.vectors(tree.get(params, site.bias_path)) for site in group.members]
  return np.concatenate(parts, -1).reshape(-1, group.out_features)


def allocated(problem, *, loss=loss, **options):
  options = {'budget': 150, 'folds': FOLDS, 'max_rank': 2, 'progress': False} | options
  adapted, variables, batches = problem
  return glora_jax.allocate(adapted, variables, loss, batches, **{'key': KEY, **options})


def assert_close(found, expected, tolerance=1e-4):
  assert_allclose(found, expected, atol=tolerance * np.abs(expected).max() + 1e-7)


@pytest.mark.parametrize('make', [mixed, scanned, live])
def test_values_are_those_of_full_gradients(make):
  adapted, variables, batches = make()
  found = allocated((adapted, variables, batches))
  slow = slow_gradients(adapted, variables, batches)
  for row, gradients in slow.items():
    norm = allocation.xavier_norm(adapted.spec.layers[row].in_features, 2)
    expected = allocation.layer_values(gradients, 2, norm)
    for values, same in zip(found.values, expected, strict=True):
      assert_close(values[:, row], same, 4e-4)
  common, whole = sum(allocation.squares(gradients.kernel) for gradients in slow.values())
  assert_allclose(found.signal, common / whole, rtol=1e-4)


def narrow(monkeypatch, size):
  """Sketches of so few directions that no kernel of the tests counts as small."""
  monkeypatch.setattr(Settings, 'size', property(lambda settings: size))


def test_two_passes_measure_the_gradient_along_the_directions_that_they_find(monkeypatch):
  narrow(monkeypatch, 1)
  adapted, variables, batches = mixed()
  settings = Settings(FOLDS, 1, progress=False)
  rows = measure(adapted, variables, loss, batches, KEY, settings)
  full = slow_gradients(adapted, variables, batches)
  ordered = [row for group in adapted.groups for row in group.rows]
  for row, (gradients, basis, scaled_basis) in zip(ordered, rows, strict=True):
    assert basis.shape == (adapted.spec.layers[row].in_features, settings.width)
    expected = full[row]._replace(
      kernel=basis.T @ full[row].kernel, scaled_kernel=scaled_basis.T @ full[row].scaled_kernel
    )
    for found, same in zip(gradients, expected, strict=True):
      assert_close(found, same)


def test_starting_values_lie_on_the_mean_gradients_and_change_no_output():
  adapted, variables, batches = mixed()
  found = allocated((adapted, variables, batches))
  full = slow_gradients(adapted, variables, batches)[0]
  for name, matrices in (('B_down', full.kernel), ('A_down', full.scaled_kernel)):
    factor = nn.meta.unbox(found.variables['glora']['conv'][name])
    left = np.linalg.svd(matrices.mean(0))[0][:, 0]
    norm = allocation.xavier_norm(len(left), 2)
    assert_allclose(np.linalg.norm(factor, axis=0), norm, rtol=1e-4)
    assert abs(left @ factor[:, 0]) > 0.999 * norm
  assert jax.tree.map(jnp.shape, found.variables) == jax.tree.map(jnp.shape, variables)
  outputs = adapted.apply(found.variables, batches[0][0], genome=found.genome)
  expected = adapted.model.apply({'params': variables['params']}, batches[0][0])
  assert_allclose(outputs, expected, atol=1e-5)


def test_the_genome_is_what_the_values_choose_and_then_the_mean_gradient_of_all_folds():
  problem = mixed()
  spec = problem[0].spec
  for budget in (60, 150, 400):
    found, seen = (allocated(problem, budget=budget, value=by) for by in ('squared', 'seen'))
    judged = choice.choose(spec, found.values.mean(), budget)
    filled = choice.choose(spec, found.values.mean(), budget, rest=seen.values.mean())
    assert_array_equal(found.genome, filled)
    assert found.unjudged == count_params(spec, filled) - count_params(spec, judged)
    assert found.count_params() <= budget == found.budget
    assert not found.proposed
    assert not seen.unjudged
  assert 0 < found.unjudged < found.count_params()
  assert str(found.unjudged) in found.summary()


def test_without_a_budget_the_knee_is_proposed():
  found = allocated(mixed(), budget=None)
  assert found.proposed
  assert found.budget == found.curve.params[found.curve.knee]


def test_batches_may_be_a_function_that_gives_them_again_and_a_short_list_has_fewer_folds(
  monkeypatch,
):
  narrow(monkeypatch, 1)
  adapted, variables, batches = mixed()
  listed = allocated((adapted, variables, batches), folds=None)
  generated = allocated((adapted, variables, lambda: (batch for batch in batches)), folds=6)
  assert len(batches) == len(listed.values.E_vector) == 6
  jax.tree.map(assert_array_equal, listed.values, generated.values)


def test_a_program_that_compiled_in_the_background_finds_the_same(monkeypatch):
  adapted, variables, batches = scanned()
  expected = allocated((adapted, variables, batches))
  cold = {**variables, 'params': jax.tree.map(jnp.zeros_like, variables['params'])}
  ahead = compile_ahead(adapted, cold, loss, batches, folds=FOLDS, max_rank=2)
  with monkeypatch.context() as patched:
    patched.setattr(Passes, '_gradient', None)  # nothing is compiled again
    found = allocated((adapted, variables, batches), ahead=ahead)
  assert_array_equal(found.genome, expected.genome)
  jax.tree.map(assert_array_equal, found.values, expected.values)
  jax.tree.map(assert_array_equal, found.variables, expected.variables)
  with jax.disable_jit():
    assert compile_ahead(adapted, variables, loss, batches, folds=FOLDS) is None


def test_what_folds_have_not_in_common_is_worth_nothing():
  adapted, variables, batches = mixed()

  def opposed(forward, batch, key):
    return loss(forward, batch[:2], key) * jnp.where(batch[2] == 0, 1.0, -1.0)

  batches = [(*batches[0], jnp.float32(sign)) for sign in (0, 1)]
  options = {'loss': opposed, 'folds': 2, 'max_rank': 1, 'floor': False}
  assert not allocated((adapted, variables, batches), **options).genome.any()
  with pytest.raises(ValueError, match='budget=None'):
    allocated((adapted, variables, batches), **options, budget=None)


def test_clear_priors_choose_where_the_own_gradient_is_noise():
  problem = mixed()
  own = allocated(problem)
  assert own.signal < 0.05  # labels are random
  first, second = (
    dataclasses.replace(own, signal=signal, values=allocation.Values(*map(abs, values)))
    for signal, values in ((0.2, own.values), (0.4, own.values._replace(A_lora=own.values.B_lora)))
  )
  for given in ([first], [first, second]):
    found = allocated(problem, prior=given)
    assert found.borrowed == pytest.approx(share_of(own.signal, 0.2))
    assert 'prior' in found.summary()
    means = [one.values.mean() for one in given]
    sizes = [sum(part.sum() for part in mean) for mean in means]
    other = allocation.Values(
      *(sum(map(np.divide, parts, sizes)) for parts in zip(*means, strict=True))
    )
    expected = pooled(own.values, other, found.borrowed)
    jax.tree.map(assert_allclose, found.values, expected)
  nothing = allocated(problem, prior=lambda: None)
  assert_array_equal(nothing.genome, own.genome)
  positive = allocated(problem, prior=first)  # all values are above 0
  expected = choice.choose(problem[0].spec, positive.values.mean(), positive.budget)
  assert_array_equal(positive.genome, expected)
