"""A head that is trained on features, against the same head trained under its whole model."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import NUM_IMAGES, Tiny, flat, problem
from trees import randomized

import glora_jax
from glora_jax.method.genomes import smallest_genome
from glora_jax.training import batches, head_alone
from glora_jax.training.halves import halve
from glora_jax.training.head_alone import HeadAlone, warm_head
from glora_jax.training.loop import fit
from glora_jax.training.losses import cross_entropy, subnet_loss
from glora_jax.training.recipe import Recipe

KEY = jax.random.key(4)
RECIPE = Recipe(epochs=3, batch_size=10, warmup_epochs=1, learning_rate=1e-2)


def halved(images):
  return images / 2


def warmed(adapted, variables, images=None, recipe=RECIPE, **options):
  images = problem().images if images is None else images
  arguments = adapted, variables, images, problem().labels, recipe, KEY
  return warm_head(*arguments, preprocess=halved, progress=False, **options)


def trained_as_a_whole(adapted, variables, recipe=RECIPE, images=None):
  """The variables after training nothing but the head, under the body, step by step."""
  subnet = adapted.fix(smallest_genome(adapted.spec))
  trainable, frozen = subnet.split(variables)
  if isinstance(adapted.model, nn.Module):
    loss = subnet_loss(subnet, lambda key, images: images / 2)
  else:

    def loss(trainable, frozen, images, labels, key):
      return cross_entropy(subnet.apply(subnet.join(trainable, frozen), images / 2), labels)

  data = problem().images if images is None else images, problem().labels
  state = fit(loss, trainable, frozen, *data, recipe, KEY, progress=False)
  return {**variables, 'params': subnet.join(state.trainable, frozen)['params']}


def assert_same_head(found, expected, start):
  jax.tree.map(np.testing.assert_array_equal, found['glora'], start['glora'])
  np.testing.assert_allclose(flat(found['params']), flat(expected['params']), atol=2e-5)
  moved = np.abs(flat(expected['params']) - flat(start['params']))
  assert moved.max() > 1e-2


class Linear(nnx.Module):
  """A model of NNX with a batch norm."""

  def __init__(self, rngs):
    self.hidden = nnx.Linear(8, 6, rngs=rngs)
    self.norm = nnx.BatchNorm(6, rngs=rngs)
    self.head = nnx.Linear(6, 3, rngs=rngs)

  def __call__(self, x):
    return self.head(nnx.gelu(self.norm(self.hidden(x))))


def of_nnx():
  model = Linear(nnx.Rngs(0))
  model.eval()
  adapted = glora_jax.nnx.adapt(model)
  return adapted, adapted.init(KEY, glora_jax.nnx.params(model))


def of_linen():
  return problem(0.0)[:2]


class Capped(nn.Module):
  """Logits that are capped behind a head of two layers, called as one compiled function."""

  @nn.compact
  def __call__(self, x):
    x = nn.tanh(nn.Dense(5, name='hidden')(x))
    x = nn.Dense(3, name='head')(nn.relu(nn.Dense(4, name='head_hidden')(x)))
    return 5 * jnp.tanh(x / 5)


def of_a_head_with_more(model=nn.jit(Capped)()):
  shapes = jax.eval_shape(model.init, KEY, problem().images)['params']
  adapted = glora_jax.adapt(model, problem().images, heads='head')
  return adapted, adapted.init(KEY, randomized(shapes, 1))


IN_PARTS = dataclasses.replace(RECIPE, accumulate=2, component_dropout=0.2)


@pytest.mark.parametrize(
  'make, recipe', [(of_linen, IN_PARTS), (of_nnx, RECIPE), (of_a_head_with_more, RECIPE)]
)
def test_the_head_is_that_of_training_under_the_whole_model(make, recipe):
  adapted, variables = make()
  expected = trained_as_a_whole(adapted, variables, recipe)
  shape = head_alone.step_shape(problem().images, recipe)
  assert HeadAlone.find(adapted, variables, halved, shape) is not None
  assert_same_head(warmed(adapted, variables, recipe=recipe), expected, variables)


def test_nothing_is_dropped_on_the_way_to_the_head():
  dropping, variables, *_ = problem(0.1)
  adapted, _ = of_linen()
  found, expected = warmed(dropping, variables), warmed(adapted, variables)
  np.testing.assert_array_equal(flat(found['params']), flat(expected['params']))


class Stream:
  """The images, counted."""

  def __init__(self):
    self.rows = []

  def batches(self, indices):
    for index in indices:
      self.rows.append(index)
      yield np.asarray(problem().images)[index], np.asarray(problem().labels)[index]


def test_a_stream_is_read_once_whatever_the_number_of_epochs():
  adapted, variables = of_linen()
  stream = Stream()
  found = warmed(adapted, variables, stream)
  _, *rows = stream.rows  # the first asks for the shape
  assert np.concatenate(rows).tolist() == [*range(NUM_IMAGES), *range(6)]
  expected = warmed(adapted, variables)
  np.testing.assert_array_equal(flat(found['params']), flat(expected['params']))


class Residual(nn.Module):
  """A head past which images go, too."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(8, name='head')(nn.relu(nn.Dense(8, name='hidden')(x))) + x


def test_a_head_that_reads_more_is_trained_under_its_model(monkeypatch):
  adapted, variables = of_a_head_with_more(Residual())
  monkeypatch.setattr(HeadAlone, 'features', None)
  expected = trained_as_a_whole(adapted, variables)
  assert_same_head(warmed(adapted, variables), expected, variables)


