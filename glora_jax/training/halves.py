"""A function in two halves: what does not depend on what is trained, and the rest.

The first half of a frozen body under a trained head gives the same for an image in every epoch, so
once is enough. Where to cut is read off the traced function (its jaxpr): that works for any model,
and what a model does behind its head is in the second half, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

_CALLS = ('jit', 'pjit')  # primitives that do no more than call a jaxpr


@dataclasses.dataclass(frozen=True, eq=False)
class Halves:
  """A function of trained arrays, frozen arrays and a batch, in two halves; see `halve`.

  Attributes:
    first: jaxpr of the first half, of frozen arrays and a batch.
    second: jaxpr of the second half, of trained arrays, frozen arrays and features.
    consts: what both jaxprs hold besides.
    outputs: structure of what the function returns.
  """

  first: Jaxpr
  second: Jaxpr
  consts: Sequence[Any]
  outputs: Any

  def body(self, frozen: Any, batch: Any) -> jax.Array:
    """The features of a batch, [batch, ...]: what the second half reads of the first."""
    leaves = jax.tree.leaves((frozen, batch))
    (features,) = jax.core.eval_jaxpr(self.first, self.consts, *leaves)
    return features

  def head(self, trained: Any, frozen: Any, features: jax.Array) -> Any:
    """What the function returns, by the features of its batch."""
    leaves = jax.tree.leaves((trained, frozen, features))
    return jax.tree.unflatten(self.outputs, jax.core.eval_jaxpr(self.second, self.consts, *leaves))


def halve(
  function: Callable[[Any, Any, Any], Any], trained: Any, frozen: Any, batch: Any
) -> Halves | None:
  """Cuts a function in two where what is trained comes in.

  Args:
    function: `(trained, frozen, batch) -> outputs`, trees of arrays.
    trained: tree of arrays or shapes.
    frozen: likewise.
    batch: likewise; the arrays' first axis is that of the examples.

  Returns:
    The halves, for batches of this very size: `function(trained, frozen, batch)` is
    `head(trained, frozen, body(frozen, batch))`. None where the second half reads anything of the
    batch but one array with a row for every example.

  Example:
    >>> import jax.numpy as jnp
    >>> def model(head, body, images):
    ...   return jnp.tanh(images @ body) @ head
    >>> head, body, images = jnp.ones((3, 2)), jnp.ones((8, 3)), jnp.ones((4, 8))
    >>> halves = halve(model, head, body, images)
    >>> features = halves.body(body, images)
    >>> features.shape, halves.head(head, body, features).shape
    ((4, 3), (4, 2))
  """
  arguments = trained, frozen, batch
  closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
  num_trained, num_frozen = (len(jax.tree.leaves(tree)) for tree in (trained, frozen))
  after = _dependents(closed.jaxpr, closed.jaxpr.invars[:num_trained])
  if any(_is_call(equation) for equation in _writers(closed.jaxpr, after)):
    closed = jax.make_jaxpr(_Flat(closed))(*jax.tree.leaves(arguments))
    after = _dependents(closed.jaxpr, closed.jaxpr.invars[:num_trained])
  jaxpr = closed.jaxpr
  frozen_vars = jaxpr.invars[num_trained : num_trained + num_frozen]
  batch_vars = jaxpr.invars[num_trained + num_frozen :]
  of_batch = _dependents(jaxpr, batch_vars) - after
  inputs = (_variables(equation.invars) for equation in _writers(jaxpr, after))
  read = set(_variables(jaxpr.outvars)).union(*inputs)
  across = list(of_batch & read)
  num_examples = np.shape(jax.tree.leaves(batch)[0])[0]
  if [_shape(variable)[:1] for variable in across] != [(num_examples,)]:
    return None
  early = [equation for equation in jaxpr.eqns if after.isdisjoint(equation.outvars)]
  # What depends on frozen arrays alone stands in both; a compiler drops what is not read.
  late = [equation for equation in jaxpr.eqns if of_batch.isdisjoint(equation.outvars)]
  return Halves(
    jaxpr.replace(invars=[*frozen_vars, *batch_vars], outvars=across, eqns=early),
    jaxpr.replace(invars=[*jaxpr.invars[: num_trained + num_frozen], *across], eqns=late),
    closed.consts,
    jax.tree.structure(shapes),
  )


@dataclasses.dataclass(frozen=True, eq=False)
class _Flat:
  """A jaxpr as a function that calls no other jaxpr, so that these can be cut as well."""

  closed: ClosedJaxpr

  def __call__(self, *arguments: Any) -> list[Any]:
    jaxpr = self.closed.jaxpr
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, self.closed.consts, strict=True))
    values |= zip(jaxpr.invars, arguments, strict=True)
    for equation in jaxpr.eqns:
      values |= zip(equation.outvars, self._results(equation, values), strict=True)
    return [atom.val if isinstance(atom, Literal) else values[atom] for atom in jaxpr.outvars]

  def _results(self, equation: JaxprEqn, values: dict[Any, Any]) -> list[Any]:
    if _is_call(equation):
      called = equation.params['jaxpr']
      atoms = equation.invars
      return _Flat(called)(*(a.val if isinstance(a, Literal) else values[a] for a in atoms))
    inputs = list(dict.fromkeys(_variables(equation.invars)))
    alone = self.closed.jaxpr.replace(
      constvars=[], invars=inputs, outvars=equation.outvars, eqns=[equation]
    )
    return jax.core.eval_jaxpr(alone, [], *(values[variable] for variable in inputs))


def _is_call(equation: JaxprEqn) -> bool:
  return equation.primitive.name in _CALLS


def _variables(atoms: Iterable[Any]) -> Iterator[Var]:
  return (atom for atom in atoms if not isinstance(atom, Literal))


def _shape(variable: Var) -> tuple[int, ...]:
  return getattr(variable.aval, 'shape', ())


def _writers(jaxpr: Jaxpr, variables: set[Var]) -> list[JaxprEqn]:
  """The equations that give some of these variables."""
  return [equation for equation in jaxpr.eqns if not variables.isdisjoint(equation.outvars)]


def _dependents(jaxpr: Jaxpr, sources: Iterable[Var]) -> set[Var]:
  """All variables that depend on some."""
  found = set(sources)
  for equation in jaxpr.eqns:
    if not found.isdisjoint(_variables(equation.invars)):
      found.update(equation.outvars)
  return found
