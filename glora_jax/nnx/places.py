"""Locations of variables in a live model: which modules hold them, under which attributes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
from flax import nnx

from glora_jax.tree import KeyPath, plain_path

_CONTAINERS = (nnx.List, nnx.Dict)


class Location(NamedTuple):
  """The location of a variable in the module that owns it.

  Attributes:
    attribute: name of the owner's attribute.
    inside: path in the attribute's value, a list or a dictionary; () if that is the variable.
  """

  attribute: str
  inside: KeyPath = ()


Place = tuple[nnx.Pytree, Location]  # a module, and where in it


def places(model: nnx.Module) -> dict[KeyPath, list[Place]]:
  """All places of every variable, by its paths in the model's state, with names for numbers."""
  by_id: dict[int, list[Place]] = {}
  by_path: dict[KeyPath, list[Place]] = {}
  for path, owner in modules(model):
    for location, variable in locations(owner):
      together = by_id.setdefault(id(variable), [])
      together.append((owner, location))
      by_path[*path, location.attribute, *plain_path(location.inside)] = together
  return by_path


def by_paths(model: nnx.Module) -> dict[KeyPath, nnx.Variable]:
  """All variables of a model, by their paths in its state, with names for numbers."""
  return {path: variable_at(*found[0]) for path, found in places(model).items()}


def modules(model: nnx.Module) -> Iterator[tuple[KeyPath, nnx.Pytree]]:
  """All modules of a model, each once, by path; NNX's lists and dictionaries belong to others."""
  for path, node in nnx.iter_graph(model):
    if isinstance(node, nnx.Pytree) and (node is model or not isinstance(node, _CONTAINERS)):
      yield plain_path(path), node


def locations(owner: nnx.Pytree) -> Iterator[tuple[Location, nnx.Variable]]:
  """The variables that a module owns itself, and no submodule."""
  for name, value in vars(owner).items():
    is_data = not owner._pytree__is_pytree or owner._pytree__nodes.get(name, False)
    if name.startswith('_pytree__') or not is_data:
      continue
    for inside, leaf in _leaves(value):
      if isinstance(leaf, nnx.Variable):
        yield Location(name, inside), leaf


def variable_at(owner: nnx.Pytree, location: Location) -> nnx.Variable:
  """The variable at a location of a module, without the properties of an owner's class."""
  found = _leaves(vars(owner)[location.attribute])
  return next(leaf for inside, leaf in found if inside == location.inside)


def put(owner: nnx.Pytree, new: Mapping[Location, nnx.Variable]) -> None:
  """Sets the variables at some locations of a module."""
  by_attribute: dict[str, dict[KeyPath, nnx.Variable]] = {}
  for location, variable in new.items():
    by_attribute.setdefault(location.attribute, {})[location.inside] = variable
  attributes = vars(owner)
  for name, changes in by_attribute.items():
    if isinstance(attributes[name], _CONTAINERS):  # changed in place, as others may share it
      put(attributes[name], {Location(path[0], path[1:]): new for path, new in changes.items()})
    else:
      attributes[name] = with_variables(attributes[name], changes)


def with_variables(value: Any, new: Mapping[KeyPath, nnx.Variable]) -> Any:
  """An attribute's value with new variables at some paths."""
  if () in new:
    return new[()]
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: new.get(_names(path), leaf), value, is_leaf=_is_leaf
  )


def _leaves(value: Any) -> Iterator[tuple[KeyPath, Any]]:
  for path, leaf in jax.tree_util.tree_leaves_with_path(value, is_leaf=_is_leaf):
    yield _names(path), leaf


def _is_leaf(value: Any) -> bool:
  """Whether a value is a variable or a module, and not a container of them."""
  is_node = isinstance(value, (nnx.Variable, nnx.Pytree))
  return is_node and not isinstance(value, _CONTAINERS)


def _names(path: Any) -> KeyPath:
  return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
