"""An NNX model that attached ones are tested on, and what their tests share."""

from flax import nnx
from small_models import LiveMlp
from trees import normal, randomized

import glora_jax

SPACE = glora_jax.SearchSpace((1, 2))
X = normal(10, 6)


def fresh(**options):
  """A small classifier, attached, in evaluation mode."""
  model = glora_jax.nnx.attach(LiveMlp(), X, space=SPACE, **options)
  model.eval()
  return model


def randomize(model):
  """Puts normal numbers in the place of an adapter's arrays."""
  nnx.update(model, randomized(nnx.state(model, glora_jax.nnx.AdapterParam)))


@nnx.jit
def call(model, x):
  """What a model returns; its state moves on."""
  return model(x)
