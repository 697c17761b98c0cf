"""What calls on NNX models refuse: each error names what is wrong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparing import assert_refused
from flax import nnx
from live_models import SPACE, TOKENS, Classifier

import glora_jax
from glora_jax import nnx as glora_nnx
from glora_jax.nnx import live

X = jnp.ones((2, 6))
GENOME = np.zeros((6, 5), np.int8)


@functools.cache
def model():
  return Classifier()


@functools.cache
def attached():
  return glora_nnx.attach(model(), TOKENS, space=SPACE)


@functools.cache
def lora():
  space = glora_jax.SearchSpace(4, A='none', C='none')
  return glora_nnx.attach(model(), TOKENS, space=space)


class WithFeatures(Classifier):
  def __call__(self, x):
    return super().__call__(x), x


def made(kind, *sizes):
  return kind(*sizes, rngs=nnx.Rngs(0))


def attach(given=None, *inputs, **options):
  return glora_nnx.attach(model() if given is None else given, *(inputs or (TOKENS,)), **options)


def hooked(kernel):
  linear = made(nnx.Linear, 6, 4)
  linear.kernel = kernel(linear.kernel[...])
  return glora_nnx.attach(linear, X)


def score(given):
  given.eval()
  adapted, values = glora_nnx.as_adapted(given)
  scorer = glora_jax.make_scorer(adapted, glora_jax.classification())
  return scorer(values, GENOME[None], (TOKENS, np.zeros(len(TOKENS), int)))


def set_statistics(**statistics):
  _, values = glora_nnx.as_adapted(attached())
  return glora_nnx.set_variables(attached(), {**values, 'batch_stats': statistics})


def shapes_alone():
  adapted, _ = glora_nnx.as_adapted(attach(nnx.eval_shape(Classifier)))
  variables = adapted.init(jax.random.key(0), glora_nnx.params(model()))
  return adapted.apply(variables, TOKENS, genome=GENOME)


REFUSED = [
  (lambda: attach(attached()), 'Classifier'),
  (lambda: attach(key=nnx.Rngs(dropout=0)), 'dropout'),
  (lambda: live.spec(model()), 'Classifier'),
  (lambda: glora_nnx.set_genome(attached().block.fc2, GENOME[:1]), 'the whole model'),
  (lambda: glora_nnx.set_genome(attached(), GENOME[None]), 'one genome'),
  (lambda: glora_nnx.set_genome(lora(), GENOME + 2), 'vector for A of layer 0'),
  (lambda: nnx.jit(live.get_genome)(attached()), 'traced'),
  (lambda: set_statistics(norm={'mean': np.zeros(5)}), 'norm/mean is (5,)', '(8,)'),
  (lambda: attached().block.fc1.kernel.__setitem__(..., jnp.zeros((8, 14))), '(8, 14)'),
  (lambda: score(attach(WithFeatures())), 'tuple'),
  (
    lambda: glora_jax.save_adapter('adapter.safetensors', attached(), {}),
    'Classifier',
    'glora_jax.nnx.as_adapted(model)',
  ),
  # NNX models as functions
  (lambda: hooked(lambda w: nnx.Param(w, on_get_value=lambda _, v: v / 2)), 'own get_value'),
  (
    lambda: glora_nnx.with_params(made(nnx.Linear, 6, 4), {'kernel': np.zeros((4, 6))}),
    '(4, 6)',
    '(6, 4)',
  ),
  (shapes_alone, 'Classifier', 'eval_shape'),
]


@pytest.mark.filterwarnings('ignore:Variable hooks are deprecated')
@pytest.mark.parametrize(
  'call, named', [pytest.param(call, named, id=' '.join(named)) for call, *named in REFUSED]
)
def test_what_cannot_be_is_refused_by_name(call, named):
  assert_refused(named, call)
