"""No benchmark learns from what it tests on, whatever the seed."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from safetensors.numpy import save_file

from benchmarks.structures import tasks
from benchmarks.words import texts


def contents(split):
  """The examples of a split, as a set."""
  return {example.tobytes() for example in split.images}


def draw_images():
  """Splits of random pictures by two seeds."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (5600, 28, 28, 3), dtype=np.uint8)
  pool = tasks.Pool(images, rng.integers(5, size=5600), 5)
  return [tasks.draw(pool, seed) for seed in (0, 1)]


def draw_texts():
  """Splits of sentences by two seeds; each stands there twice, with other signs."""
  lines = [f'{i}\t{i % 97}\tword {i // 2}{"!" * (i % 2)}' for i in range(8_000)]
  rated = texts.distinct(lines)
  arrays = {'tokens': np.arange(len(rated))[:, None], 'ratings': np.array([*rated.values()])}
  save_file(arrays, f'{texts.FOLDER}/films.safetensors')
  assert len(rated) == 4_000
  return [texts.draw('films', seed) for seed in (0, 1)]


@pytest.mark.parametrize('draw', [draw_images, draw_texts])
def test_no_seed_learns_from_a_test_example_and_the_test_examples_stay(draw, tmp_path, monkeypatch):
  monkeypatch.setattr(texts, 'FOLDER', str(tmp_path))
  first, second = draw()
  assert_array_equal(first['test'].images, second['test'].images)
  assert contents(first['train']) != contents(second['train'])
  for found in (first, second):
    assert len(contents(found['train'])) == len(found['train'].images)
    assert not contents(found['test']) & contents(found['train'])
