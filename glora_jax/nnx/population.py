"""Many subnets of one attached model at once."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from glora_jax.limits import Domain, Limits
from glora_jax.mesh import dealt
from glora_jax.method.groups import spec_of
from glora_jax.method.validation import (
  as_numbers,
  check_classes,
  check_logits,
  check_one_genome,
  check_population,
  check_scored,
  right_answers,
)
from glora_jax.nnx.adapter import with_rows
from glora_jax.nnx.live import adapters, check_stored, mesh_of, require_all_rows, spec
from glora_jax.nnx.plain import fold
from glora_jax.nnx.variables import Genome

State = TypeVar('State')
_CHUNK = Domain.of_annotation(int | None, Limits(at_least=1))
_BLOCK = Domain.of_annotation(int, Limits(at_least=1))
_DEFAULT_CHUNK = (
  8  # candidates side by side on an accelerator; on CPU 1 was measured to be the fastest
)


class Scores(NamedTuple):
  """What all answers of each candidate are worth; see `glora_jax.score`.

  Attributes:
    correct: number of correct answers, int32 [candidate].
    loss: summed cross-entropy, float32 [candidate].
  """

  correct: jax.Array
  loss: jax.Array


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
    >>> genomes = glora_jax.random_genomes(rng, glora_jax.nnx.spec(model), 5)
    >>> graphdef, state = nnx.split(model)
    >>> def outputs(genome):
    ...   return nnx.merge(graphdef, glora_jax.nnx.with_genome(state, genome))(jnp.ones((2, 4)))
    >>> jax.vmap(outputs)(jnp.asarray(genomes)).shape
    (5, 2, 3)
  """
  leaves = jax.tree.leaves(state, is_leaf=_is_variable)
  found = [leaf.recipe for leaf in leaves if isinstance(leaf, Genome)]
  if not found:
    raise ValueError(
      'This state has no glora_jax.nnx.Genome; pass what nnx.split gives of an attached model, '
      'with its variables.'
    )
  groups = [recipe.group for recipe in found]
  require_all_rows(groups)
  check_one_genome(spec_of(groups), genome, 'with_genome')
  check_stored(found, genome)
  replace = functools.partial(_with_rows, genome)
  return jax.tree.map(replace, state, is_leaf=_is_variable)


def _is_variable(value: Any) -> bool:
  return isinstance(value, nnx.Variable)


def _with_rows(genome: Any, variable: Any) -> Any:
  """A variable of a state, or a copy of it: models refuse those of another trace."""
  if isinstance(variable, Genome):
    return with_rows(variable, genome)
  return variable.copy() if isinstance(variable, nnx.Variable) else variable


def score(
  model: nnx.Module,
  genomes: Any,
  inputs: jax.Array,
  labels: jax.Array,
  *,
  chunk: int | None = None,
  block: int = 256,
) -> Scores:
  """Scores a population of subnets, with the model in the mode that it is in.

  It compiles once for a model and a size of population, so it can be called at every generation of
  a search. Every candidate starts from the state of the model, and leaves none behind.

  Args:
    model: an attached model, whose outputs are logits [example, class]; usually after `eval()`.
    genomes: int [candidate, rows, 5].
    inputs: [example, ...]; of a model that is sharded, every block is dealt to its devices.
    labels: int [example].
    chunk: number of candidates side by side by `jax.vmap`; None for 1 on CPU and 8 elsewhere.
    block: number of examples at a time.

  Returns:
    Correct answers, int32 [candidate], and summed cross-entropies, float32 [candidate].

  Raises:
    ValueError: the model is not attached, or the genomes do not fit it or have alleles that are not
      on offer; there is no example, or not one label for each, a class; `chunk` or `block` is no
      whole number above 0.

  Example:
    >>> import functools, glora_jax, jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> x, labels = jnp.eye(3), jnp.arange(3)
    >>> model = glora_jax.nnx.attach(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), x)
    >>> def score(genomes):
    ...   return glora_jax.nnx.score(model, genomes, x, labels)
    >>> settings = glora_jax.Evolution(
    ...   population=6, generations=1, parents=2, mutations=3, crossovers=3
    ... )
    >>> layers, key = glora_jax.nnx.spec(model), jax.random.key(0)
    >>> archive = glora_jax.evolve(layers, score, key, settings, progress=False)
    >>> archive.genomes.shape
    (12, 1, 5)
  """
  check_population(spec(model), genomes)
  check_stored([adapter.recipe for adapter in adapters(model)], genomes)
  inputs, labels = as_numbers('inputs', inputs), as_numbers('labels', labels)
  check_scored(inputs, labels)
  chunk, block = _CHUNK.check(chunk, 'chunk'), _BLOCK.check(block, 'block')
  if chunk is None:
    chunk = 1 if jax.default_backend() == 'cpu' else _DEFAULT_CHUNK
  graphdef, state = nnx.split(model)
  # Traced once for a model and a size, as the scorer itself.
  logits = _logits.eval_shape(graphdef, state, inputs)
  check_logits(logits)
  check_classes(labels, logits.shape[-1])
  mesh = mesh_of(model)
  block = min(block, len(labels))
  if mesh is not None:
    block = -(-block // mesh.size) * mesh.size
  return _score(graphdef, state, jnp.asarray(genomes), inputs, labels, chunk, block)


@functools.partial(jax.jit, static_argnums=0)
def _logits(graphdef: Any, state: Any, inputs: jax.Array) -> jax.Array:
  return nnx.merge(graphdef, state, copy=True)(inputs)


@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def _score(
  graphdef: Any,
  state: Any,
  genomes: jax.Array,
  inputs: jax.Array,
  labels: jax.Array,
  chunk: int,
  block: int,
) -> Scores:
  padding = -len(labels) % block
  is_example = jnp.arange(len(labels) + padding) < len(labels)
  blocks = tuple(_in_blocks(array, padding, block) for array in (inputs, labels))
  blocks = (*blocks, is_example.reshape(-1, block))
  mesh = mesh_of(nnx.merge(graphdef, state, copy=True))
  if mesh is not None:
    blocks = jax.lax.with_sharding_constraint(blocks, dealt(mesh, axis=1))
  total = functools.partial(_total, graphdef, state, blocks)
  return jax.lax.map(total, genomes, batch_size=chunk if chunk > 1 else None)


def _in_blocks(array: jax.Array, padding: int, block: int) -> jax.Array:
  """[example, ...] as [block, example, ...], the last block padded with zeros."""
  padded = jnp.pad(array, ((0, padding),) + ((0, 0),) * (array.ndim - 1))
  return padded.reshape(-1, block, *array.shape[1:])


def _total(graphdef: Any, state: Any, blocks: Any, genome: jax.Array) -> Scores:
  """One candidate's sums over all blocks; its kernels are merged once, where they are whole."""
  subnet = nnx.merge(graphdef, with_genome(state, genome))
  if mesh_of(subnet) is None:
    subnet = fold(subnet)
  answers = functools.partial(_answers, *nnx.split(subnet))
  by_block = jax.lax.map(answers, blocks)
  return jax.tree.map(_sum, by_block)


def _sum(values: jax.Array) -> jax.Array:
  return values.sum(0)


def _answers(graphdef: Any, state: Any, block: Any) -> Scores:
  """What the answers to one block are worth."""
  inputs, labels, is_example = block
  logits = nnx.merge(graphdef, state, copy=True)(inputs).astype(jnp.float32)
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  correct = right_answers(logits, labels, losses) & is_example
  return Scores(correct.sum(dtype=jnp.int32), jnp.where(is_example, losses, 0).sum())
