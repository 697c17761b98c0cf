"""What the tests of training share: a model that compiles fast, its data, its adapted variables."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from comparing import ready

import glora_jax
from glora_jax.method.adapted import Adapted

NUM_IMAGES = 24
NUM_CLASSES = 3


class Block(nn.Module):
  """A residual branch that is dropped now and then, features and path."""

  drop: float

  @nn.compact
  def __call__(self, x, train):
    branch = nn.gelu(nn.Dense(x.shape[-1], name='dense')(x))
    branch = nn.Dropout(self.drop, deterministic=not train)(branch)
    if train and self.drop:
      keep = jax.random.bernoulli(self.make_rng('drop_path'), 1 - self.drop, (len(x), 1))
      branch = branch * keep
    return x + branch, None


class Tiny(nn.Module):
  """Two scanned blocks and a head."""

  drop: float = 0.0

  @nn.compact
  def __call__(self, x, train=False):
    blocks = nn.scan(
      Block,
      variable_axes={'params': 0},
      split_rngs={'params': True, 'dropout': True, 'drop_path': True},
      in_axes=nn.broadcast,
      length=2,
    )
    x, _ = blocks(self.drop, name='blocks')(x, train)
    return nn.Dense(NUM_CLASSES, name='head')(x)


class Problem(NamedTuple):
  adapted: Adapted
  variables: dict[str, Any]
  images: jax.Array
  labels: jax.Array

  def split(self):
    return self.adapted.split(self.variables)

  @property
  def data(self):
    return self.images, self.labels


@functools.cache
def problem(drop=0.1):
  """Images of three classes, and an adapted model with random supports."""
  labels = jnp.arange(NUM_IMAGES) % NUM_CLASSES
  patterns = jax.random.normal(jax.random.key(5), (NUM_CLASSES, 8))
  images = 2 * patterns[labels] + jax.random.normal(jax.random.key(0), (NUM_IMAGES, 8))
  adapted, variables = ready(Tiny(drop), images[:1], space=glora_jax.SearchSpace((2, 4)))
  variables['glora'] = jax.tree.map(lambda entry: 0.1 * entry, variables['glora'])
  return Problem(adapted, variables, images, labels)


class Stream:
  """The images and labels in the order of indices, whose reading is an event: the indices."""

  def __init__(self, events):
    self.events = events

  def __len__(self):
    return NUM_IMAGES

  def batches(self, indices):
    for index in indices:
      self.events.append(index)
      yield problem().images[index], problem().labels[index]