class SequenceFirst(nn.Module):
  """A head on a sequence [place, image, ...]."""

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(8, name='hidden')(x)).transpose(1, 0, 2)
    return nn.Dense(3, name='head')(x).mean(0)


def test_a_sequence_as_long_as_a_batch_is_not_taken_for_it(monkeypatch):
  images = jax.random.normal(KEY, (NUM_IMAGES, RECIPE.batch_size, 4))
  model = SequenceFirst()
  adapted = glora_jax.adapt(model, images)
  variables = adapted.init(KEY, model.init(KEY, images)['params'])
  monkeypatch.setattr(HeadAlone, 'features', None)
  expected = trained_as_a_whole(adapted, variables, images=images)
  assert_same_head(warmed(adapted, variables, images), expected, variables)


def test_too_few_images_are_refused_before_anything_is_computed(monkeypatch):
  monkeypatch.setattr(head_alone, 'halve', None)
  with pytest.raises(ValueError, match='batch_size=25 is larger than the 24 training images'):
    warmed(*of_linen(), recipe=dataclasses.replace(RECIPE, batch_size=25))


def test_a_batch_that_cannot_be_dealt_is_refused_before_anything_is_computed(monkeypatch):
  monkeypatch.setattr(head_alone, 'halve', None)
  devices = np.array(jax.devices()[:1] * 4)
  mesh = jax.sharding.Mesh(devices, ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  with pytest.raises(ValueError, match='A batch of 10 images cannot be dealt to 4 devices; make'):
    warmed(*of_linen(), mesh=mesh)


@pytest.mark.parametrize(
  'wrong, sentence',
  [
    ({'adapted': Residual()}, r'adapted=Residual.* is no Adapted; give one'),
    ({'variables': {'params': {}}}, r'These params are not those of the adapted Tiny. missing: '),
    ({'variables': {}}, "The variables have no 'params'"),
    ({'recipe': None}, 'recipe=None is no Recipe; give one'),
    ({'preprocess': None}, 'preprocess=None is no function; give one'),
    ({'mesh': 4}, r'mesh=4 must be a jax\.sharding\.Mesh'),
    ({'images': 'x'}, "The images are 'x'; they must be an array of numbers"),
    ({'labels': None}, 'The labels are None; they must be an array of numbers'),
    ({'labels': np.arange(32) % 3}, r'\[24, 8\] and the labels \[32\]; there must be one label'),
    ({'labels': np.arange(12) % 3}, r'\[24, 8\] and the labels \[12\]; there must be one label'),
    ({'labels': []}, r'\[24, 8\] and the labels \[0\]; there must be one label'),
  ],
)
def test_arguments_that_cannot_be_are_refused(wrong, sentence):
  adapted, variables, images, labels = problem()
  arguments = {'images': images, 'labels': labels, 'recipe': RECIPE, 'preprocess': halved}
  arguments = {'adapted': adapted, 'variables': variables, 'key': KEY, **arguments, **wrong}
  with pytest.raises(ValueError, match=sentence):
    warm_head(**arguments, progress=False)


def test_a_model_without_a_head_is_refused():
  _, variables, images, _ = problem()
  adapted = glora_jax.adapt(Tiny(), images[:1], heads=None)
  with pytest.raises(ValueError, match='The adapted model has no head'):
    warmed(adapted, variables)


@pytest.mark.parametrize('given', [np.asarray, np.ndarray.tolist])
def test_images_in_the_hosts_memory_come_to_the_device_once(given, monkeypatch):
  adapted, variables = of_linen()
  taken = []

  def take(arrays, row):
    taken.append(arrays)
    return jax.tree.map(lambda array: array[row], arrays)

  monkeypatch.setattr(batches, '_take', take)
  images, labels = (given(np.asarray(array)) for array in (problem().images, problem().labels))
  found = warm_head(
    adapted, variables, images, labels, RECIPE, KEY, preprocess=halved, progress=False
  )
  assert len(taken) == 3
  assert all(isinstance(array, jax.Array) for array in jax.tree.leaves(taken))
  assert len({id(array) for array, _ in taken}) == 1
  expected = warmed(adapted, variables)
  np.testing.assert_array_equal(flat(found['params']), flat(expected['params']))


@pytest.mark.parametrize(
  'function',
  [
    lambda head, body, images: (images @ body) @ head + images.sum(),  # two arrays
    lambda head, body, images: head @ (images @ body).T @ images,  # two arrays
    lambda head, body, images: jnp.swapaxes(images @ body, 0, 1).T[:2] @ head,  # not row by row
    lambda head, body, images: images.sum(0) @ body @ head,  # no rows
  ],
)
def test_what_is_no_array_with_a_row_for_each_example_is_not_cut(function):
  head, body, images = jnp.ones((3, 3)), jnp.ones((8, 3)), jnp.ones((4, 8))
  assert halve(function, head, body, images) is None


def test_what_depends_on_frozen_arrays_alone_is_no_feature():
  def function(head, body, images):
    scale = jax.jit(jnp.exp)(body['scale'])
    return jax.jit(lambda x: scale * (jnp.tanh(x) @ head))(images @ body['kernel'])

  head, images = jnp.ones((3, 2)), jax.random.normal(KEY, (4, 8))
  body = {'kernel': jax.random.normal(KEY, (8, 3)), 'scale': jnp.float32(0.5)}
  halves = halve(function, head, body, images)
  features = halves.body(body, images)
  np.testing.assert_allclose(features, jnp.tanh(images @ body['kernel']), rtol=1e-6)
  found = halves.head(head, body, features)
  np.testing.assert_allclose(found, function(head, body, images), rtol=1e-6)
