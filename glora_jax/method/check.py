"""Checks that GLoRA works on a model: one call, one table.

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

from glora_jax.checks import listed, validate
from glora_jax.method.adapted import Adapted, call_model, check_variables
from glora_jax.method.adapter import COLLECTION
from glora_jax.method.draws import random_genomes
from glora_jax.method.genomes import largest_genome
from glora_jax.method.groups import parts_read

# Largest difference between outputs that should be equal, relative to the largest output, by the
# coarsest type in which a model computes, as its printed program names it. The first that occurs
# counts. For 16 bits and fewer it is four roundings.
_TOLERANCES = {'f8_': 0.5, 'bf16[': 0.03, 'f16[': 0.004, 'f32[': 1e-5, 'f64[': 1e-12}


@dataclasses.dataclass(frozen=True)
class CheckRow:
  """One check.

  Attributes:
    name: the property that must hold.
    measured: how far it is from holding; 0 is exact.
    tolerance: the largest `measured` that passes.
    note: the measured value, and the arrays that fail.
  """

  name: str
  measured: float
  tolerance: float
  note: str

  @property
  def ok(self) -> bool:
    """Whether it holds."""
    return self.measured <= self.tolerance

  def __str__(self) -> str:
    ok = 'yes' if self.ok else 'NO'
    return f'{self.name:25}{self.measured:10.2g}{self.tolerance:11.2g}  {ok:5}{self.note}'


@dataclasses.dataclass(frozen=True)
class Check:
  """The results of `check`; they print as a table.

  Attributes:
    rows: one for each check.

  Example:
    >>> from glora_jax.method.check import Check
    >>> from glora_jax.method.check import CheckRow
    >>> found = Check((CheckRow('identity at start', 2e-3, 1e-5, 'fresh adapter'),))
    >>> print(found)
    check                      measured  tolerance  ok
    identity at start             0.002      1e-05  NO   fresh adapter
    >>> found.ok
    False
  """

  rows: tuple[CheckRow, ...]

  @property
  def ok(self) -> bool:
    """Whether all of it holds."""
    return all(row.ok for row in self.rows)

  def __str__(self) -> str:
    return '\n'.join(['check                      measured  tolerance  ok', *map(str, self.rows)])


@jax.default_matmul_precision('highest')
def check(adapted: Adapted, variables: Mapping[str, Any], *inputs: Any, **kwargs: Any) -> Check:
  """Runs the model to check that GLoRA works on it.

  With a fresh adapter every structure must be the base model. The untouched model with folded
  parameters must return the same as `apply`. Every array of the adapter must get a gradient. The
  structures are the largest, eight random ones and, fixed, one of these. A model with a fixed
  structure is checked with this one. Outputs are compared relative to the largest of them, at the
  device's highest precision of matrix products. Zeros among the variables are replaced by noise, so
  that no term is zero.

  Args:
    adapted: the adapted model; for an attached NNX model, the one from `glora_jax.nnx.as_adapted`.
    variables: variables from `adapted.init`, with the model's other collections if it has any.
    *inputs: inputs of the model, arrays with values.
    **kwargs: further arguments of its call, `train=False` or `rngs` for instance.

  Returns:
    A table with a row for each check.

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
    >>> [row.name for row in found.rows if not row.ok], found.ok
    ([], True)
  """
  validate(adapted, Adapted, 'adapted')
  check_variables(adapted, variables)
  variables = jax.tree.map(_without_zeros, variables)
  fresh = {**variables, **adapted.init(jax.random.key(0), variables['params'])}
  is_free = adapted.genome is None
  largest = largest_genome(adapted.spec) if adapted.genome is None else adapted.genome
  drawn = random_genomes(np.random.default_rng(0), adapted.spec, 8)

  def outputs(apply: Any, variables: Any, **genome: Any) -> jax.Array:
    """All floating-point numbers that the model returns."""
    leaves = map(jnp.ravel, jax.tree.leaves(apply(variables, *inputs, **genome, **kwargs)))
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

  def errors(model: Adapted, **genome: Any) -> jax.Array:
    """Errors of one structure: identity at start, fold against apply."""
    started = outputs(model.apply, fresh, **genome)
    applied = outputs(model.apply, variables, **genome)
    folded = base(model.fold(variables, **genome))
    identity = _relative_error(started, base(variables['params']))
    return jnp.stack([identity, _relative_error(folded, applied)])

  choice = {'genome': largest} if is_free else {}

  def loss(adapter: Any) -> jax.Array:
    """A sum of all outputs, each with another weight, so that gradients do not cancel."""
    applied = outputs(adapted.apply, {**variables, COLLECTION: adapter}, **choice)
    return jnp.cos(jnp.arange(len(applied))) @ applied

  found = errors(adapted.fix(drawn[0]) if is_free else adapted)
  if is_free:
    genomes = np.stack([largest, *drawn])
    of_free = jax.lax.map(lambda genome: errors(adapted, genome=genome), genomes)
    found = np.maximum(found, of_free.max(0))
  identity, folding = found.tolist()
  gradients = jax.device_get(jax.grad(loss)(variables[COLLECTION]))
  missed = [
    f'{layer} {name}'
    for layer, name, array, part in parts_read(
      adapted.places.groups, adapted.spec, largest, gradients
    )
    if not np.nan_to_num(array[part]).any()
  ]
  program = str(jax.make_jaxpr(lambda: base(variables['params']))())
  tolerance = next(value for name, value in _TOLERANCES.items() if name in program)
  reach = f'arrays without a gradient: {listed(missed) or "none"}'
  return Check(
    (
      CheckRow('identity at start', identity, tolerance, 'max|dy| / max|y|: fresh adapter'),
      CheckRow('fold against apply', folding, tolerance, 'max|dy| / max|y|: untouched model'),
      CheckRow('gradients reach adapter', len(missed), 0, reach),
    )
  )


def _relative_error(actual: jax.Array, expected: jax.Array) -> jax.Array:
  """The largest difference, relative to the largest expected number."""
  return jnp.abs(actual - expected).max() / jnp.abs(expected).max()


def _without_zeros(leaf: Any) -> Any:
  """An array with its floating-point zeros replaced by noise."""
  if not jnp.issubdtype(getattr(leaf, 'dtype', int), jnp.floating):
    return leaf
  noise = np.random.default_rng(0).normal(0, 0.05, leaf.shape)
  return jnp.where(leaf == 0, noise.astype(leaf.dtype), leaf)
