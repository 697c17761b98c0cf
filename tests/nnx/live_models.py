"""NNX models that attached ones are tested on, and what their tests share."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from nnx_zoo import EncoderBlock
from trees import normal

import glora_jax
from glora_jax.nnx import live

RANKS = (2, 4)
SPACE = glora_jax.SearchSpace(RANKS)
TOKENS = normal(4, 3, 8)


class Classifier(nnx.Module):
  """A block, a batch norm and a head, which other methods call too."""

  def __init__(self, seed=0):
    rngs = nnx.Rngs(seed)
    self.block = EncoderBlock(rngs=rngs)
    self.norm = nnx.BatchNorm(8, momentum=0.5, rngs=rngs)
    self.head = nnx.Linear(8, 3, rngs=rngs)

  def features(self, x):
    return self.norm(self.block(x)).mean(1)

  def __call__(self, x):
    return self.head(self.features(x))


def randomize(model, seed=1, scale=0.3):
  """Puts normal numbers in the place of an adapter's arrays."""
  rng = np.random.default_rng(seed)
  for variable in variables(model, glora_jax.nnx.AdapterParam):
    values = rng.normal(0, scale, variable.shape)
    variable.set_value(jnp.asarray(values, variable.get_value().dtype))


def variables(model, kind):
  """The variables of a type."""
  return [variable for _, variable in nnx.to_flat_state(nnx.state(model, kind))]


def genomes(model, number, seed=0):
  """Random genomes of an attached model."""
  rng = np.random.default_rng(seed)
  return glora_jax.random_genomes(rng, live.spec(model), number)


@nnx.jit
def call(model, x):
  """What a model returns; its state moves on."""
  return model(x)
