"""What scorers refuse, before what they compute is believed."""

from __future__ import annotations

from typing import Any

import numpy as np

from glora_jax.method.genomes import check_one_genome, check_population
from glora_jax.method.groups import check_storage
from glora_jax.method.supports import COLLECTION
from glora_jax.method.validation import (
  as_numbers,
  check_classes,
  check_collections,
  check_only_arrays,
  is_known,
)
from glora_jax.search.evaluator import Evaluator


class NonFiniteError(ValueError):
  """A loss or a gradient is not finite, as that of a model whose training has diverged."""


class NoGradientError(ValueError):
  """No layer could change a loss, as under a head of zeros, or one certain of every label."""


class _Compiled:
  """A compiled function of variables, genomes and images, which looks at the first two.

  Attributes:
    compiled: the function itself, `(variables, genomes, images, ...) -> anything`.
  """

  def __init__(self, evaluator: Evaluator, compiled: Any):
    self._evaluator = evaluator
    self.compiled = compiled

  def _check_genomes(self, genomes: Any) -> None:
    check_population(self._evaluator.adapted.spec, genomes)

  def _as_genomes(self, variables: Any, genomes: Any) -> Any:
    """Genomes as an array, after a look at them and at the variables; not where they are traced."""
    adapted = self._evaluator.adapted
    if is_known(genomes):
      self._check_genomes(genomes)
      check_collections(variables)
      check_storage(adapted.groups, variables[COLLECTION], genomes)
    check_only_arrays('variables', variables)
    return as_numbers('genomes', genomes)  # lists would be an argument for each number

  def lower(self, *arguments: Any) -> Any:
    """What `jax.jit` lowers."""
    return self.compiled.lower(*arguments)

  def trace(self, *arguments: Any) -> Any:
    """What `jax.jit` traces; `jax.export` takes what has this."""
    return self.compiled.trace(*arguments)


class Checked(_Compiled):
  """A compiled function `(variables, genomes, images, labels, ...)`, which looks at all four."""

  def __call__(self, variables: Any, genomes: Any, images: Any, labels: Any, *others: Any) -> Any:
    """What the function returns.

    Raises:
      ValueError: a genome does not fit the model, or has a higher rank than the variables store;
        the variables lack a collection; or a label is no class. What is traced is not looked at.
    """
    genomes = self._as_genomes(variables, genomes)
    images, labels = as_numbers('images', images), as_numbers('labels', labels)
    result = self.compiled(variables, genomes, images, labels, *others)
    # How many classes there are is known once the model has been traced, and nothing waits here.
    check_classes(labels, min(self._evaluator.traced_classes))
    return result


class CheckedPredictor(_Compiled):
  """A compiled function `(variables, genome, images)`, which looks at all three."""

  def _check_genomes(self, genomes: Any) -> None:
    check_one_genome(self._evaluator.adapted.spec, genomes, 'The predictor')

  def __call__(self, variables: Any, genome: Any, images: Any) -> Any:
    """What the function returns.

    Raises:
      ValueError: the genome does not fit the model, is a population, or has a higher rank than the
        variables store; the variables lack a collection; or there is no image.
    """
    genome = self._as_genomes(variables, genome)
    images = as_numbers('images', images)
    if not np.ndim(images) or not len(images):
      raise ValueError(
        f'The images are {list(np.shape(images))}; they must be [image, ...], with one at least.'
      )
    return self.compiled(variables, genome, images)
