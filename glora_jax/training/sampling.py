"""Which subnets a step of the supernet's training takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax

from glora_jax.limits import Limits, check_fields
from glora_jax.method import space
from glora_jax.method.draws import sample_genome
from glora_jax.method.genomes import largest_genome, smallest_genome

RANGES: Mapping[str, Limits] = {
  'largest': Limits(at_least=0, at_most=1),
  'paths': Limits(at_least=1),
  'distillation': Limits(at_least=0, at_most=1),
}
PATHS_OF_SANDWICH = 3  # the largest subnet, the smallest, and one that is drawn


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Which subnets a step of the supernet's training takes.

  `Sampling(largest=0)` is the paper's: one subnet, uniform over all genomes.

  Attributes:
    largest: probability that a gene takes its largest allele, and is not drawn uniformly.
    paths: number of groups that every batch is cut into, each with a genome of its own.
    sandwich: make the first of at least three paths the largest subnet and the second the smallest
      (Yu & Huang 2019, arXiv 1903.05134).
    distillation: share of the loss that takes the answers of the largest subnet for labels. No
      gradient goes through these; they cost one more forward pass.

  Raises:
    ValueError: a value is of another type, not finite or out of its range.

  Example:
    >>> import flax.linen as nn
    >>> import glora_jax, jax.numpy as jnp
    >>> spec = glora_jax.adapt(nn.Dense(3), jnp.zeros((1, 4))).spec
    >>> genomes = Sampling(paths=4, sandwich=True).draw(jax.random.key(0), spec)
    >>> print(genomes.shape, genomes[0].tolist(), genomes[1].tolist())
    (4, 1, 5) [[3, 3, 2, 2, 2]] [[0, 0, 0, 0, 0]]
  """

  largest: float = 0.0
  paths: int = 1
  sandwich: bool = False
  distillation: float = 0.0

  def __post_init__(self):
    check_fields(self, RANGES)
    if self.sandwich and self.paths < PATHS_OF_SANDWICH:
      raise ValueError(
        f'paths={self.paths} must be at least {PATHS_OF_SANDWICH} with sandwich=True.'
      )

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
    genomes = jax.vmap(lambda path_key: sample_genome(path_key, spec, self.largest))(keys)
    if self.sandwich:
      genomes = genomes.at[0].set(largest_genome(spec)).at[1].set(smallest_genome(spec))
    return genomes
