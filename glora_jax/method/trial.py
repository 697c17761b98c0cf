"""An adapted model run for a check: variables in which no term is zero, and compiled functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from glora_jax.method.adapted import Adapted, name_of
from glora_jax.method.genomes import largest_genome
from glora_jax.method.sample import split_arrays
from glora_jax.method.space import TENSORS, Spec
from glora_jax.method.subnet import Call
from glora_jax.method.supports import COLLECTION
from glora_jax.tree import union

_NOISE = 0.05  # standard deviation
_RATE = 0.1  # learning rate of the one step; large enough to move a bfloat16
# Largest difference of equal outputs, relative to the largest output; of coarser types four
# roundings.
_TOLERANCES = {np.dtype(np.float64): 1e-12, np.dtype(np.float32): 1e-5}
_ROUNDINGS = 4


class Trial:
  """An adapted model with variables and inputs.

  All outputs are vectors of the floating-point numbers that the model returns.

  Attributes:
    adapted: the adapted model.
    start: the variables with fresh supports.
    variables: the variables with noise on supports and heads, and on parameters that are zero.
    genomes: the largest, and so many that every allele on offer occurs in every layer; int8
      [genome, rows, 5].
    thin: the largest genome whose A is as small as can be, so that no merged kernel is needed.
    tolerance: how far equal outputs may differ, relative to the largest of them.
    fold: compiled `adapted.fold`.
  """

  def __init__(self, adapted: Adapted, variables: Mapping[str, Any], call: Call):
    self.adapted = adapted
    self.start = {**variables, **adapted.init(jax.random.key(0), variables['params'])}
    self.variables = jax.jit(self._prepare)(variables, _noise(variables))
    self.genomes = check_genomes(adapted.spec)
    self.thin = self.genomes[0].copy()
    self.thin[:, 0] = adapted.spec.offered_table[:, 0, 0]
    self.fold = jax.jit(adapted.fold)
    self._base = _jit_over_arrays(self._run_base, call)
    self._apply = _jit_over_arrays(self._run_adapted, call)
    self._fixed = _jit_over_arrays(self._run_fixed, call)
    self._step = _jit_over_arrays(self._run_step, call)
    self.tolerance = _tolerance(jax.make_jaxpr(self._base)(self.variables).jaxpr)

  def base(self, variables: Mapping[str, Any]) -> jax.Array:
    """What the untouched model returns."""
    return self._base(variables)

  def apply(self, variables: Mapping[str, Any], genome: np.ndarray) -> jax.Array:
    """What `adapted.apply` returns."""
    return self._apply(variables, genome)

  def fixed(self) -> jax.Array:
    """What the fixed subnet of `thin` returns."""
    return self._fixed(self.variables)

  def step(self, genome: np.ndarray) -> tuple[Any, Any]:
    """Gradients of some sum of the outputs, and the variables after a step along them."""
    trainable, frozen = self.adapted.split(self.variables)
    gradients, stepped = self._step(trainable, frozen, genome)
    return gradients, self.adapted.join(stepped, frozen)

  def _prepare(self, variables: Mapping[str, Any], noise: jax.Array) -> dict[str, Any]:
    trainable, frozen = self.adapted.split(variables)
    frozen = {**frozen, 'params': _with_noise(frozen['params'], noise, everywhere=False)}
    return self.adapted.join(_with_noise(trainable, noise), frozen)

  def _run_base(self, call: Call, variables: Mapping[str, Any]) -> jax.Array:
    plain = {name: value for name, value in variables.items() if name != COLLECTION}
    plain['params'] = self.adapted.full_precision(plain['params'])
    return _vector(self.adapted.model.apply(plain, *call.args, **call.kwargs), call)

  def _run_adapted(self, call: Call, variables: Mapping[str, Any], genome: Any) -> jax.Array:
    outputs = self.adapted.apply(variables, *call.args, genome=genome, **call.kwargs)
    return _vector(outputs, call)

  def _run_fixed(self, call: Call, variables: Mapping[str, Any]) -> jax.Array:
    subnet = self.adapted.fix(self.thin)
    return _vector(subnet.apply(variables, *call.args, **call.kwargs), call)

  def _run_step(self, call: Call, trainable: Any, frozen: Any, genome: Any) -> tuple[Any, Any]:
    def loss(trainable):
      outputs = self._run_adapted(call, self.adapted.join(trainable, frozen), genome)
      return jnp.vdot(jnp.cos(jnp.arange(len(outputs), dtype=outputs.dtype)), outputs)

    gradients = jax.grad(loss)(trainable)
    optimizer = optax.adamw(_RATE, weight_decay=0.5)  # which moves what has no gradient, too
    updates, _ = optimizer.update(gradients, optimizer.init(trainable), trainable)
    return gradients, optax.apply_updates(trainable, updates)


class _Closed:
  """A model that holds what is no array among its parameters, with the `apply` of a linen model."""

  def __init__(self, model: Any, others: Any):
    self._model = model
    self._others = others
    self.__name__ = name_of(model)

  def apply(self, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    """What the model returns with the variables' arrays."""
    params = union(self._others, variables['params'])
    return self._model.apply({**variables, 'params': params}, *args, **kwargs)


