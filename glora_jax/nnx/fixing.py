"""An attached model with one structure: with no more supports than that reads."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from flax import nnx

from glora_jax.method.genomes import Occurring
from glora_jax.method.structures import Structure, genome_of
from glora_jax.nnx.adapter import Adapter, Static
from glora_jax.nnx.live import adapters, set_genome, spec
from glora_jax.nnx.owners import is_owner, parts_of
from glora_jax.nnx.places import modules, variable_at

Model = TypeVar('Model', bound=nnx.Module)


def fix(model: Model, structure: Structure) -> Model:
  """An attached model that has one structure alone, in its cheapest form.

  It holds only the supports that the structure reads, cut to its ranks, so that an optimizer trains
  no others. Where a layer of NNX's own has no LoRA for A, no merged kernel is computed.

  Args:
    model: an attached model; it is not changed.
    structure: a preset's name, a genome, choices by layer, or the path of a genome file or an
      adapter; see `glora_jax.Adapted.fix`.

  Returns:
    A model of the same class, attached.

  Raises:
    ValueError: the model is not attached, or the structure does not fit or is not on offer.

  Example:
    >>> import glora_jax, jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> model = glora_jax.nnx.attach(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), jnp.ones((1, 4)))
    >>> model = glora_jax.nnx.fix(model, 'bitfit')
    >>> sorted(nnx.state(model, glora_jax.nnx.Trained)['glora_kernel'])
    ['E']
  """
  model = nnx.clone(model)
  genome = genome_of(spec(model), structure)
  set_genome(model, genome)
  new = {id(adapter): _fixed(model, adapter, genome) for adapter in adapters(model)}
  for _, owner in list(modules(model)):
    for name, value in list(vars(owner).items()):
      if id(value) in new:
        setattr(owner, name, new[id(value)])
  return model


def _fixed(model: nnx.Module, adapter: Adapter, genome: np.ndarray) -> Adapter:
  """A set of supports for one genome."""
  occurring = Occurring.of_alleles(genome[np.array(adapter.group.rows)])
  static = Static(adapter.group, occurring, adapter.static.mesh, is_fixed=True)
  stored = static.cut(adapter.supports)
  kernel = _kernel_beside(model, adapter)
  return Adapter(static, stored, adapter.alleles, kernel, adapter.genome.var_type)


def _kernel_beside(model: nnx.Module, adapter: Adapter) -> nnx.Variable:
  """The kernel of the first layer that shares a set of supports."""
  return next(
    variable_at(owner, part.location)
    for _, owner in modules(model)
    if is_owner(owner)
    for part in parts_of(owner)
    if vars(owner)[part.adapter] is adapter and (part.role, part.member) == ('kernel', 0)
  )
