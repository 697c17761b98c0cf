"""A head that is trained on features, against the same head trained under its whole model."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal
from tiny import NUM_IMAGES, Stream, flat, problem
from trees import randomized

import glora_jax
from glora_jax.method.genomes import smallest_genome
from glora_jax.training import head_alone
from glora_jax.training.head_alone import HeadAlone, warm_head
from glora_jax.training.loop import fit
from glora_jax.training.losses import make_loss
from glora_jax.training.recipe import Recipe

KEY = jax.random.key(4)
RECIPE = Recipe(epochs=3, batch_size=10, warmup_epochs=1, learning_rate=1e-2)


def halved(images, key):
  return images / 2


def warmed(adapted, variables, images=None, recipe=RECIPE, **options):
  images = problem().images if images is None else images
  arguments = adapted, variables, images, problem().labels, recipe, KEY
  return warm_head(*arguments, preprocess=halved, progress=False, **options)


def trained_as_a_whole(adapted, variables, recipe=RECIPE, images=None):
  """The variables after training nothing but the head, under the body, step by step."""
  subnet = adapted.fix(smallest_genome(adapted.spec))
  trainable, frozen = subnet.split(variables)
  loss = make_loss(subnet, lambda images, key: images / 2)
  data = problem().images if images is None else images, problem().labels
  state = fit(loss, trainable, frozen, *data, recipe, KEY, progress=False)
  return {**variables, 'params': subnet.join(state.trainable, frozen)['params']}


def assert_same_head(found, expected, start):
  jax.tree.map(assert_array_equal, found['glora'], start['glora'])
  assert_allclose(flat(found['params']), flat(expected['params']), atol=2e-5)
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


def of_a_head_with_more(model=nn.jit(Capped)(), images=None):
  images = problem().images if images is None else images
  shapes = jax.eval_shape(model.init, KEY, images)['params']
  adapted = glora_jax.adapt(model, images, heads='head')
  return adapted, adapted.init(KEY, randomized(shapes, 1))


IN_PARTS = dataclasses.replace(RECIPE, accumulate=2)


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
  assert_array_equal(flat(found['params']), flat(expected['params']))


def test_a_stream_is_read_once_whatever_the_number_of_epochs():
  adapted, variables = of_linen()
  found = warmed(adapted, variables, Stream(events := []))
  _, *rows = events  # the first asks for the shape
  assert np.concatenate(rows).tolist() == [*range(NUM_IMAGES), *range(6)]
  expected = warmed(adapted, variables)
  assert_array_equal(flat(found['params']), flat(expected['params']))


class Residual(nn.Module):
  """A head past which images go, too."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(8, name='head')(nn.relu(nn.Dense(8, name='hidden')(x))) + x


class SequenceFirst(nn.Module):
  """A head on a sequence [place, image, ...]."""

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(8, name='hidden')(x)).transpose(1, 0, 2)
    return nn.Dense(3, name='head')(x).mean(0)


@pytest.mark.parametrize('model, shape', [(Residual(), [8]), (SequenceFirst(), [10, 4])])
def test_a_head_that_reads_no_row_for_each_image_is_trained_under_its_model(
  model, shape, monkeypatch
):
  """A residual branch goes past it, or its sequence is as long as a batch."""
  images = jax.random.normal(KEY, (NUM_IMAGES, *shape))
  adapted, variables = of_a_head_with_more(model, images)
  monkeypatch.setattr(HeadAlone, 'features', None)
  expected = trained_as_a_whole(adapted, variables, images=images)
  assert_same_head(warmed(adapted, variables, images), expected, variables)
