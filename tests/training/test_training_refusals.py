"""What cannot be trained with is refused before anything is computed, and the value is named."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from comparing import assert_refused
from tiny import Tiny, problem

import glora_jax
from glora_jax.training import loop
from glora_jax.training.batches import read
from glora_jax.training.losses import classification, cross_entropy
from glora_jax.training.recipe import Recipe

KEY = jax.random.key(4)
RECIPE = Recipe(epochs=2, batch_size=10, warmup=0.0)
ONE_EPOCH = Recipe(epochs=1, warmup=0.0)
IN_PARTS = Recipe(epochs=1, warmup=0.0, batch_size=10, accumulate=5)
SHARED = {'recipe': RECIPE, 'progress': False}


class Partial:
  """A stream that leaves the last row out."""

  def __len__(self):
    return 24

  def batches(self, indices):
    for index in indices[:-1]:
      yield index, index


class Short:
  """Batches with a wrong length, by which a later epoch could not be found again."""

  def __len__(self):
    return 3

  def __iter__(self):
    yield problem().data


def fit(data=None, **arguments):
  adapted, variables, images, labels = problem()
  data = {'images': images, 'labels': labels} | (data or {})
  defaults = {
    'adapted': adapted,
    'variables': variables,
    'loss': classification(),
    'batches': tuple(data.values()),
    'key': KEY,
  }
  return glora_jax.fit(**defaults | SHARED | arguments)


def losing(*result):
  return fit(loss=lambda *_: result)


def begun(structure=None):
  """The state before the first of 4 steps."""
  trainable, _ = problem().adapted.fix(structure).split(problem().variables)
  return loop.initial_state(trainable, RECIPE.optimizer(2))


def probe(labels, adapted=None):
  adapted, data = adapted or problem().adapted, (problem().images, labels)
  loss = classification()
  return glora_jax.linear_probe(adapted, problem().variables, loss, data, key=KEY, **SHARED)


def together(**arguments):
  starts = [problem().variables] * 2
  return fit(**{'variables': starts, 'key': jax.random.split(KEY)} | arguments)


def batches():
  """An iterator, of which nobody knows how long it is."""
  yield problem().data


@pytest.mark.parametrize(
  'call, named',
  [
    (lambda: Recipe(accumulate=3), 'accumulate=3 must divide batch_size=64'),
    (lambda: list(read(Partial(), iter(np.ones((3, 10), int)), 10)), '2 batches for 3 rows'),
    (lambda: cross_entropy(jnp.ones((4, 5)), jnp.ones(5)), '[5]'),
    (lambda: classification(rngs={'dropout': KEY}), 'rngs'),
    (lambda: fit(adapted=problem().adapted.fix('bitfit'), sample=len), 'sample draws structures'),
    (lambda: fit(sample=lambda key: np.ones((3, 2, 5))), 'A batch of 10 cannot be cut into 3'),
    (lambda: fit({'labels': problem().labels.at[2].set(-1)}), 'label -1 of example 2'),
    (lambda: probe(problem().labels.at[5].set(3)), 'label 3 of example 5'),
    (lambda: losing(jnp.zeros(()), [1.0]), '(loss, metrics)'),
    (
      lambda: losing(jnp.zeros(()), {'confusion': jnp.ones((3, 3))}),
      "'confusion' is float32 [3, 3]",
    ),
    (lambda: fit(state=begun('bitfit')), 'state.trainable has other arrays (missing: '),
    (lambda: fit(state=begun(), tx=optax.sgd(0.1)), 'state.opt_state has other arrays'),
    (lambda: fit(state=begun()._replace(step=5)), 'state.step=5'),
    (
      lambda: probe(problem().labels, glora_jax.adapt(Tiny(), problem().images, heads=None)),
      'heads=None',
    ),
    (lambda: together(batches=Partial()), 'pass arrays and no mesh'),
    (lambda: together(variables=[problem().variables]), 'axis [2]'),
    (lambda: fit(batches=batches()), 'empty after the first of 2 epochs'),
    (lambda: fit(batches=iter([problem().data]), recipe=Recipe(steps=3)), 'no batches left'),
    (lambda: fit(batches=batches(), recipe=ONE_EPOCH), 'Recipe(steps=...)'),
    (
      lambda: fit(batches=batches(), recipe=Recipe(steps=9), state=begun()._replace(step=1)),
      'go on at state.step=1',
    ),
    (lambda: fit(batches=[]), 'There are no batches'),
    (lambda: fit(batches=Short()), 'a length of 3, but yielded 1 in an epoch'),
    (lambda: fit(loss=len, batches=[*problem().data]), 'pass them as a tuple'),
    (lambda: fit(loss=len, batches={'names': np.array(['a', 'b'])}), 'at names'),
    (lambda: fit(batches=[{'images': problem().images}]), 'pairs (inputs, labels), got dict'),
    (lambda: fit(batches=[(problem().images, problem().labels + 1)]), 'label 3 of example 2'),
    (lambda: fit(batches=(jnp.ones((4, 2)), np.arange(3))), '[[4, 2], [3]]'),
    (
      lambda: fit(batches=[problem().data], recipe=IN_PARTS),
      'divided into 5 equal parts',
    ),
    (lambda: fit(scale_updates=[1.0]), 'scale_updates=[1.0]'),
    (lambda: fit(key=jax.random.split(KEY, 0)), 'one random key'),
  ],
)
def test_training_refuses_what_it_cannot_use(call, named):
  assert_refused(named, call)
