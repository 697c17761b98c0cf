"""The benchmark on real texts: its encoder, its classes, and what is learned from and tested on."""

import numpy as np
from safetensors.numpy import save_file

from benchmarks.words import encoder, texts
from glora_jax.method.adapt import adapt_function

WIDTH, HIDDEN = 24, 48
LINEAR = {
  **{f'attention.self.{name}': (WIDTH, WIDTH) for name in ('query', 'key', 'value')},
  'attention.output.dense': (WIDTH, WIDTH),
  'intermediate.dense': (HIDDEN, WIDTH),
  'output.dense': (WIDTH, HIDDEN),
}


def checkpoint():
  """The arrays of a small random encoder, by their names in a file."""
  shapes = {f'embeddings.{kind}_embeddings.weight': (9, WIDTH) for kind in ('word', 'position')}
  shapes |= {'embeddings.token_type_embeddings.weight': (2, WIDTH), 'pooler.dense.bias': (WIDTH,)}
  norms = ['embeddings.LayerNorm']
  for layer in range(2):
    place = f'encoder.layer.{layer}'
    norms += [f'{place}.attention.output.LayerNorm', f'{place}.output.LayerNorm']
    shapes |= {f'{place}.{name}.weight': shape for name, shape in LINEAR.items()}
    shapes |= {f'{place}.{name}.bias': shape[:1] for name, shape in LINEAR.items()}
  shapes |= {f'{name}.{part}': (WIDTH,) for name in norms for part in ('weight', 'bias')}
  rng = np.random.default_rng(0)
  return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_the_encoder_has_a_row_for_each_linear_layer_and_padding_says_nothing(tmp_path):
  save_file(checkpoint(), tmp_path / 'encoder.safetensors')
  params = encoder.load(tmp_path / 'encoder.safetensors', classes=3)
  tokens = np.array([[4, 7, 5, 2], [4, 8, 2, 0]])
  assert len(adapt_function(encoder.logits, params, tokens).spec) == 2 * len(LINEAR)
  alone = encoder.features(params, tokens[1:, :3])
  padded = encoder.features(params, np.pad(tokens, ((0, 0), (0, 4))))
  np.testing.assert_allclose(padded[1:], alone, atol=1e-5)
  assert not np.allclose(padded[0], padded[1], atol=0.1)


def test_no_sentence_that_is_tested_on_is_ever_learned_from(tmp_path, monkeypatch):
  monkeypatch.setattr(texts, 'FOLDER', str(tmp_path))
  lines = [f'{i}\t{i % 97}\tword {i // 2}{"!" * (i % 2)}' for i in range(8_000)]
  rated = texts.distinct(lines)
  assert list(rated)[:2] == ['word 0', 'word 1']
  assert len(rated) == 4_000
  ratings = np.array([*rated.values()])
  save_file(
    {'tokens': np.arange(4_000)[:, None], 'ratings': ratings}, tmp_path / 'films.safetensors'
  )
  first, second = (texts.draw('films', seed) for seed in (0, 1))
  np.testing.assert_array_equal(first['test'].images, second['test'].images)
  assert len(first['train'].images) == texts.TRAIN
  for found in (first, second):
    both = [*found['train'].images.ravel(), *found['test'].images.ravel()]
    assert len({*both}) == texts.TRAIN + texts.TESTS
  assert not np.array_equal(first['train'].images, second['train'].images)
  counts = np.bincount(texts.quantiles(ratings))
  assert len(counts) == texts.CLASSES
  assert np.ptp(counts) < 0.05 * len(ratings)
