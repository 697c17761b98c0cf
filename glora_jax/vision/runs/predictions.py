"""What one structure answers: the most probable class of every image, and its probability."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from glora_jax import mesh as meshes
from glora_jax.compiling import reported
from glora_jax.method.adapted import Adapted, call_model
from glora_jax.method.sample import Preprocess
from glora_jax.training.batches import split_traced

BLOCK = 256  # images at a time


class Predictions(NamedTuple):
  """The answers of one structure for each image.

  Attributes:
    classes: the most probable class, int32 [image].
    probabilities: its probability, float32 [image].
  """

  classes: Any
  probabilities: Any

  def are(self, labels: Any) -> Any:
    """Which of them are these labels, bool [image]; none whose probability is not finite."""
    return (self.classes == labels) & np.isfinite(self.probabilities)


def make_predictor(
  adapted: Adapted,
  preprocess: Preprocess,
  *,
  classes: np.ndarray | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> Callable[[Any, Any], Predictions]:
  """A compiled function that predicts the classes of images with a folded structure.

  Of what it computes it keeps two numbers an image.

  Args:
    adapted: the adapted model, whose own structure does not matter.
    preprocess: `(images, None) -> inputs` of the model, for one block after another.
    classes: the classes that may be answered, bool [class]; None for all.
    mesh: devices that the images of a block are split over; what comes back is whole on every one.
      None for one device.

  Returns:
    The function `(variables, images) -> Predictions`, with folded parameters in the variables, and
    images [image, ...].
  """
  program = functools.partial(_predict, adapted, preprocess, classes, mesh)
  whole = None if mesh is None else meshes.replicated(mesh)
  return reported('predictions', jax.jit(program, out_shardings=whole))


def _predict(
  adapted: Adapted,
  preprocess: Preprocess,
  classes: np.ndarray | None,
  mesh: jax.sharding.Mesh | None,
  variables: Any,
  images: jax.Array,
) -> Predictions:
  """See `make_predictor`; images that are split over the devices are gathered first."""
  number, shards = len(images), 1 if mesh is None else mesh.size
  size = -(-min(BLOCK, number) // shards) * shards
  rows = np.arange(-(-number // size) * size, dtype=np.int32).reshape(-1, size)
  rows = np.minimum(rows, number - 1)  # the last image fills up the last block
  if mesh is not None:
    images = jax.lax.with_sharding_constraint(images, meshes.replicated(mesh))

  def of_block(rows: jax.Array) -> Predictions:
    inputs = preprocess(images[split_traced(mesh, rows)], None)
    logits = call_model(adapted, variables, inputs).astype(jnp.float32)
    if classes is not None:
      logits = jnp.where(classes, logits, -jnp.inf)
    return Predictions(logits.argmax(-1).astype(jnp.int32), jax.nn.softmax(logits).max(-1))

  by_block = jax.lax.map(of_block, jnp.asarray(rows))
  return jax.tree.map(lambda part: part.reshape(-1)[:number], by_block)
