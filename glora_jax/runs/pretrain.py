"""Pretraining of a ViT from scratch: how the embedded backbone was made."""

from __future__ import annotations

import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.data import augment
from glora_jax.data.normalization import normalize
from glora_jax.data.tasks import fashion_mnist
from glora_jax.files import write_json
from glora_jax.models import weights
from glora_jax.models.vit import ViT
from glora_jax.training import loop, losses, recipe


def accuracy(
  model: nn.Module,
  params,
  images: np.ndarray,
  labels: np.ndarray,
  normalization: str,
  batch_size: int = 500,
) -> float:
  """Share of images [n, height, width, 3] (uint8) whose class the model gets right."""
  correct = jax.jit(
    lambda params, x, y: jnp.sum(
      model.apply({'params': params}, normalize(x, normalization)).argmax(-1) == y
    )
  )
  batches = range(0, len(labels), batch_size)
  return float(
    sum(correct(params, images[i : i + batch_size], labels[i : i + batch_size]) for i in batches)
  ) / len(labels)


def run(config, workdir: str) -> dict:
  """Trains, tests and saves `backbone.safetensors`; returns what it writes into `result.json`."""
  os.makedirs(workdir, exist_ok=True)
  data = fashion_mnist.fashion_mnist(config.data)
  model = ViT(num_classes=len(fashion_mnist.FASHION_MNIST_CLASSES), **config.model)
  init_key, train_key = jax.random.split(jax.random.key(config.seed))
  params = model.init(init_key, jnp.zeros((1, config.image_size, config.image_size, 3)))['params']

  def loss_fn(params, frozen, images, labels, key):
    del frozen
    flip_key, shift_key, drop_key = jax.random.split(key, 3)
    images = augment.random_shift(shift_key, augment.random_flip(flip_key, images), config.shift)
    logits = model.apply(
      {'params': params},
      normalize(images, config.normalization),
      train=True,
      rngs={'drop_path': drop_key},
    )
    return losses.cross_entropy(logits, labels)

  images, labels = (jnp.asarray(x) for x in data['train'])
  state = loop.fit(
    loss_fn,
    params,
    {},
    images,
    labels,
    recipe.Recipe(**config.training),
    train_key,
    title='pretrain',
  )
  result = {
    'train_accuracy': accuracy(model, state.trainable, *data['train'], config.normalization),
    'test_accuracy': accuracy(model, state.trainable, *data['test'], config.normalization),
    'steps': state.step,
  }
  weights.save(
    os.path.join(workdir, 'backbone.safetensors'),
    model,
    state.trainable,
    {
      'image_size': config.image_size,
      'normalization': config.normalization,
      'classes': fashion_mnist.FASHION_MNIST_CLASSES,
      'test_accuracy': result['test_accuracy'],
    },
  )
  write_json(os.path.join(workdir, 'result.json'), result)
  return result
