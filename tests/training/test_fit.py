"""fit: every kind of data and of model, killed and resumed; what a loss may call."""

import dataclasses
import gc
import weakref
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from comparing import assert_trees_equal, ready, vector
from numpy.testing import assert_allclose
from small_models import LiveMlp
from tiny import Stream, problem

import glora_jax
from glora_jax.method.forward import Forward
from glora_jax.training.batches import batch_indices

pytestmark = pytest.mark.accelerator

KEY = jax.random.key(4)
RECIPE = glora_jax.Recipe(epochs=3, batch_size=6, warmup=1 / 3, learning_rate=3e-2)


class Killed(BaseException):
  """In place of a signal: what a killed process has not saved is lost."""


class Passes:
  """Batches, iterated anew in each epoch, of a number that nobody knows."""

  def __iter__(self):
    yield from cut(6)


def cut(size):
  """The data in batches, of which the last may be smaller."""
  images, labels = problem().data
  return [(images[i : i + size], labels[i : i + size]) for i in range(0, len(labels), size)]


def squares(forward, batch, key):
  """Another loss than cross-entropy, of batches of any kind, without metrics."""
  images, labels = (batch['x'], batch['y']) if isinstance(batch, dict) else batch
  outputs = forward(images, train=True, rngs={'dropout': key, 'drop_path': key})
  return jnp.mean((outputs - jax.nn.one_hot(labels, 3)) ** 2)


def fit(batches, recipe=RECIPE, structure='lora:2', loss=squares, **options):
  adapted = problem().adapted.fix(structure)
  return glora_jax.fit(
    adapted, problem().variables, loss, batches, recipe, key=KEY, progress=False, **options
  )


KINDS = {
  'tuple': lambda: problem().data,
  'dictionary': lambda: dict(zip('xy', map(np.asarray, problem().data), strict=True)),
  'indexed': lambda: Stream([]),
  'list': lambda: cut(6),
  'ragged list': lambda: cut(7),
  'unknown number': Passes,
}


@pytest.mark.parametrize('kind', KINDS)
def test_training_that_is_killed_amid_an_epoch_resumes_to_the_same_bytes(kind, tmp_path):
  """However many steps a call takes; the state that it goes on from stays, and so does the base."""
  recipe = glora_jax.Recipe(**vars(RECIPE) | ({'steps': 12} if kind == 'unknown number' else {}))
  whole = fit(KINDS[kind](), recipe)
  assert whole.step == 12
  base = problem().adapted.fix('lora:2').split(problem().variables)[1]
  assert_trees_equal(whole.frozen, base)

  def die(step, metrics):
    if step == 6:
      raise Killed

  with pytest.raises(Killed):
    fit(KINDS[kind](), recipe, save=tmp_path, every=1, callback=die)
  resumed = []

  def note(step, metrics):
    resumed.append(step)

  for _ in range(2):  # the second time there is nothing left to do
    found = fit(KINDS[kind](), recipe, save=tmp_path, every=1, callback=note)
    assert_trees_equal(found, whole)
  assert resumed == [*range(6, 13)]
  state = fit(KINDS[kind](), recipe, every=5, callback=lambda *_: True)
  assert state.step == 5
  for _ in range(2):
    assert_trees_equal(fit(KINDS[kind](), recipe, state=state), whole)


def test_a_list_a_dictionary_and_a_stream_train_as_the_data_set_whose_batches_they_are():
  order, _ = jax.random.split(KEY)
  rows = [*batch_indices(order, 0, 4, 24, 6)]
  images, labels = problem().data
  recipe = glora_jax.Recipe(**vars(RECIPE) | {'epochs': 1})
  expected = vector(fit((images, labels), recipe).trainable)
  listed = [(images[row], labels[row]) for row in rows]
  for batches in (listed, {'x': images, 'y': labels}, Stream([])):
    assert_allclose(vector(fit(batches, recipe).trainable), expected, rtol=1e-4, atol=1e-6)


class Tensor:
  """An array of another library, which JAX does not know."""

  dtype = 'torch.float32'

  def __init__(self, values):
    self.values = np.asarray(values)

  def __array__(self, dtype=None, copy=None):
    return self.values


class Loader:
  """A data loader: pairs as lists of tensors, and a length that raises, as of an endless one."""

  def __len__(self):
    raise TypeError('The data set has no length')

  def __iter__(self):
    yield from ([*map(Tensor, batch)] for batch in cut(6))


LOADERS = {
  'tensors': Loader,
  'lists': lambda: [[*batch] for batch in cut(6)],
  'numbers': lambda: [{'x': x.tolist(), 'y': y.tolist()} for x, y in cut(6)],
  'mapping': lambda: [MappingProxyType({'x': x, 'y': y}) for x, y in cut(6)],
  'named tuples': lambda: [Pair(*batch) for batch in cut(6)],
}


class Pair(NamedTuple):
  images: Any
  labels: Any


@pytest.mark.parametrize('kind', LOADERS)
def test_batches_of_other_libraries_train_as_their_arrays(kind):
  recipe = glora_jax.Recipe(**vars(RECIPE) | {'steps': 4})
  assert_trees_equal(fit(LOADERS[kind](), recipe), fit(cut(6), recipe))


