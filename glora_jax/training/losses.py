"""Losses: functions of (trainable, frozen, batch, key), composed of others.

Each function of logits takes `(variables, inputs, genomes, key)` and gives [batch, class]; what is
put around one takes and gives the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from glora_jax.checks import validate
from glora_jax.mesh import own_key
from glora_jax.method.adapted import Adapted
from glora_jax.method.groups import Group
from glora_jax.method.sample import Preprocess, unchanged
from glora_jax.method.space import FLAT_FORMS, WEIGHT_TENSORS
from glora_jax.method.supports import COLLECTION
from glora_jax.method.validation import check_classes, check_whole_numbers, right_answers
from glora_jax.training.consistency import Consistency
from glora_jax.training.loop import LossFn, Metrics
from glora_jax.training.sampling import Sampling
from glora_jax.tree import replace

# Numbers folded into a step's image key or model key, for further random streams of their own.
MIX_STREAM = 2**32 - 1  # fold_in(key, n) is key n of a split, and augmentation splits the key
DROPOUT_STREAM = 1
NOISE_STREAMS = (2, 3)  # of the two passes of consistency regularization
PASS_STREAMS = (4, 5)
COMPONENT_STREAM = 6

Mix = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
Logits = Callable[[Any, Any, jax.Array, jax.Array], jax.Array]


def cross_entropy(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, Metrics]:
  """Mean softmax cross-entropy, and the accuracy as a metric.

  Args:
    logits: float [..., class].
    targets: labels, int [...], or a distribution over the classes for each, float [..., class].

  Raises:
    ValueError: there is no target for each row of logits.
  """
  fitting = (logits.shape, logits.shape[:-1]) if hasattr(logits, 'shape') else ()
  if targets.shape not in fitting:
    given = list(logits.shape) if fitting else f'of type {type(logits).__name__}'
    raise ValueError(
      f'Logits {given} and targets {list(targets.shape)} do not match; logits are [..., class], '
      'and targets a label for each row of them or a distribution over the classes.'
    )
  if targets.shape == logits.shape[:-1]:
    labels, losses = targets, optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  else:
    labels, losses = targets.argmax(-1), optax.softmax_cross_entropy(logits, targets)
  return losses.mean(), {'accuracy': jnp.mean(right_answers(logits, labels, losses))}


def make_loss(
  adapted: Adapted,
  preprocess: Preprocess | None = None,
  sample: Callable[[jax.Array], jax.Array] | None = None,
  *,
  mix: Mix | None = None,
  consistency: Consistency = Consistency(),
  component_dropout: float = 0.0,
  **apply_kwargs: Any,
) -> LossFn:
  """The cross-entropy of a training step.

  A fixed structure computes only the terms that it has. With a free structure every step draws new
  structures: weight-sharing training of a supernet (GLoRA, section 3.3). If `fit` splits a batch
  over several devices, all of them train the same structures in a step, as in the paper, and drop
  the same components; `preprocess`, `mix` and the model draw separately on each device.

  Args:
    adapted: what `glora_jax.adapt` returned.
    preprocess: `(images, key) -> inputs` of the model; normalization and augmentation. None for
      images that are inputs already.
    sample: for a free structure, `key -> genome` [layer, 5], or genomes [path, layer, 5], which cut
      the batch (on each device) into as many equal groups, each through its own structure. None
      draws one uniformly, as `Sampling().draw` does.
    mix: `(key, inputs, targets) -> (inputs, targets)`, with targets [batch, class], for example
      mixup.
    consistency: see `Consistency`.
    component_dropout: probability that a step drops a rank-one part of a LoRA of A or B; the others
      are scaled up to keep the mean (MLAE, arXiv 2405.18897).
    **apply_kwargs: further arguments of the model, `train=True` for instance.

  Returns:
    `loss_fn(trainable, frozen, batch, key) -> (loss, metrics)`, with the halves of `adapted.split`
    and a batch (images, labels), labels int [batch]. It raises a ValueError if a batch cannot be
    cut into equal paths.

  Raises:
    TypeError: an argument has another type.
    ValueError: an argument is out of range.

  Example:
    >>> import flax.linen as nn
    >>> import glora_jax
    >>> model, images, labels = nn.Dense(2), jnp.ones((4, 6)), jnp.array([0, 1, 0, 1])
    >>> params = model.init(jax.random.key(0), images)['params']
    >>> adapted = glora_jax.adapt(model, images, structure='bitfit')
    >>> loss_fn = make_loss(adapted, preprocess=lambda images, key: images / 255)
    >>> trainable, frozen = adapted.split(adapted.init(jax.random.key(1), params))
    >>> list(trainable['glora'])
    ['E']
    >>> loss, metrics = jax.jit(loss_fn)(trainable, frozen, (images, labels), jax.random.key(2))
    >>> print(loss.shape, metrics['accuracy'])
    () 0.5
  """
  validate(adapted, Adapted, 'adapted')
  if adapted.genome is not None and sample is not None:
    raise ValueError(
      'sample draws structures, but this one is fixed; leave sample out, or free the structure '
      'with adapted.fix(None).'
    )
  sample = functools.partial(Sampling().draw, spec=adapted.spec) if sample is None else sample
  validate(sample, Callable, 'sample')
  preprocess = unchanged if preprocess is None else preprocess
  validate(preprocess, Callable, 'preprocess')
  validate(consistency, Consistency, 'consistency')
  component_dropout = validate(component_dropout, float, 'component_dropout', least=0, below=1)
  if 'rngs' in apply_kwargs and isinstance(adapted.model, nn.Module):
    raise ValueError('A loss makes its rngs from its key; leave rngs out.')

  classes: set[int] = set()  # their number, once the model has been traced
  logits_fn = _noting(_of_structure(adapted, apply_kwargs), classes)
  if component_dropout:
    logits_fn = _with_component_dropout(logits_fn, adapted, component_dropout)
  logits_fn = _by_paths(logits_fn)
  entropy_fn = _consistent(logits_fn, consistency) if consistency.weight else _plain(logits_fn)

  def loss_fn(trainable, frozen, batch, key):
    images, labels = batch
    genome_key, image_key, model_key = jax.random.split(key, 3)
    image_key = own_key(image_key)
    variables = adapted.join(trainable, frozen)
    genomes = sample(genome_key) if adapted.genome is None else jnp.asarray(adapted.genome)
    inputs, targets = preprocess(images, image_key), labels
    if mix is not None:
      logits = jax.eval_shape(logits_fn, variables, inputs, genomes, model_key)
      mix_key = jax.random.fold_in(image_key, MIX_STREAM)
      inputs, targets = mix(mix_key, inputs, jax.nn.one_hot(labels, logits.shape[-1]))
    return entropy_fn(variables, inputs, targets, genomes, model_key)

  loss_fn.check_labels = functools.partial(_check_labels, classes)  # pyrefly: ignore
  return loss_fn


def _noting(logits_fn: Logits, classes: set[int]) -> Logits:
  """The same logits; adds the number of their classes to a set, when traced."""

  def noted_fn(*arguments):
    logits = logits_fn(*arguments)
    classes.update(getattr(logits, 'shape', ())[-1:])
    return logits

  return noted_fn


def _check_labels(classes: set[int], labels: Any) -> None:
  """Raises ValueError unless labels, if there is one for each image, are classes.

  A label above them makes the loss NaN, and one below 0 would be counted from the last class.
  """
  if np.ndim(labels) == 1:
    check_whole_numbers(labels)
    check_classes(labels, min(classes, default=None))


def _of_structure(adapted: Adapted, apply_kwargs: dict[str, Any]) -> Logits:
  """The logits of one structure, the fixed one or a genome [layer, 5]."""

  def logits_fn(variables, inputs, genome, key):
    kwargs = dict(apply_kwargs)
    if isinstance(adapted.model, nn.Module):  # a function or an NNX model takes no streams
      key = own_key(key)
      kwargs['rngs'] = {'drop_path': key, 'dropout': jax.random.fold_in(key, DROPOUT_STREAM)}
    if adapted.genome is None:
      kwargs['genome'] = genome
    return adapted.apply(variables, inputs, **kwargs)

  return logits_fn


def _with_component_dropout(logits_fn: Logits, adapted: Adapted, probability: float) -> Logits:
  """The logits without some rank-one parts of LoRAs."""

  def dropped_fn(variables, inputs, genome, key):
    drop_key = jax.random.fold_in(key, COMPONENT_STREAM)
    supports = drop_components(
      drop_key, variables[COLLECTION], adapted._places.groups, genome, probability
    )
    return logits_fn({**variables, COLLECTION: supports}, inputs, genome, key)

  return dropped_fn


def drop_components(
  key: jax.Array, supports: Any, groups: Sequence[Group], genome: Any, probability: float
) -> Any:
  """Supports of which some rank-one parts are missing, and the others count for more (MLAE).

  Where a genome has a LoRA for A or B, each of its rank-one parts is dropped with the probability,
  by a row of zeros in the up factor, and otherwise divided by one minus it. In the mean over keys
  the weights stay what they are. All other forms are left alone, a vector that is stored in an up
  factor as well.

  Args:
    key: random key. What a layer loses depends on the key and the layer's row alone.
    supports: the `glora` collection.
    groups: the adapted layers.
    genome: int [rows, 5]; may be traced.
    probability: at least 0 and below 1.

  Returns:
    A collection of the same structure, shapes and dtypes.

  Example:
    >>> import flax.linen as nn
    >>> import glora_jax
    >>> adapted = glora_jax.adapt(nn.Dense(2), jnp.zeros((1, 3)))
    >>> supports = {'A_up': jnp.ones((4, 2)), 'B_up': jnp.ones((4, 2))}
    >>> genome = jnp.array([[2, 3, 0, 0, 0]])  # a vector for A, a LoRA for B
    >>> dropped = drop_components(jax.random.key(2), supports, adapted._places.groups, genome, 0.5)
    >>> dropped['A_up'][:, 0].tolist(), dropped['B_up'][:, 0].tolist()
    ([1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 2.0, 0.0])
  """
  for group in groups:
    alleles = group.alleles(genome)
    row_keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.array(group.rows))
    for column, tensor in enumerate(WEIGHT_TENSORS):
      if (up := group.own(supports).get(f'{tensor}_up')) is None:
        continue
      draw = functools.partial(_factors, column=column, rank=up.shape[-2], probability=probability)
      factors = jax.vmap(draw)(row_keys).reshape(up.shape[:-1])
      is_lora = alleles[..., column] >= len(FLAT_FORMS[tensor])
      factors = jnp.where(is_lora[..., None], factors, 1).astype(up.dtype)
      supports = replace(supports, (*group.path, f'{tensor}_up'), up * factors[..., None])
  return supports


def _factors(row_key: jax.Array, column: int, rank: int, probability: float) -> jax.Array:
  """What the rank-one parts of one tensor of one layer are multiplied by, float [rank]."""
  kept = jax.random.bernoulli(jax.random.fold_in(row_key, column), 1 - probability, (rank,))
  return kept.astype(float) / (1 - probability)


def _by_paths(logits_fn: Logits) -> Logits:
  """The logits of one genome, or of several [path, layer, 5], each with its part of the batch."""

  def paths_fn(variables, inputs, genomes, key):
    if genomes.ndim == 2:
      return logits_fn(variables, inputs, genomes, key)
    paths = len(genomes)
    if not paths or len(inputs) % paths:
      raise ValueError(
        f'A batch of {len(inputs)} images cannot be cut into {paths} equal paths; '
        'change batch_size or the paths.'
      )
    groups = inputs.reshape(paths, -1, *inputs.shape[1:])
    keys = jax.random.split(key, paths)
    by_path = jax.vmap(logits_fn, in_axes=(None, 0, 0, 0))(variables, groups, genomes, keys)
    return jax.tree.map(lambda part: part.reshape(len(inputs), *part.shape[2:]), by_path)

  return paths_fn


def _plain(logits_fn: Logits) -> Callable[..., tuple[jax.Array, Metrics]]:
  """The cross-entropy of one pass."""

  def entropy_fn(variables, inputs, targets, genomes, key):
    return cross_entropy(logits_fn(variables, inputs, genomes, key), targets)

  return entropy_fn


def _consistent(
  logits_fn: Logits, consistency: Consistency
) -> Callable[..., tuple[jax.Array, Metrics]]:
  """The mean cross-entropy of two noisy passes, regularized."""

  def entropy_fn(variables, inputs, targets, genomes, key):
    passes = []
    for noise_stream, pass_stream in zip(NOISE_STREAMS, PASS_STREAMS, strict=True):
      noise_key = jax.random.fold_in(key, noise_stream)
      noisy = {**variables, COLLECTION: consistency.perturb(noise_key, variables[COLLECTION])}
      passes.append(logits_fn(noisy, inputs, genomes, jax.random.fold_in(key, pass_stream)))
    first, second = passes
    loss, metrics = jax.tree.map(
      lambda a, b: (a + b) / 2, cross_entropy(first, targets), cross_entropy(second, targets)
    )
    difference = jnp.mean(jnp.sum((first - second) ** 2, axis=-1))
    return loss + consistency.weight * difference, metrics

  return entropy_fn
