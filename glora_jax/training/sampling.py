"""Which structures a step of the supernet's training takes."""

from __future__ import annotations

import dataclasses

import jax

from glora_jax.checks import field, validate_fields
from glora_jax.method import space
from glora_jax.method.draws import sample_genome


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Which structures a step of the supernet's training takes.

  `Sampling(largest=0)` is the paper's: one structure, uniform over all genomes.

  Attributes:
    largest: probability that a gene takes its largest form instead of a uniformly drawn one.
    paths: number of groups that every batch is split into, each with its own genome.

  Raises:
    TypeError: a field has another type.
    ValueError: a number is not finite or beyond its limits.

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
    """The genomes of one step.

    Args:
      key: random key.
      spec: the layers of an adapted model.

    Returns:
      A genome, int8 [layer, 5], or where there are several paths genomes [path, layer, 5].
    """
    if self.paths == 1:
      return sample_genome(key, spec, self.largest)
    keys = jax.random.split(key, self.paths)
    return jax.vmap(lambda path_key: sample_genome(path_key, spec, self.largest))(keys)
