"""The types of an attached model's variables, by which NNX filters the trained ones."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from flax import nnx

from glora_jax.method.quantized import dequantize


class Trained(nnx.LoRAParam):
  """Trained variables of an attached model: its adapter and its heads.

  Example:
    >>> import glora_jax, jax.numpy as jnp, optax
    >>> from flax import nnx
    >>> class Mlp(nnx.Module):
    ...   def __init__(self, rngs):
    ...     self.hidden = nnx.Linear(4, 8, rngs=rngs)
    ...     self.head = nnx.Linear(8, 3, rngs=rngs)
    ...   def __call__(self, x):
    ...     return self.head(nnx.relu(self.hidden(x)))
    >>> model = glora_jax.nnx.attach(Mlp(nnx.Rngs(0)), jnp.ones((1, 4)))
    >>> optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=glora_jax.nnx.Trained)
    >>> def loss(model, x):
    ...   return model(x).sum()
    >>> trained = nnx.DiffState(0, glora_jax.nnx.Trained)
    >>> gradients = nnx.grad(loss, argnums=trained)(model, jnp.ones((2, 4)))
    >>> optimizer.update(model, gradients)  # doctest: +ELLIPSIS
    State(...
    >>> sorted(nnx.state(model, glora_jax.nnx.Head)['head'])
    ['bias', 'kernel']
  """


class AdapterParam(Trained):
  """An array of an adapter; its stack axes have the same positions as those of its kernel.

  Example:
    >>> import glora_jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> model = glora_jax.nnx.attach(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), jnp.ones((1, 4)))
    >>> sorted(nnx.state(model, glora_jax.nnx.AdapterParam)['glora_kernel'])
    ['B_down', 'B_up']
  """


class Head(Trained):
  """A parameter that is trained in full.

  Example:
    >>> import glora_jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> model = nnx.Sequential(
    ...   nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 3, rngs=nnx.Rngs(1))
    ... )
    >>> model = glora_jax.nnx.attach(model, jnp.ones((1, 4)), heads='layers/1')
    >>> type(model.layers[1].kernel).__name__
    'Head'
  """


class Genome(nnx.Variable):
  """The forms of a layer, int8 [stack..., 5], of A, B, C, D and E; never trained.

  `glora_jax.nnx.set_genome` sets those of a model.

  Example:
    >>> import glora_jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> model = glora_jax.nnx.attach(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), jnp.ones((1, 4)))
    >>> nnx.state(model, glora_jax.nnx.Genome)['glora_kernel']['genome'].get_value().tolist()
    [0, 3, 0, 0, 0]
  """


class ParamGenome(Genome, nnx.Param):
  """The same for models whose transforms map over `nnx.Param` alone."""


def as_head(variable: nnx.Variable) -> nnx.Variable:
  """A parameter as a head, with its metadata."""
  return _of_type(_head_type(variable.var_type), variable)


def as_param(variable: nnx.Variable) -> nnx.Variable:
  """A head as a parameter of its original type."""
  kind = variable.var_type
  return _of_type(nnx.Param if kind is Head else kind.__bases__[1], variable)


def _of_type(kind: type[nnx.Variable], variable: nnx.Variable) -> nnx.Variable:
  return kind.from_metadata(dequantize(variable.get_raw_value()), variable.get_metadata())


@functools.cache
def _head_type(original: type[nnx.Variable]) -> Any:
  """The type of heads that were parameters of a type; they stay instances of it."""
  if original is nnx.Param:
    return Head
  return type(Head)('Head', (Head, original), {'__reduce_ex__': reduce_with(_head_type, original)})


def reduce_with(make: Callable[..., type], *arguments: Any) -> Callable[[Any, int], tuple]:
  """A `__reduce_ex__` for a class that `make(*arguments)` returns; pickle knows others by name."""

  def reduce(value: Any, protocol: int) -> tuple:
    _, _, *state = object.__reduce_ex__(value, max(protocol, 2))
    return (_new, (make, *arguments), *state)

  return reduce


def _new(make: Callable[..., type], *arguments: Any) -> Any:
  return object.__new__(make(*arguments))


@functools.cache
def _read_only_type(original: type[nnx.Variable]) -> Any:
  """A type of variables that cannot be written to."""
  members = {'set_value': _refuse_value, 'set_raw_value': _refuse_value}
  return type(original)(original.__name__, (original,), members)


def read_only(base: nnx.Variable, value: Any) -> nnx.Variable:
  """A variable like a base's with a merged value, which nobody keeps: writing to it raises."""
  return _read_only_type(base.var_type).from_metadata(value, base.get_metadata())


def _refuse_value(variable: nnx.Variable, value: Any, **kwargs: Any) -> None:
  del value, kwargs
  raise ValueError(
    f'This {type(variable).__name__} of shape {variable.shape} is the merged value of an adapted '
    'parameter, and anything written there would be lost; write to the model before '
    'glora_jax.nnx.attach or after glora_jax.nnx.fold.'
  )
