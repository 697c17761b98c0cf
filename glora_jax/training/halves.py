"""A function in two halves: what does not depend on what is trained, and the rest.

The first half of a frozen body under a trained head gives the same for an image in every epoch, so
once is enough. Where to cut is read off the traced function (its jaxpr): that works for any model,
and what a model does behind its head is in the second half, too.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

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
  cut = _cut(function, trained, frozen, batch)
  if not _has_rows(cut, batch) or not _keeps_rows(function, trained, frozen, batch, cut):
    return None
  jaxpr = cut.closed.jaxpr
  num_trained, num_frozen = (len(jax.tree.leaves(tree)) for tree in (trained, frozen))
  frozen_vars = jaxpr.invars[num_trained : num_trained + num_frozen]
  batch_vars = jaxpr.invars[num_trained + num_frozen :]
  early = [equation for equation in jaxpr.eqns if cut.after.isdisjoint(equation.outvars)]
  # What depends on frozen arrays alone stands in both; a compiler drops what is not read.
  late = [equation for equation in jaxpr.eqns if cut.of_batch.isdisjoint(equation.outvars)]
  return Halves(
    jaxpr.replace(invars=[*frozen_vars, *batch_vars], outvars=cut.across, eqns=early),
    jaxpr.replace(invars=[*jaxpr.invars[: num_trained + num_frozen], *cut.across], eqns=late),
    cut.closed.consts,
    cut.outputs,
  )


class _Cut(NamedTuple):
  """A traced function, and what of it is on which side.

  Attributes:
    closed: the jaxpr, of trained arrays, frozen arrays and a batch.
    outputs: structure of what the function returns.
    after: variables that depend on trained arrays.
    of_batch: other variables that depend on the batch.
    across: those of them that are read behind the cut.
  """

  closed: ClosedJaxpr
  outputs: Any
  after: set[Var]
  of_batch: set[Var]
  across: list[Var]


def _cut(function: Callable[[Any, Any, Any], Any], trained: Any, frozen: Any, batch: Any) -> _Cut:
  """A function, traced and cut; see `halve` for the arguments."""
  arguments = trained, frozen, batch
  closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
  num_trained, num_frozen = (len(jax.tree.leaves(tree)) for tree in (trained, frozen))
  after = _dependents(closed.jaxpr, closed.jaxpr.invars[:num_trained])
  if any(_is_call(equation) for equation in _writers(closed.jaxpr, after)):
    closed = jax.make_jaxpr(functools.partial(_flat, closed))(*jax.tree.leaves(arguments))
    after = _dependents(closed.jaxpr, closed.jaxpr.invars[:num_trained])
  jaxpr = closed.jaxpr
  of_batch = _dependents(jaxpr, jaxpr.invars[num_trained + num_frozen :]) - after
  inputs = (_variables(equation.invars) for equation in _writers(jaxpr, after))
  read = set(_variables(jaxpr.outvars)).union(*inputs)
  return _Cut(closed, jax.tree.structure(shapes), after, of_batch, list(of_batch & read))


def _has_rows(cut: _Cut, batch: Any) -> bool:
  """Whether one array is read behind the cut, with as many rows as there are examples."""
  num_examples = np.shape(jax.tree.leaves(batch)[0])[0]
  return [_shape(variable)[:1] for variable in cut.across] == [(num_examples,)]


def _keeps_rows(
  function: Callable[[Any, Any, Any], Any], trained: Any, frozen: Any, batch: Any, cut: _Cut
) -> bool:
  """Whether twice the examples give twice the rows of the same shape.

  The first axis may be another that is as long as the batch, that of a sequence for instance.
  """

  def twice_as_long(leaf: Any) -> jax.ShapeDtypeStruct:
    number, *rest = np.shape(leaf)
    return jax.ShapeDtypeStruct((2 * number, *rest), leaf.dtype)

  twice = jax.tree.map(twice_as_long, batch)
  try:
    cut_of_twice = _cut(function, trained, frozen, twice)
  except Exception:  # whatever a model says to a batch that it was not made for
    return False
  rows = [_shape(variable)[1:] for variable in cut.across]
  return _has_rows(cut_of_twice, twice) and rows == [_shape(v)[1:] for v in cut_of_twice.across]


def _flat(closed: ClosedJaxpr, *arguments: Any) -> list[Any]:
  """What a jaxpr gives, without a call of another jaxpr, so that these can be cut as well."""
  jaxpr = closed.jaxpr
  values: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
  values |= zip(jaxpr.invars, arguments, strict=True)

  def read(atoms: Iterable[Any]) -> list[Any]:
    return [atom.val if isinstance(atom, Literal) else values[atom] for atom in atoms]

  for equation in jaxpr.eqns:
    if _is_call(equation):
      results = _flat(equation.params['jaxpr'], *read(equation.invars))
    else:
      inputs = list(dict.fromkeys(_variables(equation.invars)))
      alone = jaxpr.replace(constvars=[], invars=inputs, outvars=equation.outvars, eqns=[equation])
      results = jax.core.eval_jaxpr(alone, [], *read(inputs))
    values |= zip(equation.outvars, results, strict=True)
  return read(jaxpr.outvars)


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
