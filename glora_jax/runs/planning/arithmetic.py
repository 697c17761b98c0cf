"""How much a traced program computes: multiplications and additions, counted in its jaxpr.

A scan counts as often as it goes round, which a compiler's own analysis leaves out. A loop whose
length is found while it runs counts once, a choice as its dearest branch; what only moves data is
free.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

_MOVES = frozenset(
  """
  broadcast_in_dim concatenate convert_element_type copy copy_p dynamic_slice dynamic_update_slice
  expand_dims gather iota pad pvary reduce_precision reshape rev select_n sharding_constraint slice
  split squeeze stop_gradient transpose
  """.split()  # noqa: SIM905, more readable than a list
)


class Operations(NamedTuple):
  """Floating-point operations of a program.

  Attributes:
    products: those of matrix products and convolutions.
    others: all others, one for each number that they make or, where they reduce, take.
  """

  products: int = 0
  others: int = 0

  @property
  def total(self) -> int:
    """All of them."""
    return self.products + self.others

  def plus(self, more: Operations, times: int = 1) -> Operations:
    """These, and others so many times."""
    return Operations(self.products + times * more.products, self.others + times * more.others)


def count(jaxpr: Jaxpr | ClosedJaxpr) -> Operations:
  """The operations of a jaxpr, all that it calls included.

  Example:
    >>> import jax
    >>> def power(x):
    ...   return jax.lax.fori_loop(0, 10, lambda _, y: x @ y, x)
    >>> count(jax.make_jaxpr(power)(jnp.ones((4, 4)))).products
    1280
  """
  total = Operations()
  for equation in (jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr).eqns:
    inner = [count(called) for called in called_by(equation)]
    if equation.primitive.name == 'cond':
      total = total.plus(max(inner, key=lambda operations: operations.total))
      continue
    times = equation.params['length'] if equation.primitive.name == 'scan' else 1
    for operations in inner:
      total = total.plus(operations, times)
    if not inner:
      total = total.plus(_alone(equation))
  return total


def equations(jaxpr: Jaxpr | ClosedJaxpr) -> int:
  """The equations that call nothing, a loop's once: compiling takes time by their number."""
  return sum(sum(map(equations, called_by(equation))) or 1 for equation in jaxpr.eqns)


def called_by(equation: JaxprEqn) -> Iterator[Jaxpr]:
  """The jaxprs that an equation calls, but for those of derivatives that are not asked for."""
  for name, value in equation.params.items():
    if name in ('fwd_jaxpr_thunk', 'bwd', 'jvp_jaxpr_fun'):
      continue
    for item in value if isinstance(value, tuple | list) else (value,):
      if isinstance(item, ClosedJaxpr):
        yield item.jaxpr
      elif isinstance(item, Jaxpr):
        yield item


def _alone(equation: JaxprEqn) -> Operations:
  """The operations of an equation that calls nothing."""
  result, name = equation.outvars[0].aval, equation.primitive.name
  if name == 'dot_general':
    (contracted, _), _ = equation.params['dimension_numbers']
    shape = _shape(equation.invars[0].aval)
    return Operations(products=2 * _size(result) * math.prod(shape[axis] for axis in contracted))
  if name == 'conv_general_dilated':
    kernel = equation.invars[1].aval
    outputs = _shape(kernel)[equation.params['dimension_numbers'].rhs_spec[0]]
    return Operations(products=2 * _size(result) * (_size(kernel) // outputs))
  if name in _MOVES or not _is_float(result):
    return Operations()
  sizes = [_size(value.aval) for value in (*equation.outvars, *equation.invars)]
  return Operations(others=max(sizes) if name.startswith('reduce') else _size(result))


def _shape(aval: Any) -> tuple[int, ...]:
  return getattr(aval, 'shape', ())


def _size(aval: Any) -> int:
  return math.prod(_shape(aval))


def _is_float(aval: Any) -> bool:
  return jnp.issubdtype(getattr(aval, 'dtype', jnp.int32), jnp.inexact)
