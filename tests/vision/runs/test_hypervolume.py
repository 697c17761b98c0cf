"""The volume below a front, against its definition."""

import numpy as np
import pytest

from glora_jax.method.draws import random_genomes
from glora_jax.method.genomes import count_params, largest_genome
from glora_jax.method.space import Layer, Spec
from glora_jax.search.archive import Archive
from glora_jax.vision.runs.stages.results import hypervolume, hypervolume_by_generation


def test_hypervolume_by_hand():
  assert hypervolume(np.array([0]), np.array([0.0]), 10) == 1
  two_points = hypervolume(np.array([5, 2]), np.array([0.2, 0.5]), 10)
  assert two_points == pytest.approx((3 * 0.5 + 5 * 0.8) / 10)
  assert hypervolume(np.array([20]), np.array([0.0]), 10) == 0
  assert hypervolume(np.array([0, 2]), np.array([0.25, 0.0]), 0) == 0.75
  assert hypervolume(np.array([2]), np.array([0.0]), 0) == 0


def test_hypervolume_of_every_generation_is_that_of_all_before_it():
  spec, rng = Spec((Layer('dense', 8, 8),)), np.random.default_rng(0)
  archive = Archive.empty(spec)
  for generation in range(4):
    correct = rng.integers(0, 100, 5)
    archive = archive.extended(random_genomes(rng, spec, 5), correct, 100.0 - correct, generation)
  params, most = count_params(spec, archive.genomes), count_params(spec, largest_genome(spec))
  error = 1 - archive.correct / 100
  expected = [hypervolume(params[:end], error[:end], most) for end in range(5, 21, 5)]
  assert hypervolume_by_generation(archive, spec, 100) == expected == sorted(expected)
