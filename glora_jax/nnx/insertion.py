"""Laying supports beside the parameters of a live model, and marking its heads."""

from __future__ import annotations

from typing import Any, Literal

import jax
from flax import nnx

from glora_jax.method.adapted import Adapted
from glora_jax.method.genomes import Occurring, largest_genome
from glora_jax.method.groups import Group
from glora_jax.method.space import TENSORS, Spec
from glora_jax.method.supports import COLLECTION
from glora_jax.nnx.adapter import Adapter, Recipe
from glora_jax.nnx.functional import params
from glora_jax.nnx.owners import PREFIX, UNCOVERED, Part, make_owner
from glora_jax.nnx.places import Location, Place, Places, put
from glora_jax.nnx.variables import Genome, as_head
from glora_jax.tree import Path, get


def insert(
  model: nnx.Module, adapted: Adapted, key: jax.Array, genome_type: type[Genome] = Genome
) -> None:
  """Makes a model one that is attached.

  Args:
    model: the model, which is changed.
    adapted: what is adapted of it, and what are its heads.
    key: random key of the supports.
    genome_type: type of the variables of the alleles.
  """
  supports = adapted.init(key, params(model))[COLLECTION]
  genome = largest_genome(adapted.spec)
  insertion = _Insertion(model)
  for group in adapted.groups:
    recipe = Recipe(group, _offered(group, adapted.spec))
    stored = recipe.cut(get(supports, group.path))
    kernel = insertion.places.by_path[group.members[0].kernel_path]
    insertion.add(Adapter(recipe, stored, group.alleles(genome), kernel, genome_type))
  for path in adapted.head_paths:
    insertion.mark_head(path)
  insertion.finish()
  if adapted.uncovered:
    setattr(model, UNCOVERED, adapted.uncovered)


def _offered(group: Group, spec: Spec) -> Occurring:
  """The alleles of a group that its space offers."""
  layers = [spec.layers[row] for row in group.rows]
  return Occurring.of_tensors(
    [code for layer in layers for code in layer.offered(tensor)] for tensor in TENSORS
  )


class _Insertion:
  """What every owner gets.

  Attributes:
    places: where the variables are.
  """

  def __init__(self, model: nnx.Module):
    self.places = Places.read(model)
    self._owners: dict[int, nnx.Pytree] = {}
    self._parts: dict[int, list[Part]] = {}

  def add(self, adapter: Adapter) -> None:
    """Lays supports beside all parameters that they act on."""
    for member, site in enumerate(adapter.group.members):
      kernel = site.kernel_path
      for place in self.places.of_variable(kernel):
        self._add(place, 'kernel', place.location, adapter, member)
      if site.bias_path is not None:
        for place in self.places.of_variable(site.bias_path):
          location = self._kernel_beside(place, kernel)
          self._add(place, 'bias', location, adapter, member)

  def mark_head(self, path: Path) -> None:
    """Makes a parameter a head."""
    head = as_head(self.places.by_path[path])
    for owner, location in self.places.of_variable(path):
      put(owner, {location: head})
      self._owners[id(owner)] = owner

  def finish(self) -> None:
    """Gives the owners their new classes."""
    for number, owner in self._owners.items():
      parts = self._parts.get(number, [])
      # A linen model must not see the type of its heads, either.
      if parts or isinstance(owner, nnx.bridge.ToNNX):
        make_owner(owner, parts)

  def _add(
    self,
    place: Place,
    role: Literal['kernel', 'bias'],
    kernel: Location,
    adapter: Adapter,
    member: int,
  ) -> None:
    owner, location = place
    self._owners[id(owner)] = owner
    name = _free_name(owner, location if kernel.attribute.startswith(PREFIX) else kernel, adapter)
    setattr(owner, name, adapter)
    part = Part(location, role, kernel, name, member)
    self._parts.setdefault(id(owner), []).append(part)

  def _kernel_beside(self, bias: Place, kernel: Path) -> Location:
    """Where an owner of a bias has the kernel, which it is given if another module owns it."""
    for owner, location in self.places.of_variable(kernel):
      if owner is bias.owner:
        return location
    variable = self.places.by_path[kernel]
    name = _free_name(bias.owner, bias.location, variable, '_base')
    setattr(bias.owner, name, variable)
    return Location(name)


def _free_name(owner: nnx.Pytree, location: Location, value: Any, end: str = '') -> str:
  """Name of the attribute that holds, or will hold, something beside a parameter."""
  name = PREFIX + '_'.join((location.attribute, *location.inside)) + end
  while vars(owner).get(name, value) is not value:
    name += '_'
  return name
