"""What training minimizes, for a fixed structure or for those that a supernet draws."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from glora_jax.limits import check_callable, check_type
from glora_jax.method.adapted import Adapted
from glora_jax.method.sample import Preprocess, unchanged
from glora_jax.method.supports import COLLECTION
from glora_jax.method.validation import right_answers
from glora_jax.settings import Number, taken
from glora_jax.training.component_dropout import drop_components
from glora_jax.training.consistency import Consistency
from glora_jax.training.gradient_by_parts import Part, PartedLoss
from glora_jax.training.loop import LossFn, Metrics
from glora_jax.training.recipe import AdapterLoss
from glora_jax.training.sampling import Sampling

# Numbers folded into a step's image key or model key, for further random streams of their own.
MIX_STREAM = 2**32 - 1  # fold_in(key, n) is key n of a split, and augmentation splits the key
DROPOUT_STREAM = 1
NOISE_STREAMS = (2, 3)  # of the two passes of consistency regularization
PASS_STREAMS = (4, 5)
COMPONENT_STREAM = 6

Mix = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


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
      f'Logits {given} and targets {list(targets.shape)} do not go together; logits are [..., '
      'class], and targets a label for each row of them or a distribution over the classes.'
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
  independent_images: bool = False,
  **apply_kwargs: Any,
) -> LossFn:
  """The cross-entropy of a training step.

  Of a fixed structure only the terms that it has are computed. Of a free one every step draws
  structures anew: weight-sharing training of a supernet (GLoRA, section 3.3).

  Args:
    adapted: what `glora_jax.adapt` returned.
    preprocess: `(images, key) -> inputs` of the model; normalization and augmentation. None for
      images that are inputs already.
    sample: of a free structure, `key -> genome` [layer, 5], or genomes [path, layer, 5], for as
      many equal groups of the batch, each through its own structure. None draws one uniformly, as
      `Sampling().draw` does.
    mix: `(key, inputs, targets) -> (inputs, targets)`, with targets [batch, class]; mixup for
      instance.
    consistency: see `Consistency`.
    component_dropout: see `Recipe`; for a loop of one's own, as `fit` takes the recipe's where it
      is above 0.
    independent_images: whether the model answers every image by itself, with no statistics or
      capacity that a batch shares, and draws at random arrays whose first axis is the images. The
      steps of `fit` on several devices then send gradients by supports, and none by merged
      kernels; the result is the same. Several paths are not taken so.
    **apply_kwargs: further arguments of the model, `train=True` for instance.

  Returns:
    `loss_fn(trainable, frozen, images, labels, key) -> (loss, metrics)`, with labels int [batch],
    and the halves of `adapted.split`. It raises a ValueError where a batch cannot be cut into
    equal paths.

  Raises:
    ValueError: an argument is of another type or out of range.

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
    >>> loss, metrics = jax.jit(loss_fn)(trainable, frozen, images, labels, jax.random.key(2))
    >>> print(loss.shape, metrics['accuracy'])
    () 0.5
  """
  check_type(adapted, Adapted, 'adapted')
  if adapted.genome is not None and sample is not None:
    raise ValueError(
      'sample draws structures, and this one is fixed; leave sample out, or free the structure '
      'with adapted.fix(None).'
    )
  if sample is None:
    sample = functools.partial(Sampling().draw, spec=adapted.spec)
  check_callable(sample, 'sample')
  preprocess = unchanged if preprocess is None else preprocess
  options = preprocess, mix, consistency, component_dropout, independent_images, apply_kwargs
  return _Loss(adapted, sample, *options)


class _Keys(NamedTuple):
  """What is random for all images of a batch.

  Attributes:
    genome: random key that the subnets are drawn by.
    model: random key of everything else that happens between inputs and logits.
    part: the part of the batch that the inputs are; None for all of it.
  """

  genome: jax.Array
  model: jax.Array
  part: Part | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class _Loss(AdapterLoss, PartedLoss):
  """Cross-entropy, with what may be added to it.

  Attributes:
    adapted: the adapted model.
    sample: draws the genomes of a free structure.
    preprocess, mix, consistency, component_dropout, independent_images, apply_kwargs: see
      `make_loss`.
  """

  adapted: Adapted
  sample: Callable[[jax.Array], Any]
  preprocess: Preprocess
  mix: Mix | None
  consistency: Consistency
  component_dropout: float
  independent_images: bool
  apply_kwargs: Mapping[str, Any]

  def __post_init__(self):
    check_callable(self.preprocess, 'preprocess')
    check_type(self.consistency, Consistency, 'consistency')
    probability = taken(self.component_dropout, 'component_dropout', Number, ge=0, lt=1)
    object.__setattr__(self, 'component_dropout', probability)
    if 'rngs' in self.apply_kwargs and isinstance(self.adapted.model, nn.Module):
      raise ValueError('rngs is not for a loss, which makes its streams of a key; leave it out.')

  def with_component_dropout(self, probability):
    return dataclasses.replace(self, component_dropout=probability)

  @property
  def has_parts(self):
    genomes = jax.eval_shape(self._genomes, jax.eval_shape(jax.random.key, 0))
    return self.independent_images and genomes.ndim == 2

  def __call__(self, trainable, frozen, images, labels, key):
    drawn = self.draw(trainable, frozen, images, labels, key)
    return self.of_part(trainable, frozen, *drawn, part=None)

  def draw(self, trainable, frozen, images, labels, key):
    genome_key, image_key, model_key = jax.random.split(key, 3)
    keys = _Keys(genome_key, model_key)
    inputs = self.preprocess(images, image_key)
    targets = labels
    if self.mix is not None:
      variables = self.adapted.join(trainable, frozen)
      logits = jax.eval_shape(self._logits, variables, inputs, keys)
      mix_key = jax.random.fold_in(image_key, MIX_STREAM)
      inputs, targets = self.mix(mix_key, inputs, jax.nn.one_hot(labels, logits.shape[-1]))
    return (inputs, targets), keys

  def of_part(self, trainable, frozen, rows, common, part):
    inputs, targets = rows
    keys = common._replace(part=part)
    variables = self.adapted.join(trainable, frozen)
    if self.consistency.weight:
      return self._two_passes(variables, inputs, targets, keys)
    return cross_entropy(self._logits(variables, inputs, keys), targets)

  def _two_passes(self, variables, inputs, targets, keys):
    """The mean (loss, metrics) of two noisy passes, regularized."""
    passes = []
    for noise_stream, pass_stream in zip(NOISE_STREAMS, PASS_STREAMS, strict=True):
      noise_key = jax.random.fold_in(keys.model, noise_stream)
      supports = self.consistency.perturb(noise_key, variables[COLLECTION])
      pass_keys = keys._replace(model=jax.random.fold_in(keys.model, pass_stream))
      noisy = {**variables, COLLECTION: supports}
      passes.append(self._logits(noisy, inputs, pass_keys))
    first, second = passes
    loss, metrics = jax.tree.map(
      lambda a, b: (a + b) / 2, cross_entropy(first, targets), cross_entropy(second, targets)
    )
    difference = jnp.mean(jnp.sum((first - second) ** 2, axis=-1))
    return loss + self.consistency.weight * difference, metrics

  def _genomes(self, key):
    """What the batch goes through: the genome of a fixed structure, or what is drawn."""
    return self.sample(key) if self.adapted.genome is None else jnp.asarray(self.adapted.genome)

  def _logits(self, variables, inputs, keys):
    """The logits [batch, class], of several paths each with its part of the batch."""
    genomes = self._genomes(keys.genome)
    if genomes.ndim == 2:
      return self._logits_of(genomes, variables, inputs, keys)
    paths = len(genomes)
    if not paths or len(inputs) % paths:
      raise ValueError(
        f'A batch of {len(inputs)} images cannot be cut into {paths} equal paths; '
        'change batch_size or sampling.paths.'
      )
    groups = inputs.reshape(paths, -1, *inputs.shape[1:])
    path_keys = jax.random.split(keys.model, paths)

    def of_path(genome, group, path_key):
      return self._logits_of(genome, variables, group, keys._replace(model=path_key))

    by_path = jax.vmap(of_path)(genomes, groups, path_keys)
    return jax.tree.map(lambda part: part.reshape(len(inputs), *part.shape[2:]), by_path)

  def _logits_of(self, genome, variables, inputs, keys):
    """The logits of one structure."""
    adapted, kwargs = self.adapted, dict(self.apply_kwargs)
    if self.component_dropout:
      key = jax.random.fold_in(keys.model, COMPONENT_STREAM)
      supports, probability = variables[COLLECTION], self.component_dropout
      supports = drop_components(key, supports, adapted.groups, genome, probability)
      variables = {**variables, COLLECTION: supports}
    if isinstance(adapted.model, nn.Module):  # a function or an NNX model takes no streams
      key = keys.model if keys.part is None else keys.part.key(keys.model)
      dropout_key = jax.random.fold_in(key, DROPOUT_STREAM)
      kwargs['rngs'] = {'drop_path': key, 'dropout': dropout_key}
    if adapted.genome is None:
      kwargs['genome'] = genome
    return adapted.apply(variables, inputs, **kwargs)
