"""What cannot be trained with is refused before anything is computed, and the value is named."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from comparing import assert_refused
from tiny import Tiny, problem

import glora_jax
from glora_jax.training import head_alone, loop
from glora_jax.training.batches import given
from glora_jax.training.losses import cross_entropy, make_loss
from glora_jax.training.recipe import Recipe

KEY = jax.random.key(4)
RECIPE = Recipe(epochs=2, batch_size=10, warmup_epochs=0)
SHARED = {'recipe': RECIPE, 'progress': False}


class Partial:
  """A stream that leaves the last row out."""

  def batches(self, indices):
    for index in indices[:-1]:
      yield index, index


def supernet(**arguments):
  return make_loss(**{'adapted': problem().adapted, 'sample': len} | arguments)


def fit(**arguments):
  trainable, frozen = problem().split()
  defaults = problem()._asdict() | {'trainable': trainable, 'frozen': frozen, 'key': KEY}
  del defaults['adapted'], defaults['variables']
  return loop.fit(**defaults | {'loss_fn': supernet()} | SHARED | arguments)


def losing(*result):
  return fit(loss_fn=lambda *_: result)


def bitfit():
  return problem().adapted.fix('bitfit').split(problem().variables)[0]


def begun(trainable=None):
  """The state before the first of 4 steps."""
  return loop.initial_state(trainable or problem().split()[0], RECIPE.optimizer(24))


def warm(**arguments):
  defaults = problem()._asdict() | SHARED | {'key': KEY}
  return head_alone.warm_head(**defaults | arguments)


def together(**arguments):
  starts = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), problem().split()[0])
  return fit(**{'trainable': starts, 'key': jax.random.split(KEY)} | arguments)


@pytest.mark.parametrize(
  'call, named',
  [
    (lambda: Recipe(accumulate=3), 'accumulate=3 must divide batch_size=64'),
    (lambda: list(given(Partial(), np.ones((3, 10), int))), '2 batches for 3 rows'),
    (lambda: cross_entropy(jnp.ones((4, 5)), jnp.ones(5)), '[5]'),
    (lambda: supernet(rngs={'dropout': KEY}), 'rngs'),
    (lambda: make_loss(problem().adapted.fix('bitfit'), sample=len), 'sample draws structures'),
    (
      lambda: fit(loss_fn=supernet(sample=lambda key: np.ones((3, 2, 5)))),
      '10 images cannot be cut',
    ),
    (lambda: fit(state={'step': 3}), 'state must be a TrainState, got a dict'),
    (lambda: fit(labels=problem().labels.at[2].set(-1)), 'label -1 of image 2'),
    (lambda: warm(labels=problem().labels.at[5].set(3)), 'label 3 of image 5'),
    (lambda: losing(jnp.zeros(()), [1.0]), '(loss, metrics)'),
    (
      lambda: losing(jnp.zeros(()), {'confusion': jnp.ones((3, 3))}),
      "'confusion' is float32 [3, 3]",
    ),
    (lambda: fit(state=begun(bitfit())), 'state.trainable has other arrays (missing: '),
    (lambda: fit(state=begun(), tx=optax.sgd(0.1)), 'state.opt_state has other arrays'),
    (lambda: fit(state=begun()._replace(step=5)), 'state.step=5'),
    (lambda: warm(adapted=glora_jax.adapt(Tiny(), problem().images, heads=None)), 'heads=None'),
    (lambda: together(images=Partial()), 'resident images'),
    (lambda: together(trainable=problem().split()[0]), 'axis [2]'),
    (lambda: together(rates=[1.0]), 'rates=[1.0]'),
    (lambda: fit(key=jax.random.split(KEY, 0)), 'one random key'),
  ],
)
def test_training_refuses_what_it_cannot_use(call, named):
  assert_refused(named, call)
