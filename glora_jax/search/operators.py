"""How genomes come from genomes: mutation and crossover."""

from __future__ import annotations

import numpy as np

from glora_jax.method.draws import random_genomes
from glora_jax.method.genomes import linked
from glora_jax.method.space import Spec


def mutate(
  rng: np.random.Generator, spec: Spec, parents: np.ndarray, number: int, probability: float
) -> np.ndarray:
  """Random parents with each gene drawn anew with the given probability.

  C and E of a row that may have one of them are drawn anew together; likewise in `cross`.

  Args:
    rng: source of the choices.
    spec: the genomes' spec.
    parents: genomes, int8 [parent, layer, 5].
    number: number of children.
    probability: probability that a gene is drawn anew, uniformly from the alleles on offer.

  Returns:
    The children, int8 [number, layer, 5].
  """
  chosen = parents[rng.integers(len(parents), size=number)]
  is_mutated = linked(spec, rng.random(chosen.shape) < probability)
  return np.where(is_mutated, random_genomes(rng, spec, number), chosen)


def cross(rng: np.random.Generator, spec: Spec, parents: np.ndarray, number: int) -> np.ndarray:
  """Children that have each gene from one or the other of two random parents.

  Args:
    rng: source of the choices.
    spec: the genomes' spec.
    parents: genomes, int8 [parent, layer, 5].
    number: number of children.

  Returns:
    The children, int8 [number, layer, 5].
  """
  mothers = parents[rng.integers(len(parents), size=number)]
  fathers = parents[rng.integers(len(parents), size=number)]
  is_mothers = linked(spec, rng.random(mothers.shape) < 0.5)
  return np.where(is_mothers, mothers, fathers)
