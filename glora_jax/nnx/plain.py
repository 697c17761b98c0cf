"""The plain model of an attached one: with its supports folded in, or without them."""

from __future__ import annotations

from typing import TypeVar

from flax import nnx

from glora_jax.nnx.owners import UNCOVERED, is_owner, make_plain, merged, parts_of
from glora_jax.nnx.places import locations, modules, put, variable_at
from glora_jax.nnx.variables import Head, without_role

Model = TypeVar('Model', bound=nnx.Module)


def fold(model: Model) -> Model:
  """The plain model of the original class, with the supports of its genome folded in.

  Args:
    model: an attached model, or a module of one; it is not changed.

  Returns:
    A model of the class that was attached, same code, same size. Heads are of the type that they
    had, and all other state is as it stands: batch statistics, random streams, caches, mode.

  Raises:
    ValueError: the model is not attached.

  Example:
    >>> import glora_jax, jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> linear, x = nnx.Linear(4, 3, rngs=nnx.Rngs(0)), jnp.ones((1, 4))
    >>> model = glora_jax.nnx.attach(linear, x)
    >>> model.glora_kernel.E[...] = jnp.ones(3)
    >>> folded = glora_jax.nnx.fold(model)
    >>> type(folded) is nnx.Linear, bool(jnp.allclose(folded(x), linear(x) + 1))
    (True, True)
  """
  model = _copy(model)
  new = _Replacements()
  for owner in _owners(model):
    for part in parts_of(owner):
      base = variable_at(owner, part.location)
      if base not in new:
        new.add(base, base.replace(merged(owner, part)))
  _make_plain(model, new)
  return model


def without_supports(model: Model) -> Model:
  """The plain model as it was attached, with its heads and all other state as they stand."""
  model = _copy(model)
  _make_plain(model, _Replacements())
  return model


def _copy(model: Model) -> Model:
  """A copy of a model; raises ValueError if it is not attached."""
  if not any(is_owner(module) for _, module in modules(model)):
    raise ValueError(
      f'This {type(model).__name__} is not attached; pass what glora_jax.nnx.attach returned.'
    )
  return nnx.clone(model)


def _owners(model: nnx.Module) -> list[nnx.Pytree]:
  return [module for _, module in modules(model) if is_owner(module)]


def _make_plain(model: nnx.Module, new: _Replacements) -> None:
  """Puts replacements into their places, and takes off all that was attached."""
  owners = _owners(model)
  for _, module in list(modules(model)):
    for location, variable in list(locations(module)):
      if isinstance(variable, Head) and variable not in new:
        new.add(variable, without_role(variable))
      if variable in new:
        put(module, {location: new[variable]})
    if UNCOVERED in vars(module):
      delattr(module, UNCOVERED)
  for owner in owners:
    make_plain(owner)


class _Replacements:
  """Variables by the variables whose places they take, which may be several."""

  def __init__(self):
    # With the old ones, or their ids would be given to others.
    self._pairs: dict[int, tuple[nnx.Variable, nnx.Variable]] = {}

  def __contains__(self, old: nnx.Variable) -> bool:
    return id(old) in self._pairs

  def __getitem__(self, old: nnx.Variable) -> nnx.Variable:
    return self._pairs[id(old)][1]

  def add(self, old: nnx.Variable, new: nnx.Variable) -> None:
    """Has one variable take the places of another."""
    self._pairs[id(old)] = old, new
