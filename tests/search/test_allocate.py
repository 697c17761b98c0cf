"""Structures read off gradients, against full gradients of every fold by `jax.grad`."""

import dataclasses
import functools
import subprocess

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from places import environment, program
from trees import randomized

import glora_jax
from glora_jax.method.genomes import count_params
from glora_jax.models.vit import ViT
from glora_jax.nnx import functional
from glora_jax.search import allocation, choice
from glora_jax.search.allocate import compile_ahead
from glora_jax.search.allocated import pooled, share_of
from glora_jax.search.checked import NoGradientError
from glora_jax.search.fold_gradients import Passes, Settings, measure

FOLDS = 3
KEY = jax.random.key(5)
SPACE = glora_jax.SearchSpace.distinct((1, 2))


class Mixed(nn.Module):
  """A convolution, three tied layers, and one that is stacked."""

  @nn.compact
  def __call__(self, images):
    x = nn.relu(nn.Conv(6, (2, 2), strides=(2, 2), name='conv')(images))
    x = x.reshape(len(x), -1, 6)
    query, key, value = (
      nn.Dense(size, name=name)(x) for name, size in [('q', 5), ('k', 5), ('v', 7)]
    )
    weights = nn.softmax(jnp.einsum('bnd,bmd->bnm', query, key))
    x = jnp.einsum('bnm,bmd->bnd', weights, value)
    x = nn.Einsum((3, 7, 8), 'bnd,hdk->bnhk', name='heads')(x)
    return nn.Dense(4, name='head')(jnp.tanh(x).mean((1, 2)))


def mixed(dtype=jnp.float32):
  images = jax.random.normal(jax.random.key(0), (24, 4, 4, 3))
  labels = jax.random.randint(jax.random.key(1), (24,), 0, 4)
  model = Mixed()
  adapted = glora_jax.adapt(model, images, space=SPACE, ties=[('q', 'k', 'v')], convs=True)
  return prepared(adapted, model, images, labels, dtype)


def scanned(space=SPACE):
  images = jax.random.normal(jax.random.key(0), (24, 8, 8, 3))
  labels = jax.random.randint(jax.random.key(1), (24,), 0, 4)
  model = ViT(4, patch_size=4, width=12, depth=2, num_heads=2)
  return prepared(glora_jax.adapt(model, images, space=space), model, images, labels)


def prepared(adapted, model, images, labels, dtype=jnp.float32):
  """(adapted, variables, batches) with random params."""
  shapes = jax.eval_shape(model.init, jax.random.key(2), images)['params']
  params = jax.tree.map(lambda leaf: leaf.astype(dtype), randomized(shapes, 1))
  batches = [(images[start : start + 4], labels[start : start + 4]) for start in range(0, 24, 4)]
  return adapted, adapted.init(jax.random.key(3), params), batches


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
  return {
    row: slow_layer(group, index, params, folds)
    for group in adapted.groups
    for index, row in enumerate(group.rows)
  }


def slow_layer(group, index, params, folds):
  weights = slow_kernel(group, params)[index]
  kernel = np.stack([slow_kernel(group, fold)[index] for fold in folds])
  bias = np.stack([slow_bias(group, fold)[index] for fold in folds])
  scaled = weights * kernel
  return allocation.LayerGradients(kernel, scaled, scaled.sum(1), bias, bias @ weights.T)


def leaf(params, path):
  for part in path:
    params = params[part]
  return jnp.asarray(params, jnp.float32)


def slow_kernel(group, params):
  parts = [site.layout.matrices(leaf(params, site.kernel_path)) for site in group.members]
  return np.concatenate(parts, -1).reshape(-1, group.in_features, group.out_features)


def slow_bias(group, params):
  parts = [site.layout.vectors(leaf(params, site.bias_path)) for site in group.members]
  return np.concatenate(parts, -1).reshape(-1, group.out_features)


def allocated(problem, **options):
  options = {'budget': 150, 'folds': FOLDS, 'max_rank': 2, 'progress': False} | options
  adapted, variables, batches = problem
  return glora_jax.allocate(adapted, variables, loss, batches, key=KEY, **options)


def assert_values(found, adapted, variables, batches, rtol):
  for row, gradients in slow_gradients(adapted, variables, batches).items():
    layer = adapted.spec.layers[row]
    norm = allocation.xavier_norm(layer.in_features, 2)
    expected = allocation.layer_values(gradients, 2, norm)
    for name, values in expected._asdict().items():
      scale = np.abs(values).max()
      np.testing.assert_allclose(
        getattr(found, name)[:, row], values, rtol=rtol, atol=rtol * scale, err_msg=name
      )


