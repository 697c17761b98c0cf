"""Structures on the images of a split: scores, accuracies, and the answer for every image.

One program is compiled for all structures. Its inputs are the genomes of a population, or the
folded parameters of a single structure.
"""

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
from glora_jax.search.scoring import make_scorer
from glora_jax.training.losses import classification
from glora_jax.vision import metrics
from glora_jax.vision.data import pipeline
from glora_jax.vision.runs.backbone import Model
from glora_jax.vision.runs.context import Context

STREAMED_BLOCK = 1024  # images of a stream that are scored at once
BATCH = 256  # images that are answered at once, about


class Predictions(NamedTuple):
  """The answers of one structure for each image.

  Attributes:
    classes: the most probable class, int32 [image]; -1 if the probabilities are not finite.
    probabilities: those of all classes, float32 [image, class].
  """

  classes: Any
  probabilities: Any


def make_predictor(
  adapted: Adapted,
  preprocess: Preprocess,
  *,
  classes: np.ndarray | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> Callable[[Any, Any], Predictions]:
  """A compiled function that predicts the classes of a batch of images with a folded structure.

  Args:
    adapted: the adapted model, of any structure.
    preprocess: `(images, None) -> inputs` of the model.
    classes: the classes that may be answered, bool [class]; None for all.
    mesh: devices that the batch is split over; the result is replicated. None for one device.

  Returns:
    The function `(variables, images) -> Predictions`, with folded parameters in the variables, and
    images [batch, ...].
  """

  def predict(variables: Any, images: jax.Array) -> Predictions:
    logits = call_model(adapted, variables, preprocess(images, None)).astype(jnp.float32)
    if classes is not None:
      logits = jnp.where(classes, logits, -jnp.inf)
    probabilities = jax.nn.softmax(logits)
    answers = jnp.where(jnp.isfinite(probabilities).all(-1), logits.argmax(-1), -1)
    return Predictions(answers.astype(jnp.int32), probabilities)

  whole = None if mesh is None else meshes.replicated(mesh)
  return reported('predictions', jax.jit(predict, out_shardings=whole))


def score(
  context: Context, variables: Any, genomes: Any, split: str
) -> tuple[np.ndarray, np.ndarray]:
  """Scores a population on a split.

  Args:
    context: the context.
    variables: the model's variables.
    genomes: int8 [candidate, layer, 5].
    split: name of the split.

  Returns:
    (correct answers [candidate], summed loss [candidate]).
  """
  scorer = _compiled(context, _make_scorer, split)
  correct: Any = 0
  loss: Any = 0.0
  for block in pipeline.blocks(context.images.split(split), STREAMED_BLOCK, context.mesh):
    block_correct, block_loss = scorer(variables, genomes, block)
    correct = correct + np.asarray(block_correct)
    loss = loss + np.asarray(block_loss, np.float64)
  return correct, loss


def measure(context: Context, model: Model, split: str) -> dict[str, float]:
  """Accuracy and mean loss of a structure on a split, by 'SPLIT_accuracy' and 'SPLIT_loss'.

  With report.metric='balanced' also the balanced accuracy, by 'SPLIT_balanced_accuracy'.
  """
  genomes = jnp.zeros((1, len(context.adapted.spec), 5), jnp.int8)
  correct, loss = score(context, _folded(context, model), genomes, split)
  labels = context.task.open(split).labels
  found = {
    f'{split}_accuracy': int(correct[0]) / len(labels),
    f'{split}_loss': float(loss[0]) / len(labels),
  }
  if context.settings.report.metric == 'balanced':
    answers = predict(context, model, split).classes
    matrix = metrics.confusion_matrix(labels, answers, context.task.num_classes)
    found[f'{split}_balanced_accuracy'] = metrics.balanced_accuracy(matrix)
  return found


def predict(context: Context, model: Model, split: str) -> Predictions:
  """A structure's answers for every image of a split, as NumPy arrays."""
  variables, predictor = _folded(context, model), _compiled(context, make_predictor, split)
  images = context.images.split(split)
  number = len(images.labels)
  size = -(-min(BATCH, number) // context.devices) * context.devices
  batches = pipeline.equal_batches(images, size, context.mesh)
  parts = [predictor(variables, batch.images) for batch in batches]
  return Predictions(*(np.concatenate(column)[:number] for column in zip(*parts, strict=True)))


def fold(context: Context, model: Model) -> Any:
  """The plain model's parameters."""
  key = 'fold', model.adapted.spec is context.adapted.spec
  if key not in context.compiled:
    context.compiled[key] = reported('fold', jax.jit(model.adapted.fix(None).fold))
  return context.compiled[key](model.variables, model.genome)


def _folded(context: Context, model: Model) -> dict[str, Any]:
  """The variables of a folded structure."""
  return {**context.variables, 'params': fold(context, model)}


def _compiled(context: Context, make: Callable, split: str) -> Callable:
  """The scorer or predictor of a split; splits without a mask share one."""
  key = make, split if split in context.task.masked else None
  if key not in context.compiled:
    classes = context.task.mask(split)
    context.compiled[key] = make(
      context.adapted, context.preprocess, classes=classes, mesh=context.mesh
    )
  return context.compiled[key]


def _make_scorer(
  adapted: Adapted,
  preprocess: Preprocess,
  *,
  classes: np.ndarray | None,
  mesh: jax.sharding.Mesh | None,
) -> Callable:
  return make_scorer(adapted, classification(preprocess, classes=classes), mesh=mesh)
