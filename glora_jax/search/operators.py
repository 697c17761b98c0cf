"""How genomes come from genomes: mutation, crossover, and changes that estimates propose."""

from __future__ import annotations

import numpy as np

from glora_jax.method.draws import random_genomes
from glora_jax.method.genomes import count_params
from glora_jax.method.one_shift import C, E, linked
from glora_jax.method.space import Spec

# Temperatures of a guided draw, as shares of the mean estimated change; each child draws its own,
# so that some children are bold and others careful.
_TEMPERATURES = (0.03, 0.1, 0.3)
_LOG2_CHANGES = 6  # a guided child takes 1, 2, 4, ... or 32 changes


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


def propose_guided(
  rng: np.random.Generator,
  spec: Spec,
  parents: np.ndarray,
  values: np.ndarray,
  number: int,
  budget: int | None,
) -> np.ndarray:
  """Children with several changes each, drawn in proportion to what the estimates promise.

  Args:
    rng: source of the choices.
    spec: the genomes' spec.
    parents: genomes, int8 [parent, layer, 5].
    values: estimated loss of every allele at each parent, [parent, layer, 5, code]; see
      `guidance.make_guide`.
    number: number of children.
    budget: most trained parameters; a child above it gives up the alleles that are estimated to
      be worth least per parameter. None for no limit.

  Returns:
    The children, int8 [number, layer, 5].
  """
  children = []
  for _ in range(number):
    parent = rng.integers(len(parents))
    child = _changed(rng, spec, parents[parent], values[parent])
    children.append(give_up(spec, child, values[parent], budget))
  return np.array(children, np.int8).reshape(-1, len(spec), 5)


def _changed(
  rng: np.random.Generator, spec: Spec, genome: np.ndarray, values: np.ndarray
) -> np.ndarray:
  """The genome with 1 to 32 changes, drawn with probabilities like exp(-change / temperature).

  Where a row may have C or E, one that comes makes the other go, and the change counts both.

  Args:
    rng: source of the choices.
    spec: the genome's spec.
    genome: int8 [layer, 5].
    values: estimated loss of every allele, [layer, 5, code].
  """
  current = genome[..., None].astype(np.int64)
  change = values - np.take_along_axis(values, current, -1)
  going = change[..., :1].copy()  # what it costs that a gene becomes none
  rows = spec.one_shift
  change[rows, C, 1:] += going[rows, E]
  change[rows, E, 1:] += going[rows, C]
  change = np.where(_offered(spec), change, np.inf)
  np.put_along_axis(change, current, np.inf, -1)
  sizes = np.abs(change[np.isfinite(change)])  # none where every gene has one allele
  temperature = rng.choice(_TEMPERATURES) * (sizes.mean() if sizes.size else 0.0)
  # The least of energies with Gumbel noise is a draw from their Boltzmann distribution.
  noisy = change / max(temperature, 1e-12) - rng.gumbel(size=change.shape)
  best_code = noisy.argmin(-1)
  best = noisy.min(-1)
  num_changes = int(2 ** rng.integers(0, _LOG2_CHANGES))
  child = genome.copy()
  # The best comes last, and so stays where two changes exclude each other.
  for gene in np.argsort(best, axis=None)[:num_changes][::-1]:
    layer, tensor = np.unravel_index(gene, best.shape)
    if np.isfinite(best[layer, tensor]):
      child[layer, tensor] = best_code[layer, tensor]
      if rows[layer] and tensor in (C, E) and child[layer, tensor]:
        child[layer, C + E - tensor] = 0
  return child


def give_up(spec: Spec, genome: np.ndarray, values: np.ndarray, budget: int | None) -> np.ndarray:
  """The genome brought within the budget at the least estimated loss.

  Again and again it makes the change to a cheaper allele that costs least loss for each parameter
  that it saves.

  Args:
    spec: the genome's spec.
    genome: int8 [layer, 5].
    values: estimated loss of every allele, [layer, 5, code].
    budget: most trained parameters, enough for the smallest subnet on offer; None for no limit.

  Returns:
    int8 [layer, 5].
  """
  if budget is None:
    return genome
  genome = genome.copy()
  costs = spec.cost_table
  offered = _offered(spec)
  while count_params(spec, genome) > budget:
    current = genome[..., None].astype(np.int64)
    saved = np.take_along_axis(costs, current, -1) - costs
    loss = values - np.take_along_axis(values, current, -1)
    ratio = np.where(offered & (saved > 0), loss / np.maximum(saved, 1), np.inf)
    layer, tensor, code = np.unravel_index(ratio.argmin(), ratio.shape)
    genome[layer, tensor] = code
  return genome


def _offered(spec: Spec) -> np.ndarray:
  """Which codes are on offer, bool [layer, 5, code]."""
  offered = np.zeros(spec.cost_table.shape, bool)
  np.put_along_axis(offered, spec.offered_table.astype(np.int64), True, axis=-1)
  return offered