@pytest.mark.parametrize('make', [mixed, scanned])
def test_values_are_those_of_full_gradients(make):
  adapted, variables, batches = make()
  allocation_ = allocated((adapted, variables, batches))
  assert_values(allocation_.values, adapted, variables, batches, rtol=2e-4)
  rows = slow_gradients(adapted, variables, batches).values()
  common, whole = sum(allocation.squares(gradients.kernel) for gradients in rows)
  np.testing.assert_allclose(allocation_.signal, common / whole, rtol=1e-4)


def narrow(monkeypatch, size):
  """Sketches of so few directions that no kernel of the tests counts as small."""
  monkeypatch.setattr(Settings, 'size', property(lambda settings: size))


@pytest.mark.parametrize('make', [mixed, scanned])
def test_two_passes_measure_the_gradient_along_the_directions_that_they_find(make, monkeypatch):
  narrow(monkeypatch, 1)
  adapted, variables, batches = make()
  settings = Settings(FOLDS, 1, progress=False)
  rows = measure(adapted, variables, loss, batches, KEY, settings)
  full = slow_gradients(adapted, variables, batches)
  shares = []
  ordered = [row for group in adapted.groups for row in group.rows]
  for row, (gradients, basis, scaled_basis) in zip(ordered, rows, strict=True):
    assert basis.shape == (adapted.spec.layers[row].in_features, settings.width)
    expected = full[row]
    assert_close(gradients.kernel, basis.T @ expected.kernel)
    assert_close(gradients.scaled_kernel, scaled_basis.T @ expected.scaled_kernel)
    assert_close(gradients.scale, expected.scale)
    assert_close(gradients.bias, expected.bias)
    assert_close(gradients.prompt, expected.prompt)
    shares.append(captured(basis, expected.kernel))
    shares.append(captured(scaled_basis, expected.scaled_kernel))
  assert np.mean(shares) > 0.6


def assert_close(found, expected):
  np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def captured(basis, gradients):
  """Share of the mean gradient's square that lies in a basis."""
  mean = gradients.mean(0)
  return np.square(basis.T @ mean).sum() / np.square(mean).sum()


def test_a_gradient_of_low_rank_is_valued_as_if_it_had_been_stored(monkeypatch):
  narrow(monkeypatch, 2)
  inputs = jax.random.normal(jax.random.key(0), (24, 12))
  batches = [inputs[start : start + 2] for start in range(0, 24, 2)]  # two inputs, rank two
  batches = [batch[:1] for batch in batches[:FOLDS]]
  model = nn.Dense(20)
  adapted = glora_jax.adapt(model, inputs, space=SPACE)
  params = {'kernel': jnp.ones((12, 20)), 'bias': jnp.arange(20.0)}
  variables = adapted.init(jax.random.key(3), params)

  def square(forward, batch, key):
    return jnp.square(forward(batch)).mean()

  options = {'budget': 100, 'key': KEY, 'folds': FOLDS, 'max_rank': 2, 'progress': False}
  sketched = glora_jax.allocate(adapted, variables, square, batches, **options)
  monkeypatch.undo()
  stored = glora_jax.allocate(adapted, variables, square, batches, **options)
  for name, values in stored.values._asdict().items():
    found = getattr(sketched.values, name)
    np.testing.assert_allclose(found, values, atol=1e-4 * np.abs(values).max() + 1e-7, err_msg=name)
  np.testing.assert_array_equal(sketched.genome, stored.genome)


@pytest.mark.parametrize('sketched', [False, True])
def test_starting_values_lie_on_the_mean_gradients_and_change_no_output(sketched, monkeypatch):
  if sketched:
    narrow(monkeypatch, 2)
  adapted, variables, batches = mixed()
  found = allocated((adapted, variables, batches))
  full = slow_gradients(adapted, variables, batches)
  assert_aligned(found.variables['glora']['conv'], full[0], (1e-3, 0.2)[sketched])
  shapes = jax.tree.map(jnp.shape, variables)
  assert jax.tree.map(jnp.shape, found.variables) == shapes
  images = batches[0][0]
  outputs = adapted.apply(found.variables, images, genome=found.genome)
  expected = adapted.model.apply({'params': variables['params']}, images)
  np.testing.assert_allclose(outputs, expected, atol=1e-5)


