"""Where structures are made: the embedded backbone, and the images and the head of a seed."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.machinery.embedded_task import IMAGE_SIZE
from benchmarks.structures.tasks import draw, load_pool
from glora_jax.method.adapt import adapt
from glora_jax.method.adapted import Adapted
from glora_jax.method.space import SearchSpace
from glora_jax.training.fit import linear_probe
from glora_jax.training.losses import classification
from glora_jax.training.recipe import Recipe
from glora_jax.vision.data import normalization
from glora_jax.vision.data.pipeline import Split
from glora_jax.vision.models import weights

RANKS = tuple(range(1, 17))  # 16 of LoRA on qkv at 36,864 parameters
BATCH_SIZE = 64
HEAD = Recipe(
  epochs=6,
  warmup_epochs=1,
  batch_size=BATCH_SIZE,
  learning_rate=1.6e-2,
  final_learning_rate=1e-5,
)
PURPOSES = ('init', 'head', 'order', 'structure')  # of a seed's random keys


@dataclasses.dataclass(frozen=True, eq=False)
class Backbone:
  """The embedded backbone, adapted, with a new head.

  Attributes:
    adapted: what `glora_jax.adapt` returned.
    params: of the model before any training.
    normalization: name of that of its inputs.
  """

  adapted: Adapted
  params: Any
  normalization: str

  def preprocess(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Images uint8 to inputs of the model."""
    del key
    return normalization.normalize(images, self.normalization)


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
  """Where the structures of a task and seed are made.

  Attributes:
    base: the backbone.
    variables: that a training starts from, with the warm head and usual starting values.
    splits: the images and labels on the device, by split.
    key: random key.
  """

  base: Backbone
  variables: Any
  splits: dict[str, Split]
  key: jax.Array


def key_of(seed: int, purpose: str) -> jax.Array:
  """A seed's random key for one of `PURPOSES`."""
  return jax.random.split(jax.random.key(seed), len(PURPOSES))[PURPOSES.index(purpose)]


@functools.cache
def backbone(num_classes: int) -> Backbone:
  """The embedded backbone with a new head, all forms and ranks on offer."""
  loaded = weights.load(weights.EMBEDDED_FILE)
  refitted = weights.refit(*loaded, num_classes=num_classes, image_size=IMAGE_SIZE)
  model, params, metadata = refitted
  model = model.clone(drop_path=0.1, remat=None, unroll=model.depth)
  inputs = jnp.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 3))
  adapted = adapt(model, inputs, space=SearchSpace(ranks=RANKS))
  return Backbone(adapted, params, metadata['normalization'])


@functools.lru_cache(maxsize=16)
def setting(task: str, seed: int) -> Setting:
  """The setting of a task and seed, kept for the next job."""
  pool = load_pool(task)
  base = backbone(pool.num_classes)
  splits = {name: Split(*map(jnp.asarray, split)) for name, split in draw(pool, seed).items()}
  variables = linear_probe(
    base.adapted,
    base.adapted.init(key_of(seed, 'init'), base.params),
    classification(lambda images, key: base.preprocess(images)),
    splits['train'],
    HEAD,
    key=key_of(seed, 'head'),
    progress=False,
  )
  return Setting(base, variables, splits, key_of(seed, 'structure'))
