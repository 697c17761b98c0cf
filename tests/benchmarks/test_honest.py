"""No benchmark learns from what it tests on, whatever the seed."""

import re
import types

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from safetensors.numpy import save_file

from benchmarks.study import drawings as pictures
from benchmarks.study import language, tasks
from benchmarks.study import words as texts


def contents(examples):
  """The examples of an array, as a set."""
  return {example.tobytes() for example in examples}


def draw_images():
  """Splits of random pictures by two seeds."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (5600, 28, 28, 3), dtype=np.uint8)
  pool = tasks.Pool(images, rng.integers(5, size=5600), 5)
  return [images_of(tasks.draw(pool, seed)) for seed in (0, 1)]


def images_of(splits):
  """The arrays of splits."""
  return {name: split.images for name, split in splits.items()}


def draw_texts():
  """Splits of sentences by two seeds; each stands there twice, with other signs."""
  lines = [f'{i}\t{i % 97}\tword {i // 2}{"!" * (i % 2)}' for i in range(8_000)]
  rated = texts.distinct(lines)
  arrays = {'tokens': np.arange(len(rated))[:, None], 'ratings': np.array([*rated.values()])}
  save_file(arrays, f'{texts.FOLDER}/films.safetensors')
  assert len(rated) == 4_000
  return [images_of(texts.draw('films', seed)) for seed in (0, 1)]


def draw_drawings():
  """Splits of emoji by two seeds; both hands draw the same, so that it shows what was learned."""
  labels = np.arange(1_900) % 38
  drawn = np.random.default_rng(0).integers(0, 256, (1_900, 4, 4, 3), dtype=np.uint8)
  found = {'pictures': np.stack([drawn, drawn]), 'labels': labels}
  save_file(found, f'{pictures.FOLDER}/emoji.safetensors')
  return [images_of(pictures.draw('emoji', seed)) for seed in (0, 1)]


def draw_mood():
  """Splits of sentences for a language model by two seeds; each word is a token, its number."""

  def tokenize(sentences):
    ids = [[int(word) for word in re.findall(r'\d+', sentence)] for sentence in sentences]
    return types.SimpleNamespace(input_ids=ids)

  def arrays_of(splits):
    return {name: found['tokens'] for name, found in splits.items()}

  return [arrays_of(language.mood(tokenize, seed)) for seed in (0, 1)]


@pytest.mark.parametrize('draw', [draw_images, draw_texts, draw_drawings, draw_mood])
def test_no_seed_learns_from_a_test_example_and_the_test_examples_stay(draw, tmp_path, monkeypatch):
  monkeypatch.setattr(texts, 'FOLDER', str(tmp_path))
  monkeypatch.setattr(pictures, 'FOLDER', str(tmp_path))
  rated = {f'{i} {i + 1}': i % 97 for i in range(2_000)}
  monkeypatch.setattr(language, 'read_ratings', lambda task: rated)
  first, second = draw()
  assert_array_equal(first['test'], second['test'])
  assert contents(first['train']) != contents(second['train'])
  for found in (first, second):
    assert len(contents(found['train'])) == len(found['train'])
    assert not contents(found['test']) & contents(found['train'])