def assert_aligned(supports, gradients, tolerance):
  """The first column is the first singular vector; all have Xavier's norm."""
  for name, matrices in (('B_down', gradients.kernel), ('A_down', gradients.scaled_kernel)):
    left = np.linalg.svd(matrices.mean(0))[0][:, 0]
    norm = allocation.xavier_norm(len(left), 2)
    np.testing.assert_allclose(np.linalg.norm(supports[name], axis=0), norm, rtol=1e-4)
    assert abs(left @ supports[name][:, 0]) > norm * (1 - tolerance)


def test_the_genome_is_what_the_values_choose():
  problem = mixed()
  adapted = problem[0]
  for budget in (60, 150, 400):
    found = allocated(problem, budget=budget)
    expected = choice.choose(adapted.spec, found.values.mean(), budget)
    judged = count_params(adapted.spec, expected)
    assert found.count_params() - judged == found.unjudged
    if not found.unjudged:
      np.testing.assert_array_equal(found.genome, expected)
    assert found.count_params() <= budget == found.budget
    assert not found.proposed


def test_what_the_folds_do_not_agree_on_is_bought_by_their_mean_gradient():
  problem = mixed()
  adapted, budget = problem[0], 400
  found = allocated(problem, budget=budget)
  assert 0 < found.unjudged < found.count_params()
  assert f'held out, {found.unjudged} of them are worth nothing' in found.summary()
  seen = allocated(problem, budget=budget, value='seen')
  assert not seen.unjudged
  expected = choice.choose(adapted.spec, found.values.mean(), budget, rest=seen.values.mean())
  np.testing.assert_array_equal(found.genome, expected)


def test_without_a_budget_the_knee_is_proposed_and_said(caplog):
  caplog.set_level('INFO')
  found = allocated(mixed(), budget=None)
  assert found.proposed
  assert found.budget == found.curve.params[found.curve.knee]
  assert f'the knee of the curve is at {found.budget:,} parameters' in caplog.text
  assert 'the knee of the curve' in found.summary()


def test_a_base_in_bfloat16_is_measured_within_its_precision():
  adapted, variables, batches = mixed(jnp.bfloat16)
  found = allocated((adapted, variables, batches))
  wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), variables)
  expected = allocated((adapted, wide, batches))
  for name in ('A_vector', 'E_vector'):
    values = getattr(expected.values.mean(), name)
    np.testing.assert_allclose(
      getattr(found.values.mean(), name), values, atol=0.1 * np.abs(values).max()
    )


def test_batches_may_be_a_function_that_gives_them_again(monkeypatch):
  narrow(monkeypatch, 1)
  adapted, variables, batches = mixed()
  listed = allocated((adapted, variables, batches))
  generated = allocated((adapted, variables, lambda: (batch for batch in batches)))
  np.testing.assert_array_equal(listed.values.B_lora, generated.values.B_lora)


class Untraceable:
  """Stands for a program that is not to be compiled."""

  def __call__(self, *arguments):
    raise AssertionError('compiled again')


def test_a_program_that_compiled_in_the_background_finds_the_same(monkeypatch):
  adapted, variables, batches = scanned()
  expected = allocated((adapted, variables, batches))
  cold = {**variables, 'params': jax.tree.map(jnp.zeros_like, variables['params'])}
  ahead = compile_ahead(adapted, cold, loss, batches, folds=FOLDS, max_rank=2)
  monkeypatch.setattr(Passes, '_gradient', Untraceable())
  found = allocated((adapted, variables, batches), ahead=ahead)
  np.testing.assert_array_equal(found.genome, expected.genome)
  jax.tree.map(np.testing.assert_array_equal, found.values, expected.values)
  jax.tree.map(np.testing.assert_array_equal, found.variables, expected.variables)
  half = [jax.tree.map(lambda array: array[:2], batch) for batch in batches]
  with pytest.raises(AssertionError, match='compiled again'):  # for the other shape
    allocated((adapted, variables, half), ahead=ahead)


def test_nothing_is_compiled_ahead_where_nothing_is_compiled():
  adapted, variables, batches = scanned()
  with jax.disable_jit():
    assert compile_ahead(adapted, variables, loss, batches, folds=FOLDS) is None


