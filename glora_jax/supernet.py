"""What is minimized: the loss of a weight-sharing supernet, and that of one fixed subnet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from glora_jax.training import LossFn


def cross_entropy(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Mean softmax cross-entropy of [batch, classes] logits, and the accuracy as a metric."""
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
  return loss, {'accuracy': jnp.mean(logits.argmax(-1) == labels)}


def supernet_loss(
    adapted: Any, preprocess: Callable, sample: Callable[[jax.Array], jax.Array], *, mix: Callable | None = None, **apply_kwargs: Any,
) -> LossFn:
  """The loss of one step of weight-sharing training: a fresh genome for every batch (GLoRA section 3.3).

  Args:
    adapted: what `glora_jax.adapt` returned.
    preprocess: `(key, images) -> inputs` of the model; normalization and augmentation.
    sample: `key -> genome`; constant for training one fixed subnet.
    mix: `(key, inputs, targets) -> (inputs, targets)`, targets [batch, classes]; mixup for instance.
    **apply_kwargs: handed on to the model, `train=True` for instance.
  """

  def loss_fn(trainable, frozen, images, labels, key):
    genome_key, image_key, model_key = jax.random.split(key, 3)
    apply = lambda inputs: adapted.apply(
        adapted.join(trainable, frozen), inputs, genome=sample(genome_key),
        rngs={'drop_path': model_key, 'dropout': jax.random.fold_in(model_key, 1)}, **apply_kwargs)
    inputs = preprocess(image_key, images)
    if mix is None:
      return cross_entropy(apply(inputs), labels)
    classes = jax.eval_shape(apply, inputs).shape[-1]
    inputs, targets = mix(jax.random.fold_in(image_key, 1), inputs, jax.nn.one_hot(labels, classes))
    logits = apply(inputs)
    return optax.softmax_cross_entropy(logits, targets).mean(), {'accuracy': jnp.mean(logits.argmax(-1) == targets.argmax(-1))}

  return loss_fn
