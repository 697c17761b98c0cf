"""How the backbone in the package was made: its images are read, what is trained can be loaded."""

import dataclasses
import gzip
import struct

import numpy as np

from benchmarks import pretrain
from glora_jax.models import weights


def test_a_backbone_is_trained_on_the_images_of_four_files(tmp_path):
  rng, written = np.random.default_rng(0), {}
  for split, prefix, number in (('train', 'train', 16), ('test', 't10k', 5)):
    images = rng.integers(0, 256, (number, 28, 28)).astype(np.uint8)
    labels = np.arange(number, dtype=np.uint8) % 10
    for name, array in (('images-idx3', images), ('labels-idx1', labels)):
      header = struct.pack(f'>HBB{array.ndim}I', 0, 8, array.ndim, *array.shape)
      path = tmp_path / f'{prefix}-{name}-ubyte.gz'
      path.write_bytes(gzip.compress(header + array.tobytes()))
    written[split] = np.repeat(images[..., None], 3, -1), labels
  for split, read in pretrain.read_fashion_mnist(tmp_path).items():
    for found, expected in zip(read, written[split], strict=True):
      np.testing.assert_array_equal(found, expected)
  recipe = dataclasses.replace(pretrain.RECIPE, epochs=1, warmup_epochs=0, batch_size=16)
  path = tmp_path / 'backbone.safetensors'
  accuracies = pretrain.pretrain(tmp_path, path, recipe)
  assert accuracies.keys() == {'train_accuracy', 'test_accuracy'}
  model, _, metadata = weights.load(path)
  assert model == weights.load(weights.EMBEDDED_FILE)[0]
  assert metadata['test_accuracy'] == accuracies['test_accuracy']