def test_there_are_no_more_folds_than_batches_in_a_list_where_no_number_is_given():
  adapted, variables, batches = mixed()
  found = {
    number: allocated((adapted, variables, given), folds=number)
    for number, given in ((None, batches), (6, lambda: batches))
  }
  assert len(batches) == len(found[None].values.E_vector) == 6
  np.testing.assert_array_equal(found[None].genome, found[6].genome)
  with pytest.raises(ValueError, match='folds=8 need at least as many batches, and there are 6'):
    allocated((adapted, variables, lambda: batches), folds=None)


def test_nothing_is_compiled_ahead_for_no_batch():
  adapted, variables, _ = scanned()
  with pytest.raises(ValueError, match='folds=8 need at least as many batches, and there are 0'):
    compile_ahead(adapted, variables, loss, [])


def test_units_are_those_on_offer_with_their_values_and_costs():
  found = allocated(mixed())
  units = list(found.units())
  bought = sum(unit.cost for unit in units if unit.bought)
  assert bought == found.count_params()
  assert {unit.form for unit in units} == {'A.vector', 'A.lora', 'B.lora', 'C.vector', 'E.vector'}
  first = next(unit for unit in units if unit.form == 'B.lora')
  np.testing.assert_allclose(first.value, found.values.B_lora[:, 0, 0].mean())
  assert first.part == 1


def test_a_space_of_b_alone_gives_every_layer_its_rank():
  space = glora_jax.SearchSpace((1, 2, 3), A='none', B=(0, 3, 4, 5), C='none', D='none', E='none')
  found = allocated(scanned(space), budget=200, max_rank=8)
  assert not found.genome[:, [0, 2, 3, 4]].any()
  assert len(set(found.genome[:, 1].tolist())) > 1


def refused(**changes):
  adapted, variables, batches = mixed()
  arguments = {'adapted': adapted, 'variables': variables, 'loss': loss, 'batches': batches}
  options = {'budget': 100, 'folds': FOLDS, 'key': KEY}
  glora_jax.allocate(**{**arguments, **options, **changes}, progress=False)


def infinite(forward, batch, key):
  return loss(forward, batch, key) * jnp.where(batch[1][0] == 77, jnp.inf, 1)


@pytest.mark.parametrize(
  'changes, sentence',
  [
    ({'budget': 2}, 'budget=2 fits no unit: the cheapest on offer has 6'),
    ({'budget': 0.5}, 'budget=0.5 must be a whole number'),
    ({'folds': 7}, 'folds=7 need at least as many batches, and there are 6'),
    ({'folds': 1}, 'folds=1 must be at least 2'),
    ({'folds': 2.5}, 'folds=2.5 must be a whole number'),
    ({'max_rank': '8'}, "max_rank='8' must be a whole number"),
    ({'rho': -1.0}, 'rho=-1.0 must be above 0'),
    ({'rho': float('nan')}, 'rho=nan must be a finite number'),
    ({'floor': 'no'}, "floor='no' must be True or False"),
    ({'key': 3}, 'key=3 must be one random key'),
    ({'batches': None}, 'batches=None must be a list, or a function'),
    ({'loss': None}, 'loss=None must be a function'),
    ({'loss': lambda forward, batch, key: (0.0, {})}, 'The loss is a tuple; it must be one number'),
    ({'variables': {'params': {}}}, "The variables have no 'glora'"),
    ({'variables': {'params': {}, 'glora': {}}}, r"supports in variables\['glora'\] are not those"),
    ({'adapted': Mixed()}, 'allocate takes what glora_jax.adapt returned, and not Mixed'),
    ({'max_rank': 0}, 'max_rank=0 must be at least 1'),
    ({'rho': 'x'}, "rho='x' must be a number"),
    ({'floor': 2}, 'floor=2 must be True or False'),
    ({'mesh': jax.devices()}, r'mesh=\[.* must be a jax.sharding.Mesh\.'),
    ({'ahead': 3}, 'ahead=3 must be what compile_ahead returned, or None'),
    ({'value': 'best'}, "value='best' is unknown; it is one of squared, sign"),
    ({'batches': iter([])}, 'can be read only once; pass a list'),
    ({'loss': lambda forward, batch, key: forward(batch[0])}, 'The loss has shape .4, 4.'),
    ({'loss': lambda forward, batch, key: forward(batch[0]).sum() * 1j}, 'The loss is complex'),
  ],
)
def test_bad_input_is_refused_with_a_sentence(changes, sentence):
  with pytest.raises(ValueError, match=sentence):
    refused(**changes)


