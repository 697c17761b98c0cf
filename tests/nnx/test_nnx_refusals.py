"""What calls on NNX models refuse: each error names what is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparing import assert_refused
from flax import nnx
from live_models import X, fresh
from small_models import LiveMlp

import glora_jax
from glora_jax import nnx as glora_nnx
from glora_jax.nnx import live

GENOME = np.zeros((1, 5), np.int8)
LORA = glora_jax.SearchSpace(4, A='none', C='none')


class WithFeatures(LiveMlp):
  def __call__(self, x):
    return super().__call__(x), x


def attach(model=None, **options):
  return glora_nnx.attach(model or LiveMlp(), X, **options)


def hooked():
  linear = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
  linear.kernel = nnx.Param(linear.kernel[...], on_get_value=lambda _, value: value / 2)
  return attach(linear)


def score(given):
  given.eval()
  adapted, values = glora_nnx.as_adapted(given)
  scorer = glora_jax.make_scorer(adapted, glora_jax.classification())
  return scorer(values, GENOME[None], (X, np.zeros(len(X), int)))


def set_statistics(**statistics):
  _, values = glora_nnx.as_adapted(fresh())
  return glora_nnx.set_variables(fresh(), {**values, 'batch_stats': statistics})


def shapes_alone():
  adapted, _ = glora_nnx.as_adapted(attach(nnx.eval_shape(LiveMlp), space=glora_jax.SearchSpace()))
  variables = adapted.init(jax.random.key(0), glora_nnx.params(LiveMlp()))
  return adapted.apply(variables, X, genome=GENOME)


REFUSED = [
  (lambda: attach(fresh()), 'LiveMlp'),
  (lambda: attach(key=nnx.Rngs(dropout=0)), 'dropout'),
  (lambda: live.spec(LiveMlp()), 'LiveMlp'),
  (lambda: glora_nnx.set_genome(attach(heads=None).head, GENOME), 'the whole model'),
  (lambda: glora_nnx.set_genome(fresh(), GENOME[None]), 'one genome'),
  (lambda: glora_nnx.set_genome(attach(space=LORA), GENOME + 2), 'vector for A of layer 0'),
  (lambda: nnx.jit(live.get_genome)(fresh()), 'traced'),
  (lambda: set_statistics(norm={'mean': np.zeros(5)}), 'norm/mean is (5,)', '(8,)'),
  (lambda: fresh().fc.kernel.__setitem__(..., jnp.zeros((6, 8))), '(6, 8)'),
  (lambda: score(attach(WithFeatures())), 'tuple'),
  (
    lambda: glora_jax.save_adapter('adapter.safetensors', fresh(), {}),
    'LiveMlp',
    'glora_jax.nnx.as_adapted(model)',
  ),
  # NNX models as functions
  (hooked, 'own get_value'),
  (
    lambda: glora_nnx.with_params(nnx.Linear(6, 4, rngs=nnx.Rngs(0)), {'kernel': np.zeros((4, 6))}),
    '(4, 6)',
    '(6, 4)',
  ),
  (shapes_alone, 'LiveMlp', 'eval_shape'),
]


@pytest.mark.filterwarnings('ignore:Variable hooks are deprecated')
@pytest.mark.parametrize(
  'call, named', [pytest.param(call, named, id=' '.join(named)) for call, *named in REFUSED]
)
def test_what_cannot_be_is_refused_by_name(call, named):
  assert_refused(named, call)