def close_over_others(
  adapted: Adapted, variables: Mapping[str, Any]
) -> tuple[Adapted, Mapping[str, Any]]:
  """An adapted model and its variables with arrays alone, as compiled functions take them."""
  arrays, others = split_arrays(variables['params'])
  if others is None:
    return adapted, variables
  closed = dataclasses.replace(adapted, model=_Closed(adapted.model, others))
  return closed, {**variables, 'params': arrays}


def check_genomes(spec: Spec) -> np.ndarray:
  """The largest genome, and so many that every allele on offer occurs in every layer.

  Neighbouring genes are out of step, so that the forms of a layer's tensors and of neighbouring
  layers are mixed.

  Args:
    spec: the layers.

  Returns:
    int8 [genome, rows, 5].
  """
  counts = spec.num_offered
  offsets = np.add.outer(np.arange(len(spec)), np.arange(len(TENSORS)))
  places = (np.arange(counts.max())[:, None, None] + offsets) % counts
  mixed = np.take_along_axis(spec.offered_table[None], places[..., None], axis=-1)[..., 0]
  return np.concatenate([largest_genome(spec)[None], mixed]).astype(np.int8)


def _jit_over_arrays(function: Callable[..., Any], call: Call) -> Callable[..., Any]:
  """A compiled function of what follows a call, whose arrays are arguments and no constants."""
  leaves, structure = jax.tree.flatten(call)
  arrays = [leaf if hasattr(leaf, 'dtype') else None for leaf in leaves]

  def run(arrays, *others):
    pairs = zip(arrays, leaves, strict=True)
    filled = [leaf if array is None else array for array, leaf in pairs]
    return function(structure.unflatten(filled), *others)

  return jax.tree_util.Partial(jax.jit(run), arrays)


def _vector(outputs: Any, call: Call) -> jax.Array:
  """All floating-point numbers of a model's outputs, without the collections that it updates."""
  if call.kwargs.get('mutable', False) is not False:
    outputs = outputs[0]
  leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(outputs)]
  numbers = [jnp.ravel(leaf) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
  if not numbers:
    raise ValueError(
      'check compares outputs, and the model returns no floating-point array; pass method= or '
      'arguments with which it does.'
    )
  widest = jnp.result_type(jnp.float32, *numbers)
  return jnp.concatenate([leaf.astype(widest) for leaf in numbers])


def _tolerance(jaxpr: Any) -> float:
  """How far equal outputs of a program may differ, by the coarsest type that it computes in."""
  coarsest = max(_floats(jaxpr), key=_rounding)
  return _TOLERANCES.get(coarsest, _ROUNDINGS * _rounding(coarsest))


def _rounding(dtype: np.dtype) -> float:
  return float(jnp.finfo(dtype).eps)


def _floats(jaxpr: Any) -> set[np.dtype]:
  """The floating-point types that occur in a program."""
  variables = [variable for equation in jaxpr.eqns for variable in equation.outvars]
  dtypes = {getattr(variable.aval, 'dtype', None) for variable in (*variables, *jaxpr.invars)}
  found = {dtype for dtype in dtypes if dtype is not None and jnp.issubdtype(dtype, jnp.floating)}
  return found.union(*map(_floats, _inner(jaxpr)))


def _inner(jaxpr: Any) -> list[Any]:
  """The programs in a program's equations: bodies of loops, branches, compiled functions."""
  parameters = jax.tree.leaves(
    [equation.params for equation in jaxpr.eqns], is_leaf=lambda value: hasattr(value, 'eqns')
  )
  return [getattr(value, 'jaxpr', value) for value in parameters if hasattr(value, 'eqns')]


def _noise(tree: Any) -> np.ndarray:
  """As many random numbers as `_with_noise` needs for a tree."""
  sizes = [np.size(leaf) for leaf in jax.tree.leaves(tree)]
  numbers = np.random.default_rng(0).standard_normal(max(sizes) + len(sizes), np.float32)
  return _NOISE * numbers


def _with_noise(tree: Any, noise: jax.Array, everywhere: bool = True) -> Any:
  """A tree of arrays with noise on them, or only on those that are zero throughout.

  Each array takes its part of the same numbers: programs of many draws compile slowly.
  """
  leaves, structure = jax.tree.flatten(tree)
  return structure.unflatten(
    [
      _add_noise(leaf, noise[start : start + leaf.size], everywhere)
      for start, leaf in enumerate(leaves)
    ]
  )


def _add_noise(value: jax.Array, noise: jax.Array, everywhere: bool) -> jax.Array:
  if not jnp.issubdtype(value.dtype, jnp.floating):
    return value
  noise = noise.reshape(value.shape).astype(value.dtype)
  return value + (noise if everywhere else jnp.where((value == 0).all(), noise, 0))
