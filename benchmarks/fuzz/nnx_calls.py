"""Calls of the library on NNX models: attached ones, plain ones, parts of them, and none at all."""

import functools
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import glora_jax
from benchmarks.fuzz.calling import Call
from benchmarks.fuzz.drawing import codes, flags, near, selection, supports_among
from benchmarks.fuzz.models import randomized
from benchmarks.fuzz.oracle import Fault
from glora_jax import SearchSpace

INPUTS = jnp.ones((2, 4))


class Mlp(nnx.Module):
  """Two linear layers, of which the second is a head."""

  def __init__(self):
    self.hidden = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
    self.head = nnx.Linear(8, 3, rngs=nnx.Rngs(1))

  def __call__(self, x: jax.Array) -> jax.Array:
    """Logits."""
    return self.head(nnx.relu(self.hidden(x)))


@functools.cache
def attached() -> Mlp:
  """An attached model after training, which nobody changes."""
  model = glora_jax.nnx.attach(Mlp(), INPUTS, space=SearchSpace(ranks=(1, 2)))
  adapted, variables = glora_jax.nnx.as_adapted(model)
  trainable, frozen = adapted.split(variables)
  glora_jax.nnx.set_variables(model, adapted.join(randomized(trainable, 0), frozen))
  return model


def _model(kind: Any) -> Any:
  """The model of a kind; whatever else is drawn is taken for one."""
  model = nnx.clone(attached())
  kinds = {'attached': model, 'plain': Mlp(), 'part': model.head, 'hidden': model.hidden}
  return kinds.get(kind, kind) if isinstance(kind, str) else kind


def _attach(kind: Any, has_inputs: bool, functional: bool, **options: Any) -> list:
  model = _model(kind)
  inputs = (INPUTS,) if has_inputs else ()
  if functional:
    options.pop('key', None)
    adapted = glora_jax.nnx.adapt(model, *inputs, **options)
    return [[layer.name for layer in adapted.spec]]
  new = glora_jax.nnx.attach(model, *inputs, **options)
  return [[layer.name for layer in glora_jax.nnx.spec(new)], new(INPUTS)]


def _is_as_before(arguments: dict[str, Any], result: Any) -> None:
  if not arguments['functional'] and not np.allclose(result[1], Mlp()(INPUTS), atol=1e-5):
    raise Fault('what is attached answers otherwise')


def _set_genome(kind: Any, genome: Any) -> list:
  model = _model(kind)
  glora_jax.nnx.set_genome(model, genome)
  folded = glora_jax.nnx.fold(model)
  if not isinstance(model, type(folded)) or not np.allclose(
    folded(INPUTS), model(INPUTS), atol=1e-4
  ):
    raise Fault('folded it answers otherwise')
  return [glora_jax.nnx.get_genome(model), model(INPUTS), glora_jax.nnx.summary(model)]


def _is_set(arguments: dict[str, Any], result: Any) -> None:
  if not np.array_equal(result[0], np.asarray(arguments['genome'])):
    raise Fault(f'its genome is {result[0]}')


def _fix(kind: Any, genome: Any) -> list:
  fixed = glora_jax.nnx.fix(_model(kind), genome)
  return [glora_jax.nnx.get_genome(fixed), glora_jax.nnx.count_params(fixed), fixed(INPUTS)]


def _ask(kind: Any, question: str) -> Any:
  model = _model(kind)
  if question == 'params':
    return glora_jax.nnx.params(model)
  if question == 'as_adapted':
    return glora_jax.nnx.as_adapted(model)[1]
  if question == 'fold':
    return glora_jax.nnx.params(glora_jax.nnx.fold(model))
  return str(getattr(glora_jax.nnx, question)(model))


def _count(kind: Any, genome: Any) -> Any:
  return glora_jax.nnx.count_params(_model(kind), genome)


def _with_genome(state: Any, genome: Any) -> np.ndarray:
  states = {'attached': nnx.state(attached()), 'plain': nnx.state(Mlp())}
  graphdef = nnx.graphdef(attached())
  new = glora_jax.nnx.with_genome(
    states.get(state, state) if isinstance(state, str) else state, genome
  )
  return glora_jax.nnx.get_genome(nnx.merge(graphdef, new))


def _set_variables(kind: Any, variables: Any) -> Any:
  model = _model(kind)
  glora_jax.nnx.set_variables(model, variables)
  return model(INPUTS)


def _with_params(new: Any) -> Any:
  return glora_jax.nnx.with_params(Mlp(), new)(INPUTS)


def _odd_params() -> list:
  params = glora_jax.nnx.params(Mlp())
  return [
    *[params] * 3,
    {},
    {'hidden': {}},
    {'head': params['head']},
    {**params, 'head': params['hidden']},
    {**params, 'x': jnp.ones(3)},
    {**params, 'head': {**params['head'], 'bias': 'x'}},
  ]


kinds = near(st.sampled_from(['attached'] * 5 + ['plain', 'part', 'hidden']), 8)
# Made where they are drawn, since attaching takes a second.
one_genome = st.deferred(lambda: codes(glora_jax.nnx.spec(attached())))
two_genomes = st.deferred(lambda: codes(glora_jax.nnx.spec(attached()), (2,)))
trained = st.deferred(lambda: supports_among(glora_jax.nnx.as_adapted(attached())[1], 'hidden'))
new_params = st.deferred(lambda: near(st.sampled_from(_odd_params())))
CALLS: dict[str, Call] = {
  'nnx.attach': Call(
    _attach,
    st.fixed_dictionaries(
      {
        'kind': near(st.sampled_from(['plain'] * 6 + ['attached', 'hidden'])),
        'has_inputs': st.sampled_from([True, True, True, False]),
        'functional': flags,
      },
      optional={
        **selection('hidden'),
        'split': near(st.sampled_from([{}, {'hidden': 0}, {'(': 0}, {'hidden': 9}])),
        'key': near(st.just(jax.random.key(0))),
      },
    ),
    _is_as_before,
  ),
  'nnx.set_genome': Call(
    _set_genome, st.fixed_dictionaries({'kind': kinds, 'genome': one_genome}), _is_set
  ),
  'nnx.fix': Call(_fix, st.fixed_dictionaries({'kind': kinds, 'genome': one_genome})),
  'nnx.count_params': Call(_count, st.fixed_dictionaries({'kind': kinds, 'genome': two_genomes})),
  'nnx.fold': Call(
    _ask,
    st.fixed_dictionaries(
      {
        'kind': kinds,
        'question': st.sampled_from(
          ['fold', 'params', 'spec', 'get_genome', 'count_params', 'summary', 'as_adapted']
        ),
      }
    ),
    weight=2,
  ),
  'nnx.with_genome': Call(
    _with_genome,
    st.fixed_dictionaries(
      {'state': near(st.sampled_from(['attached', 'attached', 'plain'])), 'genome': one_genome}
    ),
  ),
  'nnx.set_variables': Call(
    _set_variables,
    st.fixed_dictionaries(
      {
        'kind': kinds,
        'variables': trained,
      }
    ),
  ),
  'nnx.with_params': Call(
    _with_params,
    st.fixed_dictionaries({'new': new_params}),
  ),
}