def test_a_head_of_zeros_is_refused():
  adapted, variables, batches = mixed()
  head = jax.tree.map(jnp.zeros_like, variables['params']['head'])
  variables = {**variables, 'params': {**variables['params'], 'head': head}}
  with pytest.raises(ValueError, match='a head of zeros hides the loss from all of them'):
    allocated((adapted, variables, batches))


def test_a_head_that_is_certain_of_every_label_is_refused():
  adapted, variables, batches = mixed()
  head = variables['params']['head']
  certain = {**head, 'bias': head['bias'].at[0].add(1e4)}
  variables = {**variables, 'params': {**variables['params'], 'head': certain}}
  batches = [(images, jnp.zeros_like(labels)) for images, labels in batches]
  with pytest.raises(NoGradientError, match='certain of every label leaves none'):
    allocated((adapted, variables, batches))


def test_what_folds_have_not_in_common_is_said(caplog):
  adapted, variables, batches = mixed()

  def opposed(forward, batch, key):
    return loss(forward, batch[:2], key) * jnp.where(batch[2] == 0, 1.0, -1.0)

  batches = [(*batches[0], jnp.float32(sign)) for sign in (0, 1)]
  options = {'budget': 100, 'folds': 2, 'max_rank': 1, 'key': KEY, 'progress': False}
  found = glora_jax.allocate(adapted, variables, opposed, batches, floor=False, **options)
  assert 'no unit is worth anything' in caplog.text
  assert not found.genome.any()
  with pytest.raises(ValueError, match='budget=None takes the knee of the curve'):
    glora_jax.allocate(adapted, variables, opposed, batches, **(options | {'budget': None}))


def test_a_loss_that_is_not_finite_is_refused_with_its_batch():
  _, _, batches = mixed()
  batches[2] = (batches[2][0], jnp.full(4, 77))
  with pytest.raises(ValueError, match='The loss of batch 2 is'):
    refused(batches=batches, loss=infinite)


def test_a_gradient_that_is_not_finite_is_refused_with_its_batch():
  def root(forward, batch, key):
    logits = forward(batch[0])
    return jnp.sqrt(jnp.square(logits - jax.lax.stop_gradient(logits)).sum())  # 0, whatever x is

  with pytest.raises(ValueError, match='The gradient of batch 0 is not finite, and its loss is 0'):
    refused(loss=root)


@pytest.mark.slow
def test_eight_devices_measure_as_one():
  ran = subprocess.run(
    program('sharded_allocation'), env=environment(8), capture_output=True, text=True
  )
  assert ran.returncode == 0, ran.stderr[-3000:]


class Live(nnx.Module):
  """Two linear layers of NNX, one of them without bias."""

  def __init__(self, rngs):
    self.hidden = nnx.Linear(8, 12, use_bias=False, rngs=rngs)
    self.out = nnx.Linear(12, 6, rngs=rngs)
    self.head = nnx.Linear(6, 4, rngs=rngs)

  def __call__(self, x):
    return self.head(nnx.gelu(self.out(nnx.gelu(self.hidden(x)))))


@pytest.mark.parametrize('sketched', [False, True])
def test_nnx_models_are_measured_and_layers_without_bias_get_no_shift(sketched, monkeypatch):
  if sketched:
    narrow(monkeypatch, 1)
  model = Live(nnx.Rngs(0))
  adapted = functional.adapt(model, space=SPACE)
  variables = adapted.init(jax.random.key(1), functional.params(model))
  inputs = jax.random.normal(jax.random.key(2), (24, 8))
  batches = [(inputs[i : i + 4], jnp.arange(4)) for i in range(0, 24, 4)]
  found = allocated((adapted, variables, batches), max_rank=1)
  params = variables['params']

  def fold_loss(params, fold):
    forward = functools.partial(adapted.model.apply, {'params': params})
    return sum(loss(forward, batch, None) for batch in batches[fold::FOLDS]) / 2

  gradients = [jax.grad(fold_loss)(params, fold) for fold in range(FOLDS)]
  biases = np.stack([gradient['out']['bias'] for gradient in gradients])
  np.testing.assert_allclose(
    found.values.E_vector[:, 1], allocation.vector_values(biases), rtol=1e-4
  )
  assert not found.values.E_vector[:, 0].any()
  assert found.genome[:, 0].any()
  assert not found.genome[0, 2:].any()
  outputs = adapted.apply(found.variables, inputs, genome=found.genome)
  np.testing.assert_allclose(outputs, adapted.model.apply({'params': params}, inputs), atol=1e-5)


