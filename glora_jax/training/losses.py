"""The loss of classification, a `loss(forward, batch, key)` as `fit` needs it, and its parts."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from glora_jax.checks import shown, validate
from glora_jax.mesh import device_key
from glora_jax.method.adapted import Adapted
from glora_jax.method.forward import Forward, Loss
from glora_jax.method.sample import Preprocess, unchanged
from glora_jax.method.validation import (
  check_classes,
  check_whole_numbers,
  is_known,
  right_answers,
)
from glora_jax.training.consistency import Consistency
from glora_jax.training.loop import Metrics

# Numbers that are folded into a step's image key or model key, one for each random stream. Those of
# one key must differ. MIX_STREAM must not be small either: augmentation splits the image key, and
# key n of a split is fold_in(key, n).
MIX_STREAM = 2**32 - 1
DROPOUT_STREAM = 1
PASSES = ((2, 4), (3, 5))  # of consistency regularization: the streams of its noise and its model
COMPONENT_STREAM = 6

Mix = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def classification(
  preprocess: Preprocess | None = None,
  *,
  mix: Mix | None = None,
  consistency: Consistency = Consistency(),
  component_dropout: float = 0.0,
  classes: Any = None,
  **kwargs: Any,
) -> Loss:
  """Returns the cross-entropy loss for batches (inputs, labels), with the accuracy as a metric.

  A Linen model and a PyTorch module get the random streams 'dropout' and 'drop_path'. If `fit`
  splits a batch over several devices, `preprocess`, `mix` and the model draw separately on each,
  but all drop the same components.

  Args:
    preprocess: `(images, key) -> inputs` of the model: normalization and augmentation. None if the
      images are the model's inputs.
    mix: `(key, inputs, targets) -> (inputs, targets)` with targets [batch, class], mixup for
      instance.
    consistency: see `Consistency`.
    component_dropout: probability that a step drops a rank-one part of a LoRA for A or B; the
      others are scaled up to keep the mean (MLAE, arXiv 2405.18897).
    classes: which classes may be predicted, and be labels, bool [class]; None for all.
    **kwargs: keyword arguments of the model, `train=True` for instance.

  Returns:
    `loss(forward, (images, labels), key) -> (loss, metrics)`, labels int [batch], or a distribution
    over the classes for each example, float [batch, class].

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is out of range.

  Example:
    >>> import flax.linen as nn
    >>> import glora_jax
    >>> model, images, labels = nn.Dense(2), jnp.ones((4, 6)), jnp.array([0, 1, 0, 1])
    >>> params = model.init(jax.random.key(0), images)['params']
    >>> adapted = glora_jax.adapt(model, images, structure='bitfit')
    >>> loss = classification(preprocess=lambda images, key: images / 255)
    >>> forward = Forward(adapted, adapted.init(jax.random.key(1), params))
    >>> value, metrics = loss(forward, (images, labels), jax.random.key(2))
    >>> print(value.shape, metrics['accuracy'])
    () 0.5
  """
  preprocess = unchanged if preprocess is None else preprocess
  validate(preprocess, Callable, 'preprocess')
  validate(consistency, Consistency, 'consistency')
  component_dropout = validate(component_dropout, float, 'component_dropout', least=0, below=1)
  classes = _as_mask(classes)
  if 'rngs' in kwargs:
    raise ValueError('The loss makes its rngs from its key; leave rngs out.')
  # The shape of the logits of each model that the loss has traced, for `check`.
  shapes: weakref.WeakKeyDictionary[Adapted, Any] = weakref.WeakKeyDictionary()

  def logits_of(forward: Any, inputs: jax.Array, key: jax.Array) -> jax.Array:
    if component_dropout:
      drop_key = jax.random.fold_in(key, COMPONENT_STREAM)
      forward = forward.dropping_components(drop_key, component_dropout)
    logits = forward(inputs, **_streams(forward, key), **kwargs)
    shapes[forward.adapted] = getattr(logits, 'shape', None)
    return logits

  def loss(forward: Forward, batch: Any, key: jax.Array) -> tuple[jax.Array, Metrics]:
    images, labels = _pair(batch)
    _, image_key, model_key = jax.random.split(key, 3)  # `fit` draws the structure with the first
    image_key = device_key(image_key)
    inputs, targets = preprocess(images, image_key), labels
    if mix is not None:
      logits = jax.eval_shape(lambda: logits_of(forward, inputs, model_key))
      mix_key = jax.random.fold_in(image_key, MIX_STREAM)
      inputs, targets = mix(mix_key, inputs, jax.nn.one_hot(labels, logits.shape[-1]))
    if not consistency.weight:
      return cross_entropy(logits_of(forward, inputs, model_key), targets, classes)
    passes = []
    for noise_stream, pass_stream in PASSES:
      noise_key = jax.random.fold_in(model_key, noise_stream)
      noisy = forward.with_adapter(consistency.perturb(noise_key, forward.adapter))
      passes.append(logits_of(noisy, inputs, jax.random.fold_in(model_key, pass_stream)))
    first, second = passes
    of_first, of_second = (cross_entropy(logits, targets, classes) for logits in passes)
    mean, metrics = jax.tree.map(lambda a, b: (a + b) / 2, of_first, of_second)
    difference = jnp.mean(jnp.sum((first - second) ** 2, axis=-1))
    return mean + consistency.weight * difference, metrics

  def check(data: Any, adapted: Adapted) -> None:
    """Raises ValueError unless data is a pair whose labels are classes of the model."""
    # A label that is not a class makes the loss NaN.
    _, labels = _pair(data)
    if np.ndim(labels) == 1:
      check_whole_numbers(labels)
      shape = shapes.get(adapted)
      check_classes(labels, shape[-1] if shape else None)

  loss.check = check  # pyrefly: ignore
  return loss


def _streams(forward: Forward, key: jax.Array) -> dict[str, Any]:
  """Keyword arguments with the random streams, for a model whose `apply` accepts `rngs`."""
  if 'rngs' not in inspect.signature(forward.adapted.model.apply).parameters:
    return {}
  key = device_key(key)
  return {'rngs': {'drop_path': key, 'dropout': jax.random.fold_in(key, DROPOUT_STREAM)}}


def _as_mask(classes: Any) -> Any:
  """`classes` as a bool array, which may be traced; None for all."""
  if classes is None:
    return None
  mask = classes if isinstance(classes, jax.Array) else np.asarray(classes)
  if mask.dtype != bool or mask.ndim != 1 or (is_known(mask) and not np.any(mask)):
    raise ValueError(
      f'classes={shown(classes)} must be True or False for each class, True for one at least; None '
      'allows all.'
    )
  return mask


def _pair(data: Any) -> tuple[Any, Any]:
  """The inputs and labels of a data set or batch.

  Raises:
    ValueError: it is not a pair.
  """
  if not isinstance(data, tuple | list) or len(data) != 2:
    raise ValueError(
      f'classification() is the loss of pairs (inputs, labels), got {type(data).__name__}; pass '
      'a tuple of two arrays, or batches of these.'
    )
  inputs, labels = data
  return inputs, labels


def cross_entropy(
  logits: jax.Array, targets: jax.Array, classes: Any = None
) -> tuple[jax.Array, Metrics]:
  """Returns the mean softmax cross-entropy, and the accuracy as a metric.

  Args:
    logits: float [..., class].
    targets: labels, int [...], or a distribution over the classes for each, float [..., class]. The
      loss of a label that is not a class is NaN.
    classes: which classes may be predicted, bool [class]; None for all.

  Raises:
    ValueError: the shape of the targets or the length of `classes` does not match the logits.
  """
  fitting = (logits.shape, logits.shape[:-1]) if hasattr(logits, 'shape') else ()
  if targets.shape not in fitting:
    found = list(logits.shape) if fitting else f'of type {type(logits).__name__}'
    raise ValueError(
      f'Logits {found} and targets {list(targets.shape)} do not match; logits are [..., class], '
      'and targets a label for each row of them or a distribution over the classes.'
    )
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  if classes is not None:
    if len(classes) != logits.shape[-1]:
      raise ValueError(
        f'classes has {len(classes)} values, but the model has {logits.shape[-1]} classes; pass '
        'one for each.'
      )
    classes = jnp.broadcast_to(classes, logits.shape)
    logits = jnp.where(classes, logits, -jnp.inf)
  if targets.shape == logits.shape[:-1]:
    labels, losses = targets, optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    losses = jnp.where(labels < 0, jnp.nan, losses)  # or it would count from the last class
  else:
    labels, losses = targets.argmax(-1), optax.softmax_cross_entropy(logits, targets, where=classes)
  return losses.mean(), {'accuracy': jnp.mean(right_answers(logits, labels, losses))}
