"""How the backbone in the package was made: a small ViT learns Fashion-MNIST from scratch.

  apt-get install dataset-fashion-mnist
  python -m benchmarks.pretrain [--data FOLDER] [--output backbone.safetensors]

Reached: 89.1% of Fashion-MNIST's 10,000 test images, with seed 0 (2026-11-24).
Time: half an hour on two cores of an AMD EPYC.
"""

import dataclasses
import gzip
import os

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machinery.embedded_task import EMBEDDED_VIT, IMAGE_SIZE
from benchmarks.machinery.measuring import make_parser, print_result
from glora_jax.training import loop, losses
from glora_jax.training.recipe import Recipe
from glora_jax.vision.data import augment
from glora_jax.vision.data.normalization import normalize
from glora_jax.vision.models import weights

CLASSES = (
  *('T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat'),
  *('Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot'),
)
NORMALIZATION = 'unit'
SHIFT = 2  # pixels
SEED = 0
RECIPE = Recipe(
  epochs=25,
  warmup=0.08,
  batch_size=128,
  initial_learning_rate=1e-6,
  learning_rate=1e-3,
  final_learning_rate=1e-6,
  weight_decay=0.05,
)


def read_fashion_mnist(folder: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """'train' and 'test' (Xiao et al. 2017, arXiv 1708.07747) from the four original files.

  Returns:
    Of each the images, uint8 [n, 28, 28, 3] (the grey value three times), and labels, int32 [n].
  """

  def read(name: str, header: int) -> np.ndarray:
    with gzip.open(os.path.join(folder, name)) as file:
      return np.frombuffer(file.read(), np.uint8)[header:]

  splits = {}
  for split, prefix in (('train', 'train'), ('test', 't10k')):
    pixels = read(f'{prefix}-images-idx3-ubyte.gz', header=16).reshape(-1, 28, 28, 1)
    labels = read(f'{prefix}-labels-idx1-ubyte.gz', header=8)
    splits[split] = np.repeat(pixels, 3, axis=-1), labels.astype(np.int32)
  return splits


def pretrain(folder: str, output: str, recipe: Recipe = RECIPE) -> dict[str, float]:
  """Trains the ViT, tests it and writes it; returns its accuracies."""
  data = read_fashion_mnist(folder)
  model = EMBEDDED_VIT.clone(drop_path=0.05)
  init_key, train_key = jax.random.split(jax.random.key(SEED))
  params = model.init(init_key, jnp.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 3)))['params']

  def loss_fn(params, frozen, batch, key):
    images, labels = batch
    flip_key, shift_key, drop_key = jax.random.split(key, 3)
    images = augment.random_flip(flip_key, images)
    images = augment.random_shift(shift_key, images, SHIFT)
    inputs = normalize(images, NORMALIZATION)
    logits = model.apply({'params': params}, inputs, train=True, rngs={'drop_path': drop_key})
    return losses.cross_entropy(logits, labels)

  state = loop.minimize(loss_fn, params, {}, data['train'], recipe, train_key, title='pretrain')

  @jax.jit
  def predict(params, images):
    return model.apply({'params': params}, normalize(images, NORMALIZATION)).argmax(-1)

  accuracies = {}
  for split, (images, labels) in data.items():
    answers = [predict(state.trainable, images[i : i + 500]) for i in range(0, len(images), 500)]
    accuracies[f'{split}_accuracy'] = float(np.mean(np.concatenate(answers) == labels))
  metadata = {
    'image_size': IMAGE_SIZE,
    'normalization': NORMALIZATION,
    'classes': CLASSES,
    'test_accuracy': accuracies['test_accuracy'],
  }
  weights.save(output, model, state.trainable, metadata)
  return accuracies


if __name__ == '__main__':
  parser = make_parser(__doc__, quick='one epoch')
  parser.add_argument('--data', default='/usr/share/datasets/fashion-mnist')
  parser.add_argument('--output', default='backbone.safetensors')
  arguments = parser.parse_args()
  recipe = dataclasses.replace(RECIPE, epochs=1, warmup=0.0) if arguments.quick else RECIPE
  print_result('pretrain', pretrain(arguments.data, arguments.output, recipe))
