"""The volume below a front, against its definition."""

import numpy as np
import pytest

from glora_jax.method.draws import random_genomes
from glora_jax.method.genomes import count_params, largest_genome
from glora_jax.method.space import Layer, Spec
from glora_jax.search.archive import Archive
from glora_jax.vision.runs.stages.results import hypervolumes

SPEC = Spec((Layer('dense', 8, 8),))


def scored(genomes, correct):
  """An archive of one structure for each generation, scored on 100 images."""
  archive = Archive.empty(SPEC)
  for generation, (genome, number) in enumerate(zip(genomes, correct, strict=True)):
    archive = archive.extended(genome[None], [number], [1.0], generation)
  return archive


def test_a_generation_has_the_share_of_pairs_that_a_structure_so_far_matches_or_beats():
  rng = np.random.default_rng(0)
  genomes, correct = random_genomes(rng, SPEC, 20), rng.integers(0, 100, 20)
  params, most = count_params(SPEC, genomes), count_params(SPEC, largest_genome(SPEC))
  expected = []
  for end in range(1, 21):
    best = [correct[:end][params[:end] <= number].max(initial=0) for number in range(most)]
    expected.append(np.mean(best) / 100)
  assert hypervolumes(scored(genomes, correct), SPEC, 100) == pytest.approx(expected)
  # Without parameters it is the accuracy.
  assert hypervolumes(scored(np.zeros_like(genomes[:1]), [75]), SPEC, 100) == [0.75]
