"""Which structures a step of the supernet's training takes."""

from __future__ import annotations

import jax
from pydantic import Field

from glora_jax.method import space
from glora_jax.method.draws import sample_genome
from glora_jax.vision.settings import Number, Whole, declared


@declared
class Sampling:
  """Which structures a step of the supernet's training takes.

  `Sampling(largest=0)` is the paper's: one structure, uniform over all genomes.

  Raises:
    ValueError: a value has the wrong type, is not finite or out of range.

  Example:
    >>> import flax.linen as nn
    >>> import glora_jax, jax.numpy as jnp
    >>> spec = glora_jax.adapt(nn.Dense(3), jnp.zeros((1, 4))).spec
    >>> genomes = Sampling(paths=4, largest=1.0).draw(jax.random.key(0), spec)
    >>> print(genomes.shape, genomes[0].tolist())
    (4, 1, 5) [[3, 3, 2, 2, 2]]
  """

  largest: Number = Field(
    default=0.0,
    ge=0,
    le=1,
    description='probability that a gene takes its largest allele instead of a uniformly drawn one',
  )
  paths: Whole = Field(
    default=1,
    ge=1,
    description='number of groups that every batch is split into, each with its own genome',
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
    return jax.vmap(lambda path_key: sample_genome(path_key, spec, self.largest))(keys)
