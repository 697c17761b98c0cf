"""NNX models that attached ones are tested on, and what their tests share."""

from flax import nnx
from nnx_zoo import EncoderBlock
from trees import normal, randomized

import glora_jax

SPACE = glora_jax.SearchSpace((2, 4))
TOKENS = normal(4, 3, 8)


class Classifier(nnx.Module):
  """A block, a batch norm and a head, which other methods call too."""

  def __init__(self):
    rngs = nnx.Rngs(0)
    self.block = EncoderBlock(rngs=rngs)
    self.norm = nnx.BatchNorm(8, momentum=0.5, rngs=rngs)
    self.head = nnx.Linear(8, 3, rngs=rngs)

  def features(self, x):
    return self.norm(self.block(x)).mean(1)

  def __call__(self, x):
    return self.head(self.features(x))


def randomize(model):
  """Puts normal numbers in the place of an adapter's arrays."""
  nnx.update(model, randomized(nnx.state(model, glora_jax.nnx.AdapterParam)))


@nnx.jit
def call(model, x):
  """What a model returns; its state moves on."""
  return model(x)