def test_boxed_parameters_keep_their_boxes():
  class Boxed(nn.Module):
    @nn.compact
    def __call__(self, x):
      init = nn.with_partitioning(nn.initializers.lecun_normal(), ('in', 'out'))
      x = nn.Dense(6, kernel_init=init, name='hidden')(x)
      return nn.Dense(4, name='head')(nn.relu(x))

  inputs = jax.random.normal(jax.random.key(2), (24, 8))
  batches = [(inputs[i : i + 4], jnp.arange(4)) for i in range(0, 24, 4)]
  adapted = glora_jax.adapt(Boxed(), inputs, space=SPACE)
  variables = adapted.init(jax.random.key(1), Boxed().init(jax.random.key(3), inputs)['params'])
  found = allocated((adapted, variables, batches), budget=40)
  boxes = jax.tree.map(type, found.variables, is_leaf=lambda x: isinstance(x, nn.Partitioned))
  expected = jax.tree.map(type, variables, is_leaf=lambda x: isinstance(x, nn.Partitioned))
  assert jax.tree.leaves(boxes['glora']) == jax.tree.leaves(expected['glora'])
  assert found.genome.any()


def test_a_clear_prior_chooses_where_the_own_gradient_is_noise():
  problem = mixed()
  adapted, budget = problem[0], 150
  own = allocated(problem, budget=budget)
  assert own.signal < 0.05  # labels are random
  other = dataclasses.replace(own, signal=0.5, values=allocation.Values(*map(abs, own.values)))
  found = allocated(problem, budget=budget, prior=other)
  assert found.borrowed == pytest.approx(share_of(own.signal, 0.5))
  assert f'{100 * found.borrowed:.0f}% of the values are the prior' in found.summary()
  expected = pooled(own.values, other.values.mean(), found.borrowed)
  for part, same in zip(found.values, expected, strict=True):
    np.testing.assert_allclose(part, same)
  assert not found.unjudged  # all values are above 0
  np.testing.assert_array_equal(found.genome, choice.choose(adapted.spec, expected.mean(), budget))
  lazily = allocated(problem, budget=budget, prior=lambda: other)
  np.testing.assert_array_equal(lazily.genome, found.genome)
  nothing = allocated(problem, budget=budget, prior=lambda: None)
  np.testing.assert_array_equal(nothing.genome, own.genome)


def test_a_prior_of_another_kind_or_model_is_refused():
  problem = mixed()
  own = allocated(problem, budget=150)
  other = dataclasses.replace(own, spec=glora_jax.Spec(own.spec.layers[:1]))
  first, *others = own.spec.layers
  wider = glora_jax.Spec((dataclasses.replace(first, in_features=99), *others))
  wider = dataclasses.replace(own, spec=wider)
  short = dataclasses.replace(own, values=own.values._replace(B_lora=own.values.B_lora[..., :1]))
  for prior, sentence in (
    (3, 'prior=3 must be what glora_jax.allocate returned'),
    (lambda: 3, 'prior=3 must be what glora_jax.allocate returned'),
    ([own, 3], 'prior=3 must be what glora_jax.allocate returned'),
    (other, 'The prior has 1 rows that are not the'),
    (wider, r'\(the first is \w+ 99 x \d+ there, \w+ \d+ x \d+ here\); allocate it'),
    (short, 'The prior has values of 1 rank-one parts, and max_rank asks for 2'),
  ):
    with pytest.raises(ValueError, match=sentence):
      allocated(problem, budget=150, prior=prior)


def test_several_priors_count_alike():
  problem = mixed()
  own = allocated(problem, budget=150)
  vectors = own.values._replace(A_lora=0 * own.values.A_lora, B_lora=0 * own.values.B_lora)
  priors = [
    dataclasses.replace(own, signal=signal, values=allocation.Values(*map(abs, values)))
    for signal, values in ((0.2, own.values), (0.4, vectors))
  ]
  found = allocated(problem, budget=150, prior=priors)
  assert found.borrowed == pytest.approx(share_of(own.signal, 0.3))
  means = [prior.values.mean() for prior in priors]
  sizes = [sum(part.sum() for part in mean) for mean in means]
  other = allocation.Values(
    *(first / sizes[0] + second / sizes[1] for first, second in zip(*means, strict=True))
  )
  expected = pooled(own.values, other, found.borrowed)
  for part, same in zip(found.values, expected, strict=True):
    np.testing.assert_allclose(part, same)
