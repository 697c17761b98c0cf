"""The structures that each step of a supernet's training draws."""

from __future__ import annotations

import dataclasses

import jax

from glora_jax.checks import field, validate_fields
from glora_jax.method import space
from glora_jax.method.draws import sample_genome


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Draws the structures of each step of a supernet's training.

  `Sampling(largest=0)` is the paper's: one structure, uniform over all genomes.

  Attributes:
    largest: probability that a tensor of a layer has its largest form instead of one drawn
      uniformly.
    paths: number of equal parts that every batch is split into, each with its own genome.

  Raises:
    TypeError: a field has the wrong type.
    ValueError: a number is not finite or out of range.

  Example:
    >>> import flax.linen as nn
    >>> import glora_jax, jax.numpy as jnp
    >>> spec = glora_jax.adapt(nn.Dense(3), jnp.zeros((1, 4))).spec
    >>> genomes = Sampling(paths=4, largest=1.0).draw(jax.random.key(0), spec)
    >>> print(genomes.shape, genomes[0].tolist())
    (4, 1, 5) [[3, 3, 2, 2, 2]]
  """

  largest: float = field(0.0, least=0, most=1)
  paths: int = field(1, least=1)

  def __post_init__(self):
    validate_fields(self)

  def draw(self, key: jax.Array, spec: space.Spec) -> jax.Array:
    """Draws the genome or genomes of one step.

    Args:
      key: random key.
      spec: the layers of an adapted model.

    Returns:
      A genome, int8 [layer, 5], or for several paths genomes [path, layer, 5].
    """
    if self.paths == 1:
      return sample_genome(key, spec, self.largest)
    keys = jax.random.split(key, self.paths)
    return jax.vmap(lambda path_key: sample_genome(path_key, spec, self.largest))(keys)
