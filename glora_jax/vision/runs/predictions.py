"""What one structure answers: the most probable class of every image, and its probability."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from glora_jax import mesh as meshes
from glora_jax.compiling import reported
from glora_jax.method.adapted import Adapted, call_model
from glora_jax.method.sample import Preprocess

BATCH = 256  # images that are answered at once, about


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
  """A compiled function that predicts the classes of a batch of images with a folded structure.

  Of what it computes it keeps two numbers an image.

  Args:
    adapted: the adapted model, whose own structure does not matter.
    preprocess: `(images, None) -> inputs` of the model.
    classes: the classes that may be answered, bool [class]; None for all.
    mesh: devices that the batch is split over; what comes back is whole on every one. None for one
      device.

  Returns:
    The function `(variables, images) -> Predictions`, with folded parameters in the variables, and
    images [batch, ...].
  """

  def predict(variables: Any, images: jax.Array) -> Predictions:
    logits = call_model(adapted, variables, preprocess(images, None)).astype(jnp.float32)
    if classes is not None:
      logits = jnp.where(classes, logits, -jnp.inf)
    return Predictions(logits.argmax(-1).astype(jnp.int32), jax.nn.softmax(logits).max(-1))

  whole = None if mesh is None else meshes.replicated(mesh)
  return reported('predictions', jax.jit(predict, out_shardings=whole))
