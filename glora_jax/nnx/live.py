"""What an attached model can be asked, and told: its layers, its genome, what it trains."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx

from glora_jax.method import genomes
from glora_jax.method.groups import Group, spec_of
from glora_jax.method.space import TENSORS, Spec
from glora_jax.method.structures import genome_of
from glora_jax.method.validation import check_one_genome
from glora_jax.nnx.adapter import Adapter, Static, with_rows
from glora_jax.nnx.variables import Genome

State = TypeVar('State')


def adapters(model: nnx.Module) -> list[Adapter]:
  """All sets of supports of a model, in the order of their first rows.

  Raises:
    ValueError: it is not attached, or a part or a combination of models that are.
  """
  found = [node for _, node in nnx.iter_graph(model) if isinstance(node, Adapter)]
  if not found:
    raise ValueError(
      f'This {type(model).__name__} is not attached; pass what glora_jax.nnx.attach returned.'
    )
  found.sort(key=lambda adapter: adapter.group.rows)
  require_all_rows(adapter.group for adapter in found)
  return found


def mesh_of(model: nnx.Module) -> jax.sharding.Mesh | None:
  """The devices that an attached model's kernels are sharded over; None where they are not."""
  return adapters(model)[0].static.mesh


def require_all_rows(groups: Iterable[Group]) -> None:
  """Raises ValueError unless groups have all rows of a genome, once each."""
  rows = sorted(row for group in groups for row in group.rows)
  if rows != list(range(len(rows))):
    raise ValueError(
      f'These modules have the rows {rows} of a genome, and not all of one: pass the whole model '
      'that glora_jax.nnx.attach returned.'
    )


def spec(model: nnx.Module) -> Spec:
  """The rows of an attached model's genomes.

  Raises:
    ValueError: the model is not attached, or only a part of one that is.

  Example:
    >>> import glora_jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.relu)
    >>> model = glora_jax.nnx.attach(model, jnp.ones((1, 4)))
    >>> [(layer.name, layer.in_features) for layer in spec(model)]
    [('layers/0', 4)]
  """
  return spec_of([adapter.group for adapter in adapters(model)])


def get_genome(model: nnx.Module) -> np.ndarray:
  """The genome of an attached model, int8 [rows, 5].

  Raises:
    ValueError: the model is not attached, or only a part of one that is, or it is traced.

  Example:
    >>> import glora_jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> model = glora_jax.nnx.attach(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), jnp.ones((1, 4)))
    >>> get_genome(model).tolist()  # the largest on offer, to begin with
    [[3, 3, 2, 2, 2]]
  """
  found = adapters(model)
  if any(isinstance(adapter.alleles, jax.core.Tracer) for adapter in found):
    raise ValueError(
      'The genome of the model is traced, and its codes are needed here; call this outside of '
      'nnx.jit, nnx.vmap and nnx.grad.'
    )
  rows = {
    row: np.asarray(adapter.alleles)[index]
    for adapter in found
    for index, row in adapter.group.slices()
  }
  return np.array([rows[row] for row in range(len(rows))], np.int8)


def set_genome(model: nnx.Module, genome: Any) -> None:
  """Gives an attached model another structure of its supernet.

  Args:
    model: an attached model, which is changed.
    genome: int [rows, 5]; may be traced, so that one compiled step trains a supernet. Or a
      structure as `fix` takes it.

  Raises:
    ValueError: the genome does not fit, or has alleles that are not on offer.

  Example:
    >>> import glora_jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> model = glora_jax.nnx.attach(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), jnp.ones((1, 4)))
    >>> glora_jax.nnx.set_genome(model, 'bitfit')
    >>> print(glora_jax.nnx.summary(model).splitlines()[1])
    Linear   4    3  none  none  none  none  vector        3     15
  """
  found = adapters(model)
  if isinstance(genome, str | os.PathLike | Mapping):
    genome = genome_of(spec(model), genome)
  check_own_genome(found, genome)
  for adapter in found:
    adapter.genome.set_value(with_rows(adapter.genome, genome).get_value())


