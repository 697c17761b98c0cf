"""Models with classes, products and states of their own, attached; others are in the zoo."""

from typing import ClassVar

import jax
import numpy as np
import pytest
from comparing import assert_refused
from flax import nnx
from live_models import SPACE, call, fresh, randomize
from live_models import X as INPUTS
from nnx_zoo import EXAMPLES, WIDTH, Loops, Matrix, OnOneInput, vectors
from numpy.testing import assert_allclose

import glora_jax
from glora_jax import nnx as glora_nnx
from glora_jax.nnx import Head, live

X = vectors()


class Counting(nnx.Module):
  def __init__(self):
    self.calls = nnx.Variable(jax.numpy.zeros(()))

  def __call__(self, *args, **kwargs):
    self.calls[...] += 1
    return jax.lax.dot_general(*args, **kwargs)


def test_a_product_of_its_own_keeps_its_state():
  layer = nnx.Linear(WIDTH, 3, dot_general=Counting(), rngs=nnx.Rngs(0))
  attached = glora_nnx.attach(layer, X, structure='lora:2', heads=None)
  assert_allclose(attached(X), layer(X), atol=1e-6)
  for one in (attached, glora_nnx.fold(attached)):
    assert one.dot_general.calls[...] == 1


class Registered(nnx.Module):
  """A base that keeps its subclasses by name."""

  register: ClassVar[dict[str, type]] = {}

  def __init_subclass__(cls, **kwargs):
    super().__init_subclass__(**kwargs)
    cls.register[cls.__name__] = cls


class OfAKind(nnx.Module):
  """A base that asks its subclasses for an argument."""

  def __init_subclass__(cls, *, kind, **kwargs):
    super().__init_subclass__(**kwargs)
    cls.kind = kind


@pytest.mark.parametrize('base, arguments', [(OfAKind, {'kind': 'own'}), (Registered, {})])
def test_a_base_need_not_be_told_of_what_is_attached(base, arguments):
  class Own(Matrix, base, **arguments):
    pass

  model = Own(rngs=nnx.Rngs(0))
  attached = glora_nnx.attach(model, X, space=SPACE)
  assert isinstance(attached, Own)
  assert type(attached).__name__ == 'Own'
  assert Registered.register == ({'Own': Own} if base is Registered else {})
  assert type(glora_nnx.fold(attached)) is Own


def test_no_shape_tells_which_of_two_axes_of_the_same_size_is_mapped_over():
  named = 'no shape tells over which of its stack axes (0, 2)'
  model = Loops(5, rngs=nnx.Rngs(0))
  assert_refused(named, glora_nnx.attach, model, np.ones((5, 2, 5)), heads=None)


def test_a_linen_model_inside_keeps_its_state_and_its_head():
  model = EXAMPLES['linen_inside']().make()
  attached = glora_nnx.attach(model, X, space=SPACE)
  before = attached.inner.norm['mean'][...]
  call(model, X)
  call(attached, X)
  mean = attached.inner.norm['mean'][...]
  assert_allclose(mean, model.inner.norm['mean'][...])
  assert np.abs(mean - before).max() > 1e-3
  with pytest.raises(TypeError, match='unexpected keyword'):  # a failed call leaves it as it was
    attached.inner(X, mutable=['batch_stats'], wrong=1)
  assert isinstance(vars(attached.inner)['head']['kernel'], Head)
  assert isinstance(attached.inner, nnx.bridge.ToNNX)
  folded = glora_nnx.fold(attached)
  assert type(folded.inner) is nnx.bridge.ToNNX
  assert type(folded.inner.head['kernel']) is nnx.Param
  assert_allclose(folded.inner.norm['mean'][...], mean)


def test_layers_that_are_mapped_over_one_input_need_their_axis_named(caplog):
  caplog.set_level('INFO')
  assert_refused(['OnOneInput', 'stacks='], glora_nnx.attach, OnOneInput(rngs=nnx.Rngs(0)), X)
  assert 'the genome has to be an nnx.Param; without, vmap' in caplog.text


def test_an_nnx_model_can_be_bridged_into_linen_after_folding_or_before_adapting():
  attached = fresh()
  randomize(attached)
  folded = glora_nnx.fold(attached)
  linen = nnx.bridge.ToLinen(lambda rngs: nnx.clone(folded))
  start = linen.init(jax.random.key(0), INPUTS)
  assert_allclose(linen.apply(start, INPUTS), folded(INPUTS), atol=1e-5)
  again = glora_jax.adapt(linen, INPUTS, space=glora_jax.SearchSpace())
  assert {layer.name for layer in again.spec} == {layer.name for layer in live.spec(attached)}
  start |= again.init(jax.random.key(0), start['params'])
  outputs = again.apply(start, INPUTS, genome=glora_jax.preset(again.spec, 'full'))
  assert_allclose(outputs, folded(INPUTS), atol=1e-5)
