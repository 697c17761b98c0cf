"""Small models that cases are about, made once in a process."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import glora_jax
from glora_jax import Adapted, Layer, SearchSpace, Spec
from glora_jax.models.vit import ViT

CLASSES = ('a', 'b', 'c', 'd', 'e')
IMAGE_SIZE = 8
SPECS = (
  Spec((Layer('attn/qkv', 8, 24), Layer('mlp/fc1', 8, 32, bias=False))),
  Spec((Layer('dense', 4, 3, space=SearchSpace(ranks=(2, 4))),)),
  Spec(tuple(Layer(f'b/{n}', 8, 8, space=SearchSpace.distinct(ranks=(1, 2))) for n in range(3))),
)


class Problem(NamedTuple):
  """An adapted model with variables, a genome and inputs."""

  adapted: Adapted
  variables: dict[str, Any]
  genome: np.ndarray
  inputs: jax.Array


def randomized(tree: Any, seed: int) -> Any:
  """A tree of the same shapes and dtypes with normal entries."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype), tree)


@functools.cache
def dense() -> Problem:
  """One linear layer, adapted."""
  inputs = jnp.ones((2, 4))
  adapted = glora_jax.adapt(nn.Dense(3, name='Dense'), inputs, space=SearchSpace(ranks=(2, 4)))
  params = {'kernel': np.ones((4, 3), np.float32), 'bias': np.zeros(3, np.float32)}
  variables = randomized(adapted.init(jax.random.key(0), params), 1)
  return Problem(adapted, variables, glora_jax.preset(adapted.spec, 'lora'), inputs)


@functools.cache
def vit() -> tuple[ViT, Any]:
  """A small ViT that every format can hold, and its parameters."""
  model = ViT(len(CLASSES), patch_size=4, width=12, depth=2, num_heads=2)
  images = jax.ShapeDtypeStruct((1, IMAGE_SIZE, IMAGE_SIZE, 3), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)['params']
  return model, randomized(shapes, 0)
