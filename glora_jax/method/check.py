"""Checks that GLoRA works on a model: one call.

A model may use its parameters in ways that no test of this package covers. `check` runs the model
itself and measures.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.checks import validate
from glora_jax.method.adapted import Adapted, call_model, check_variables
from glora_jax.method.adapter import COLLECTION
from glora_jax.method.genomes import largest_genome
from glora_jax.method.groups import parts_read

# Largest difference between outputs that should be equal, relative to the largest output, by the
# coarsest type in which a model computes, as its printed program names it. The first that occurs
# counts. For 16 bits and fewer it is four roundings.
_TOLERANCES = {'f8_': 0.5, 'bf16[': 0.03, 'f16[': 0.004, 'f32[': 1e-5, 'f64[': 1e-12}


@dataclasses.dataclass(frozen=True)
class Check:
  """The results of `check`.

  Attributes:
    identity: how far the model with a fresh adapter is from the base model; 0 is exact.
    folding: how far the folded model is from the adapted one.
    missed: arrays of the adapter that get no gradient.
    tolerance: the largest of these distances that passes.
  """

  identity: float
  folding: float
  missed: tuple[str, ...]
  tolerance: float

  @property
  def ok(self) -> bool:
    """Whether all of it holds."""
    return not self.missed and max(self.identity, self.folding) <= self.tolerance


@jax.default_matmul_precision('highest')
def check(adapted: Adapted, variables: Mapping[str, Any], *inputs: Any, **kwargs: Any) -> Check:
  """Runs the model to check that GLoRA works on it.

  With a fresh adapter the structure must be the base model. The untouched model with folded
  parameters must return the same as `apply`. Every array of the adapter must get a gradient. The
  structure is the model's own, or the largest of its space. Outputs are compared relative to the
  largest of them, at the device's highest precision of matrix products. Zeros among the variables
  are replaced by noise, so that no term is zero.

  Args:
    adapted: the adapted model; for an attached NNX model, the one from `glora_jax.nnx.as_adapted`.
    variables: variables from `adapted.init`, with the model's other collections if it has any.
    *inputs: inputs of the model, arrays with values.
    **kwargs: further arguments of its call, `train=False` or `rngs` for instance.

  Returns:
    The distances, and the arrays without a gradient.

  Raises:
    TypeError: the model is not adapted.
    ValueError: the variables are those of another model, or the model returns no floating-point
      array.

  Example:
    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> import glora_jax
    >>> model, x = nn.Dense(3), jnp.ones((2, 4))
    >>> adapted = glora_jax.adapt(model, x)
    >>> variables = adapted.init(jax.random.key(1), model.init(jax.random.key(0), x)['params'])
    >>> found = glora_jax.check(adapted, variables, x)
    >>> found.ok, found.missed
    (True, ())
  """
  validate(adapted, Adapted, 'adapted')
  check_variables(adapted, variables)
  genome = largest_genome(adapted.spec) if adapted.genome is None else adapted.genome
  adapted = adapted.fix(genome)
  variables = jax.tree.map(_without_zeros, variables)
  fresh = {**variables, **adapted.init(jax.random.key(0), variables['params'])}

  def outputs(apply: Any, variables: Any) -> jax.Array:
    """All floating-point numbers that the model returns."""
    leaves = map(jnp.ravel, jax.tree.leaves(apply(variables, *inputs, **kwargs)))
    numbers = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    if not numbers:
      raise ValueError(
        'check compares floating-point outputs, and the model returns none; pass method= or '
        'arguments with which it does.'
      )
    return jnp.concatenate(numbers)

  def base(params: Any) -> jax.Array:
    """The outputs of the untouched model."""
    model = functools.partial(call_model, adapted)
    return outputs(model, {**variables, 'params': adapted.full_precision(params)})

  def loss(adapter: Any) -> jax.Array:
    """A sum of all outputs, each with another weight, so that gradients do not cancel."""
    applied = outputs(adapted.apply, {**variables, COLLECTION: adapter})
    return jnp.cos(jnp.arange(len(applied))) @ applied

  started, applied = outputs(adapted.apply, fresh), outputs(adapted.apply, variables)
  gradients = jax.device_get(jax.grad(loss)(variables[COLLECTION]))
  read = parts_read(adapted.places.groups, adapted.spec, genome, gradients)
  program = str(jax.make_jaxpr(lambda: base(variables['params']))())
  return Check(
    identity=_relative_error(started, base(variables['params'])),
    folding=_relative_error(base(adapted.fold(variables)), applied),
    missed=tuple(
      f'{layer} {name}' for layer, name, array, part in read if not np.nan_to_num(array[part]).any()
    ),
    tolerance=next(value for name, value in _TOLERANCES.items() if name in program),
  )


def _relative_error(actual: jax.Array, expected: jax.Array) -> float:
  """The largest difference, relative to the largest expected number."""
  return float(jnp.abs(actual - expected).max() / jnp.abs(expected).max())


def _without_zeros(leaf: Any) -> Any:
  """An array with its floating-point zeros replaced by noise."""
  if not jnp.issubdtype(getattr(leaf, 'dtype', int), jnp.floating):
    return leaf
  noise = np.random.default_rng(0).normal(0, 0.05, leaf.shape)
  return jnp.where(leaf == 0, noise.astype(leaf.dtype), leaf)