def test_a_smaller_batch_counts_as_many_times_less_as_it_has_fewer_examples():
  """By plain gradient descent, whose sum of steps is then that over all examples alike."""

  def mean(forward, batch, key):
    return forward(batch).mean()

  model, x = nn.Dense(1), jnp.arange(14.0).reshape(7, 2)
  adapted, variables = ready(model, x, structure='bitfit', heads=None)
  state = glora_jax.fit(
    adapted,
    variables,
    mean,
    [x[:4], x[4:6], x[6:]],
    glora_jax.Recipe(epochs=1, warmup=0.0),
    key=KEY,
    tx=optax.sgd(1.0),
    progress=False,
  )
  moved = vector(variables['glora']) - vector(state.variables['glora'])
  assert_allclose(moved, 1 + 2 / 4 + 1 / 4, rtol=1e-6)


@dataclasses.dataclass
class Squares:
  """A loss that has no hash."""

  factor: float

  def __call__(self, forward, batch, key):
    return self.factor * squares(forward, batch, key)


def test_a_base_of_numpy_is_sent_to_the_device_once_and_a_loss_may_be_any_object():
  adapted, variables = problem().adapted, jax.device_get(problem().variables)
  arguments = adapted, variables, Squares(2.0), problem().data, RECIPE
  state = glora_jax.fit(*arguments, key=KEY, progress=False)
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state.frozen))


def probe_and_allocate(adapted, variables, loss, data, key):
  """What comes before a training: a linear probe, then a structure from one gradient."""
  recipe = glora_jax.Recipe(epochs=2, batch_size=6, warmup=1 / 2)
  quiet = {'key': key, 'progress': False}
  variables = glora_jax.linear_probe(adapted, variables, loss, data, recipe, **quiet)
  batches = [tuple(rows[i : i + 6] for rows in data) for i in (0, 6)]
  return glora_jax.allocate(adapted, variables, loss, batches, budget=60, **quiet).variables


def train(adapted, variables, loss, data, key):
  recipe = glora_jax.Recipe(epochs=2, batch_size=6, warmup=1 / 2)
  return glora_jax.fit(adapted, variables, loss, data, recipe, key=key, progress=False).variables


@pytest.mark.parametrize('call', [train, probe_and_allocate])
def test_what_is_trained_again_with_other_data_is_not_traced_again(call):
  traced = []

  def loss(forward, batch, key):
    traced.append(batch)
    return squares(forward, batch, key)

  adapted, variables, images, labels = problem()
  results, counts = [], []
  for seed, data in enumerate(((images, labels), (images + 1, labels))):
    results.append(vector(call(adapted, variables, loss, data, jax.random.key(seed))))
    counts.append(len(traced))
  assert counts[0] == counts[1]
  assert not np.array_equal(*results)


@pytest.mark.parametrize('call', [train, probe_and_allocate])
def test_a_model_is_freed_when_nobody_holds_it(call):
  """With the programs that were compiled for it; that of an NNX model holds its base."""

  def kernel_of_a_trained_model():
    model = glora_jax.nnx.attach(LiveMlp(8), problem().images, space=glora_jax.SearchSpace())
    model.eval()
    adapted, variables = glora_jax.nnx.as_adapted(model)
    call(adapted, variables, glora_jax.classification(), problem().data, KEY)
    return weakref.ref(variables['params']['fc']['kernel'])

  kernel = kernel_of_a_trained_model()
  gc.collect()
  assert kernel() is None


def test_paths_of_a_step_each_have_their_structure_their_examples_and_their_randomness():
  adapted, variables, images, _ = problem()
  genomes = glora_jax.random_genomes(np.random.default_rng(0), adapted.spec, 3)
  forward = Forward(adapted, variables, genomes)
  rngs = {'dropout': jax.random.key(1), 'drop_path': jax.random.key(2)}
  found = forward(images, train=True, rngs=rngs)
  for number, (genome, part) in enumerate(zip(genomes, np.split(images, 3), strict=True)):
    own = {name: jax.random.split(key, 3)[number] for name, key in rngs.items()}
    expected = adapted.apply(variables, part, genome=genome, train=True, rngs=own)
    assert_allclose(found[8 * number : 8 * number + 8], expected, rtol=1e-4, atol=1e-5)
  one = forward(images, genome=genomes[1])
  assert_allclose(one, adapted.apply(variables, images, genome=genomes[1]), rtol=1e-4, atol=1e-5)


class Normed(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    return nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))


def test_statistics_of_a_batch_stay_and_are_there_for_a_loss_to_update():
  x, moved = problem().images, []
  whole = Normed().init(KEY, x)
  adapted = glora_jax.adapt(Normed(), x, structure='bitfit')
  variables = {**whole, **adapted.init(KEY, whole['params'])}

  def loss(forward, batch, key):
    outputs, updates = forward(batch, train=True, mutable=['batch_stats'])
    moved.append(jax.tree.structure(updates))
    return jnp.mean(outputs**2)

  state = glora_jax.fit(adapted, variables, loss, x, RECIPE, key=KEY, progress=False)
  statistics = {'batch_stats': whole['batch_stats']}
  assert moved[0] == jax.tree.structure(statistics)
  assert_trees_equal({'batch_stats': state.variables['batch_stats']}, statistics)