def check_own_genome(found: Sequence[Adapter], genome: Any) -> None:
  """Checks that a genome is one that a model can be set to.

  Args:
    found: all its sets of supports.
    genome: int [rows, 5]; where it is traced, only its shape and dtype are checked.

  Raises:
    ValueError: it does not fit, or has alleles that are not on offer.
  """
  layers = spec_of([adapter.group for adapter in found])
  genomes.check_genome(layers, genome)
  if np.ndim(genome) != 2:
    raise ValueError(
      f'A model has one genome [{len(layers)}, 5], not {np.shape(genome)}; '
      'glora_jax.make_scorer takes a population, and glora_jax.nnx.with_genome maps over one.'
    )
  check_stored([adapter.static for adapter in found], genome)


def check_stored(statics: Sequence[Static], genomes: Any) -> None:
  """Checks that a model stores all alleles of genomes, or the same by another name.

  Args:
    statics: those of all its sets of supports.
    genomes: int [..., rows, 5], which fit it; where they are traced, nothing is checked.

  Raises:
    ValueError: an allele is not on offer there.
  """
  if isinstance(genomes, jax.core.Tracer):
    return
  layers, codes = spec_of([static.group for static in statics]), np.asarray(genomes)
  same = layers.canonical_table
  stored = np.zeros(same.shape, bool)
  for static in statics:
    rows = np.array(static.group.rows)[:, None]
    for column, own in enumerate(static.occurring.codes):
      stored[rows, column, same[rows, column, list(own)]] = True
  gene = tuple(np.indices(stored.shape[:2]))
  missing = np.argwhere(~stored[(*gene, same[(*gene, codes)])])
  if len(missing):
    *_, row, column = index = tuple(missing[0])
    layer, tensor = layers.layers[row], TENSORS[column]
    names = np.array(layer.space.names(tensor))
    own = next(static.occurring.codes[column] for static in statics if row in static.group.rows)
    raise ValueError(
      f'The genome says {names[codes[index]]} for {tensor} of layer {row} ({layer.name}), where '
      f'this model stores {", ".join(names[list(own)])}; attach with a space that offers it, or '
      'set the genome of the model as it was before glora_jax.nnx.fix.'
    )


def with_genome(state: State, genome: Any) -> State:
  """The state of an attached model with another genome, which `nnx.merge` makes a subnet.

  Args:
    state: what `nnx.split` or `nnx.state` gave of a whole attached model, with its variables.
    genome: int [rows, 5]; may be traced, and mapped over by `jax.vmap`.

  Returns:
    A state of the same structure.

  Raises:
    ValueError: the state is not that of a whole attached model, or the genome does not fit it or
      has alleles that are not on offer.

  Example:
    >>> import glora_jax, jax, jax.numpy as jnp, numpy as np
    >>> from flax import nnx
    >>> model = glora_jax.nnx.attach(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), jnp.ones((1, 4)))
    >>> rng = np.random.default_rng(0)
    >>> genomes = glora_jax.random_genomes(rng, spec(model), 5)
    >>> graphdef, state = nnx.split(model)
    >>> def outputs(genome):
    ...   return nnx.merge(graphdef, with_genome(state, genome))(jnp.ones((2, 4)))
    >>> jax.vmap(outputs)(jnp.asarray(genomes)).shape
    (5, 2, 3)
  """

  def is_variable(value: Any) -> bool:
    return isinstance(value, nnx.Variable)

  leaves = jax.tree.leaves(state, is_leaf=is_variable)
  found = [leaf.static for leaf in leaves if isinstance(leaf, Genome)]
  if not found:
    raise ValueError(
      'This state has no glora_jax.nnx.Genome; pass what nnx.split gives of an attached model, '
      'with its variables.'
    )
  groups = [static.group for static in found]
  require_all_rows(groups)
  check_one_genome(spec_of(groups), genome, 'with_genome')
  check_stored(found, genome)

  def replaced(variable: Any) -> Any:
    if isinstance(variable, Genome):
      return with_rows(variable, genome)
    # A copy: models refuse variables of another trace.
    return variable.copy() if is_variable(variable) else variable

  return jax.tree.map(replaced, state, is_leaf=is_variable)
