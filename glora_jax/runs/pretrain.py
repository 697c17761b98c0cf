"""Pretraining of a ViT from scratch: how the backbone in the package was made."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from glora_jax.data import augment
from glora_jax.data.normalization import NORMALIZATIONS, normalize
from glora_jax.data.tasks import fashion_mnist
from glora_jax.files import write_json
from glora_jax.method.validation import right_answers
from glora_jax.models import weights
from glora_jax.models.vit import ViT, expected_params
from glora_jax.runs import disk_room, schema
from glora_jax.runs.batch_sizes import UsedRecipe, fit_batch
from glora_jax.runs.schema import field, subsection
from glora_jax.runs.sections import LEAST_SEED, MOST_SEED, RECIPE_RANGES
from glora_jax.runs.workdir import claim
from glora_jax.training import loop, losses
from glora_jax.training.recipe import Recipe

CLASSES = fashion_mnist.FASHION_MNIST_CLASSES
BACKBONE = 'backbone.safetensors'  # in the workdir
RESULT = 'result.json'
SCORED_AT_ONCE = 500  # images

Arrays = tuple[np.ndarray, np.ndarray]  # images uint8 [n, side, side, 3], labels int32 [n]


@dataclasses.dataclass(frozen=True)
class Architecture:
  """The shape of the ViT."""

  patch_size: int = field(7, 'pixels of a patch', at_least=1)
  width: int = field(96, 'size of a token', at_least=1)
  depth: int = field(6, 'number of blocks', at_least=1)
  num_heads: int = field(3, 'attention heads', at_least=1)
  drop_path: float = field(
    0.05, 'largest probability that training drops a residual branch', at_least=0, below=1
  )


@dataclasses.dataclass(frozen=True)
class PretrainSettings:
  """All that a config says of pretraining. The defaults made the backbone in the package."""

  job: Literal['pretrain'] = field('pretrain', 'the job')
  seed: int = field(0, 'seed of all randomness', at_least=LEAST_SEED, at_most=MOST_SEED)
  data: str = field(
    '/usr/share/datasets/fashion-mnist', 'folder of the four files of Fashion-MNIST'
  )
  image_size: int = field(28, 'pixels of a side', at_least=1)
  normalization: str = field('unit', 'how pixels become numbers', choices=tuple(NORMALIZATIONS))
  shift: int = field(2, 'most pixels that a training image is shifted by', at_least=0)
  model: Architecture = Architecture()
  training: Recipe = subsection(
    Recipe(
      epochs=25,
      batch_size=128,
      learning_rate=1e-3,
      initial_learning_rate=1e-6,
      final_learning_rate=1e-6,
      warmup_epochs=2,
      weight_decay=0.05,
    ),
    **RECIPE_RANGES,
  )


def default_config() -> ml_collections.ConfigDict:
  """The defaults of `PretrainSettings` as a config whose fields can be changed."""
  return schema.to_config_dict(PretrainSettings())


def run(config: ml_collections.ConfigDict, workdir: str) -> dict[str, Any]:
  """Trains, tests and saves `backbone.safetensors`.

  Args:
    config: a config with the fields of `default_config`.
    workdir: folder for everything that is written.

  Returns:
    The content of `result.json`.

  Raises:
    ValueError, OSError: a wrong field, file or workdir, or one in use; the sentence names it.
    NonFiniteLossError: training diverged.
  """
  settings = schema.build(PretrainSettings, config.to_dict())
  data = fashion_mnist.fashion_mnist(os.path.expanduser(settings.data))
  model = ViT(num_classes=len(CLASSES), **dataclasses.asdict(settings.model))
  settings = check(settings, model, data, workdir)
  with claim(workdir):
    return _train(settings, model, data, workdir)


def check(
  settings: PretrainSettings, model: ViT, data: Mapping[str, Arrays], workdir: str
) -> PretrainSettings:
  """Checks all that training, testing and writing need, before the first step.

  Args:
    settings: the config.
    model: the ViT.
    data: images and labels by split, all of which have been read.
    workdir: folder for what is written.

  Returns:
    The settings, with a batch that the images fill.

  Raises:
    ValueError: images, batch and model do not go together, or the workdir has a backbone or a
      result already, which may be another job's.
    OSError: there is too little room on the disk.
  """
  size = settings.image_size
  sides = {images.shape[1:3] for images, _ in data.values()}
  if other := sides - {(size, size)}:
    raise ValueError(
      f'image_size={size} is not that of the images in {settings.data}, {sorted(other)[0]}; give '
      'theirs.'
    )
  augment.Augmentation(shift=settings.shift).check_size(size)
  counts = {split: len(labels) for split, (_, labels) in data.items()}
  recipe = fit_batch(settings.training, UsedRecipe('training', ('train',)), counts)
  disk_room.check_workdir(workdir, disk_room.bytes_of(expected_params(model, size)))
  for name in (BACKBONE, RESULT):
    path = os.path.join(workdir, name)
    if os.path.lexists(path):
      raise ValueError(f'{path} is there already; move it away, or choose another --workdir.')
  return dataclasses.replace(settings, training=recipe)


def _train(
  settings: PretrainSettings, model: ViT, data: Mapping[str, Arrays], workdir: str
) -> dict[str, Any]:
  """Trains and tests, and writes the backbone; the content of `result.json`."""
  init_key, train_key = jax.random.split(jax.random.key(settings.seed))
  size = settings.image_size
  params = model.init(init_key, jnp.zeros((1, size, size, 3)))['params']

  def loss_fn(params, frozen, images, labels, key):
    del frozen
    flip_key, shift_key, drop_key = jax.random.split(key, 3)
    images = augment.random_flip(flip_key, images)
    images = augment.random_shift(shift_key, images, settings.shift)
    inputs = normalize(images, settings.normalization)
    logits = model.apply({'params': params}, inputs, train=True, rngs={'drop_path': drop_key})
    return losses.cross_entropy(logits, labels)

  images, labels = map(jnp.asarray, data['train'])
  state = loop.fit(
    loss_fn, params, {}, images, labels, settings.training, train_key, title='pretrain'
  )
  result = {
    f'{split}_accuracy': accuracy(model, state.trainable, *data[split], settings.normalization)
    for split in ('train', 'test')
  } | {'steps': state.step}
  metadata = {
    'image_size': size,
    'normalization': settings.normalization,
    'classes': CLASSES,
    'test_accuracy': result['test_accuracy'],
  }
  weights.save(os.path.join(workdir, BACKBONE), model, state.trainable, metadata)
  write_json(os.path.join(workdir, RESULT), result, 'pretraining')
  return result


def accuracy(
  model: nn.Module,
  params: Any,
  images: np.ndarray,
  labels: np.ndarray,
  normalization: str,
  batch_size: int = SCORED_AT_ONCE,
) -> float:
  """Share of images whose class a model gets right.

  Args:
    model: a classifier.
    params: its parameters.
    images: uint8 [image, height, width, 3].
    labels: int [image].
    normalization: name of the normalization that the model expects.
    batch_size: images of one call.
  """

  @jax.jit
  def count_correct(params, images, labels):
    logits = model.apply({'params': params}, normalize(images, normalization))
    of_each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.sum(right_answers(logits, labels, of_each))

  correct = 0
  for first in range(0, len(labels), batch_size):
    rows = slice(first, first + batch_size)
    correct += count_correct(params, images[rows], labels[rows])
  return float(correct) / len(labels)
