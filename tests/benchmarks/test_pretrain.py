"""How the backbone in the package was made: its images are read, what is trained can be loaded."""

import dataclasses
import gzip
import struct

import numpy as np

from benchmarks import pretrain
from glora_jax.models import weights


def write_fashion_mnist(folder):
  """Its four files, with a few images of noise."""
  rng = np.random.default_rng(0)
  written = {}
  for prefix, number in (('train', 16), ('t10k', 5)):
    images = rng.integers(0, 256, (number, 28, 28)).astype(np.uint8)
    labels = np.arange(number, dtype=np.uint8) % 10
    for name, array in (('images-idx3', images), ('labels-idx1', labels)):
      header = struct.pack(f'>HBB{array.ndim}I', 0, 8, array.ndim, *array.shape)
      path = folder / f'{prefix}-{name}-ubyte.gz'
      path.write_bytes(gzip.compress(header + array.tobytes()))
    written[prefix] = images, labels
  return written


def test_a_backbone_is_trained_on_the_images_of_four_files(tmp_path):
  written = write_fashion_mnist(tmp_path)
  read = pretrain.read_fashion_mnist(tmp_path)
  for split, prefix in (('train', 'train'), ('test', 't10k')):
    np.testing.assert_array_equal(read[split][0], np.repeat(written[prefix][0][..., None], 3, -1))
    np.testing.assert_array_equal(read[split][1], written[prefix][1])
  recipe = dataclasses.replace(pretrain.RECIPE, epochs=1, warmup_epochs=0, batch_size=16)
  path = tmp_path / 'backbone.safetensors'
  accuracies = pretrain.pretrain(tmp_path, path, recipe)
  assert accuracies.keys() == {'train_accuracy', 'test_accuracy'}
  model, _, metadata = weights.load(path)
  assert model == weights.load(weights.EMBEDDED_FILE)[0]
  assert metadata['test_accuracy'] == accuracies['test_accuracy']
