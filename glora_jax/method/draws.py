"""Random genomes: uniform over the choices, and within a budget of trained parameters."""

from __future__ import annotations

import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.checks import validate
from glora_jax.method.genomes import (
  count_params,
  enforce_one_shift,
  forms_at,
  largest_genome,
  link_shifts,
  num_shifts,
  redraw_shifts,
  smallest_genome,
)
from glora_jax.method.sample import check_key
from glora_jax.method.space import Spec, check_spec

_ROUNDS = 8  # of rejection, after which genomes are repaired instead


def sample_genome(key: jax.Array, spec: Spec, largest: float = 0.0) -> jax.Array:
  """Draws a genome, the form of each tensor independently and uniformly among the choices.

  If a layer may have C or E but not both, the pair is drawn uniformly among those allowed. Works
  under `jit`.

  Args:
    key: random key.
    spec: the layers.
    largest: probability that a tensor gets its last choice, the one with the most parameters,
      instead of a drawn one.

  Returns:
    int8 [layer, 5].

  Raises:
    TypeError: `largest` is not a number, `spec` not a Spec, or `key` not a random key.
    ValueError: `largest` is not from 0 to 1.

  Example:
    >>> import jax
    >>> from glora_jax import Layer, SearchSpace, Spec, sample_genome
    >>> space = SearchSpace(A='none', B='lora', C='none', D='none')
    >>> spec = Spec((Layer('fc1', 8, 32, space=space),))
    >>> genome = sample_genome(jax.random.key(0), spec)
    >>> genome.shape, genome[0, :4].tolist(), int(genome[0, 4]) in (0, 1, 2)
    ((1, 5), [0, 3, 0, 0], True)
  """
  largest = validate(largest, float, 'largest', least=0, most=1)
  check_spec(spec)
  check_key(key)
  choice = jax.random.randint(key, (len(spec), 5), 0, spec._num_choices)
  if spec._one_shift.any():
    shift_key = jax.random.fold_in(key, 2)
    shifts = jax.random.randint(shift_key, (len(spec),), 0, num_shifts(spec))
    choice = redraw_shifts(spec, choice, shifts)
  codes = jnp.take_along_axis(jnp.asarray(spec._choices_table), choice[..., None], axis=-1)[..., 0]
  if largest:
    takes_largest = jax.random.bernoulli(jax.random.fold_in(key, 1), largest, choice.shape)
    codes = jnp.where(link_shifts(spec, takes_largest), largest_genome(spec), codes)
  return codes


def check_budget(budget: Any) -> int | None:
  """A budget as an int that fits into 64 bits, which no model exceeds, or None for no limit.

  Raises:
    TypeError: the budget is not an integer.
    ValueError: it is negative.
  """
  number = validate(budget, int | None, 'budget', least=0, most=math.inf)
  return number if number is None else min(number, sys.maxsize)


def require_feasible(spec: Spec, budget: Any) -> int | None:
  """`check_budget`, for the budget of a search.

  Raises:
    ValueError: the budget is none, or below the cheapest structure in the space.
  """
  budget = check_budget(budget)
  check_spec(spec)
  least = count_params(spec, smallest_genome(spec))
  if budget is not None and least > budget:
    raise ValueError(
      f'budget={budget} is below the {least} parameters of the smallest structure in the space; '
      'raise it, or add cheaper forms.'
    )
  return budget


def random_genomes(
  rng: np.random.Generator, spec: Spec, number: int, budget: int | None = None
) -> np.ndarray:
  """Draws random structures within a budget.

  They are uniform over the structures within the budget, by rejection, if enough of the space fits.
  After eight rounds the rest is filled with repaired genomes, so that any budget is quick.

  Args:
    rng: NumPy generator.
    spec: the layers.
    number: number of genomes.
    budget: most trained parameters of each; None for no limit.

  Returns:
    int8 [number, layer, 5].

  Raises:
    TypeError: `rng` is not a NumPy generator, or the number or the budget not an integer.
    ValueError: the number or the budget is negative, or the budget is below the smallest structure
      in the space.

  Example:
    >>> import numpy as np
    >>> from glora_jax import Layer, Spec, count_params, random_genomes
    >>> spec = Spec((Layer('fc1', 8, 32), Layer('fc2', 32, 8)))
    >>> population = random_genomes(np.random.default_rng(0), spec, 100, budget=200)
    >>> population.shape, bool(count_params(spec, population).max() <= 200)
    ((100, 2, 5), True)
  """
  number = validate(number, int, 'number', least=0)
  validate(rng, np.random.Generator, 'rng')
  budget = require_feasible(spec, budget)
  if budget is None:
    return _draw(rng, spec, number)
  kept = np.zeros((0, len(spec), 5), np.int8)
  for _ in range(_ROUNDS):
    drawn = _draw(rng, spec, number)
    kept = np.concatenate([kept, drawn[count_params(spec, drawn) <= budget]])[:number]
    if len(kept) == number:
      return kept
  return np.concatenate([kept, shrink(rng, spec, _draw(rng, spec, number - len(kept)), budget)])


def shrink(
  rng: np.random.Generator, spec: Spec, genomes: np.ndarray, budget: int | None
) -> np.ndarray:
  """Repairs genomes to respect a budget.

  While a genome is over it, a random tensor in a random layer gets a random cheaper form. A layer
  with both C and E whose space has one shift first loses the cheaper of the two.

  Args:
    rng: NumPy generator.
    spec: the layers.
    genomes: int8 [genome, layer, 5].
    budget: most trained parameters of each; None for no limit.

  Returns:
    int8 [genome, layer, 5].
  """
  genomes = enforce_one_shift(spec, genomes)
  budget = require_feasible(spec, budget)
  if budget is None:
    return genomes
  # From here on an entry is one tensor of one layer.
  codes = genomes.reshape(len(genomes), -1)  # a view: writing to it changes the genomes
  costs_of_codes = spec.cost_table.reshape(codes.shape[1], -1)
  choices = spec._choices_table.astype(np.int64).reshape(codes.shape[1], -1)
  # The last code, which fills up a row of the table, costs the most: nothing is shrunk to it.
  choice_costs = np.take_along_axis(costs_of_codes, choices, axis=-1)
  entries = np.arange(codes.shape[1])
  costs = costs_of_codes[entries, codes]
  while len(over := np.flatnonzero(costs.sum(1) > budget)):
    can_get_cheaper = costs[over] > choice_costs.min(1)
    entry = (rng.random((len(over), len(entries))) * can_get_cheaper).argmax(1)
    cheaper = choice_costs[entry] < costs[over, entry, None]
    choice = (rng.random(cheaper.shape) * cheaper).argmax(1)
    codes[over, entry] = choices[entry, choice]
    costs[over, entry] = choice_costs[entry, choice]
  return genomes


def _draw(rng: np.random.Generator, spec: Spec, number: int) -> np.ndarray:
  """Genomes drawn uniformly from the search space, int8 [number, layer, 5]."""
  places = rng.integers(0, spec._num_choices, (number, len(spec), 5))
  if spec._one_shift.any():
    shifts = rng.integers(0, num_shifts(spec), (number, len(spec)))
    places = redraw_shifts(spec, places, shifts)
  return forms_at(spec, places)
