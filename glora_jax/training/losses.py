"""What training minimizes: the loss of a weight-sharing supernet, and that of one fixed subnet.

A supernet's subnets are drawn anew for every batch (GLoRA, section 3.3).
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from glora_jax.method import space
from glora_jax.method.adapted import COLLECTION, Adapted, Subnet
from glora_jax.method.genomes import largest_genome, sample_genome, smallest_genome
from glora_jax.method.supports import SUPPORTS
from glora_jax.training.loop import LossFn, Metrics

# Numbers folded into a step's image key or model key, for further random streams of their own.
MIX_STREAM = 1
DROPOUT_STREAM = 1
NOISE_STREAMS = (2, 3)  # of the two passes of consistency regularization
PASS_STREAMS = (4, 5)

Preprocess = Callable[[jax.Array, jax.Array], jax.Array]
Mix = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Which subnets a step of the supernet's training takes.

  `Sampling(largest=0)` is the paper's: one subnet, uniform over all genomes.

  Attributes:
    largest: probability that a gene takes its largest allele, and is not drawn uniformly.
    paths: number of groups that every batch is cut into, each with a genome of its own.
    sandwich: make the first of at least three paths the largest subnet and the second the smallest
      (Yu & Huang 2019, arXiv 1903.05134).
    distillation: share of the loss that takes the answers of the largest subnet for labels. No
      gradient goes through these; they cost one more forward pass.

  Raises:
    ValueError: a number is out of its range.

  Example:
    >>> import flax.linen as nn
    >>> import glora_jax
    >>> spec = glora_jax.adapt(nn.Dense(3), jnp.zeros((1, 4))).spec
    >>> genomes = Sampling(paths=4, sandwich=True).draw(jax.random.key(0), spec)
    >>> print(genomes.shape, genomes[0].tolist(), genomes[1].tolist())
    (4, 1, 5) [[3, 3, 2, 2, 2]] [[0, 0, 0, 0, 0]]
  """

  largest: float = 0.0
  paths: int = 1
  sandwich: bool = False
  distillation: float = 0.0

  def __post_init__(self):
    for name in ('largest', 'distillation'):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f'sampling.{name}={getattr(self, name)} must be between 0 and 1.')
    least_paths = 3 if self.sandwich else 1
    if self.paths < least_paths:
      raise ValueError(f'sampling.paths={self.paths} must be at least {least_paths}.')

  def draw(self, key: jax.Array, spec: space.Spec) -> jax.Array:
    """The genomes of one step.

    Args:
      key: random key.
      spec: the layers of an adapted model.

    Returns:
      A genome, int8 [layer, 5], or where there are several paths genomes [path, layer, 5].
    """
    if self.paths == 1:
      return sample_genome(key, spec, self.largest)
    keys = jax.random.split(key, self.paths)
    genomes = jax.vmap(lambda path_key: sample_genome(path_key, spec, self.largest))(keys)
    if self.sandwich:
      genomes = genomes.at[0].set(largest_genome(spec)).at[1].set(smallest_genome(spec))
    return genomes


@dataclasses.dataclass(frozen=True)
class Consistency:
  """Consistency regularization after PACE (Ni et al. 2024, arXiv 2409.17137).

  Two passes, whose supports are multiplied by different noise, should answer alike.

  Attributes:
    weight: weight of the squared difference between the logits of both, summed over classes; with
      0 there is one pass without noise.
    sigma: standard deviation of the noise around 1. There is one number for each output of a
      layer, the same for all its supports.

  Raises:
    ValueError: a number is negative.

  Example:
    >>> supports = {'dense': {'B_down': jnp.ones((4, 2)), 'B_up': jnp.ones((2, 3))}}
    >>> noisy = Consistency(weight=1.0, sigma=0.1).perturb(jax.random.key(0), supports)
    >>> noisy['dense']['B_down'].std().item(), noisy['dense']['B_up'].std().item() > 0
    (0.0, True)
  """

  weight: float = 0.0
  sigma: float = 0.2

  def __post_init__(self):
    if self.weight < 0 or self.sigma < 0:
      raise ValueError(
        f'consistency.weight={self.weight} and consistency.sigma={self.sigma} cannot be negative.'
      )

  def perturb(self, key: jax.Array, supports: Any) -> Any:
    """The supports of all layers times noise: A, B, D and E along the outputs, C as a whole."""

    def noisy(path, value):
      *module, name = [part.key for part in path if isinstance(part, jax.tree_util.DictKey)]
      support = SUPPORTS[name]
      if support.drawn:  # the other factor of the same LoRA is multiplied
        return value
      module_key = jax.random.fold_in(key, zlib.crc32('/'.join(map(str, module)).encode()))
      stack = value.shape[: value.ndim - len(support.axes)]
      outputs = value.shape[-1] if 'out' in support.axes else 1
      noise = 1 + self.sigma * jax.random.normal(module_key, (*stack, outputs), value.dtype)
      return value * (noise[..., None, :] if value.ndim > noise.ndim else noise)

    return jax.tree_util.tree_map_with_path(noisy, supports)


def cross_entropy(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, Metrics]:
  """Mean softmax cross-entropy, and the accuracy as a metric.

  Args:
    logits: float [batch, class].
    targets: labels, int [batch], or a distribution over the classes for each, float [batch, class].
  """
  if targets.ndim == 1:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    labels = targets
  else:
    losses = optax.softmax_cross_entropy(logits, targets)
    labels = targets.argmax(-1)
  return losses.mean(), {'accuracy': jnp.mean(logits.argmax(-1) == labels)}


def supernet_loss(
  adapted: Adapted,
  preprocess: Preprocess,
  sample: Callable[[jax.Array], jax.Array],
  *,
  mix: Mix | None = None,
  distillation: float = 0.0,
  consistency: Consistency = Consistency(),
  **apply_kwargs: Any,
) -> LossFn:
  """The loss of one step of weight-sharing training: fresh genomes for every batch (section 3.3).

  Args:
    adapted: what `glora_jax.adapt` returned.
    preprocess: `(key, images) -> inputs` of the model; normalization and augmentation.
    sample: `key -> genome` [layer, 5], or genomes [path, layer, 5], for as many equal groups of the
      batch, each through its own subnet. `Sampling.draw` makes both.
    mix: `(key, inputs, targets) -> (inputs, targets)`, with targets [batch, class]; mixup for
      instance.
    distillation: see `Sampling`.
    consistency: see `Consistency`.
    **apply_kwargs: further arguments of the model, `train=True` for instance.

  Returns:
    `loss_fn(trainable, frozen, images, labels, key) -> (loss, metrics)`, with labels int [batch],
    and the halves of `adapted.split`. It raises a ValueError where a batch cannot be cut into
    equal paths.

  Example:
    >>> import flax.linen as nn
    >>> import glora_jax
    >>> model = nn.Dense(2)
    >>> images = jnp.ones((4, 6))
    >>> adapted = glora_jax.adapt(model, images)
    >>> loss_fn = supernet_loss(
    ...   adapted,
    ...   preprocess=lambda key, images: images / 255,
    ...   sample=lambda key: Sampling(paths=2).draw(key, adapted.spec),
    ... )
    >>> params = model.init(jax.random.key(0), images)['params']
    >>> trainable, frozen = adapted.split(adapted.init(jax.random.key(1), params))
    >>> labels = jnp.array([0, 1, 0, 1])
    >>> loss, metrics = jax.jit(loss_fn)(trainable, frozen, images, labels, jax.random.key(2))
    >>> print(loss.shape, metrics['accuracy'])
    () 0.5
  """
  logits_fn = _DrawnSubnets(adapted, sample, apply_kwargs)
  return _Loss(logits_fn, adapted, preprocess, mix, consistency, distillation, apply_kwargs)


def subnet_loss(
  subnet: Subnet,
  preprocess: Preprocess,
  *,
  mix: Mix | None = None,
  consistency: Consistency = Consistency(),
  **apply_kwargs: Any,
) -> LossFn:
  """The loss of one fixed subnet alone: only the terms that it uses are computed.

  Args:
    subnet: what `adapted.fix(genome)` returned.
    preprocess: see `supernet_loss`.
    mix: see `supernet_loss`.
    consistency: see `Consistency`.
    **apply_kwargs: further arguments of the model, `train=True` for instance.

  Returns:
    `loss_fn(trainable, frozen, images, labels, key) -> (loss, metrics)`, with the halves of
    `subnet.split`.

  Example:
    >>> import flax.linen as nn
    >>> import glora_jax
    >>> model = nn.Dense(2)
    >>> images = jnp.ones((4, 6))
    >>> adapted = glora_jax.adapt(model, images)
    >>> subnet = adapted.fix(glora_jax.preset(adapted.spec, 'bitfit'))
    >>> loss_fn = subnet_loss(subnet, preprocess=lambda key, images: images / 255)
    >>> params = model.init(jax.random.key(0), images)['params']
    >>> trainable, frozen = subnet.split(adapted.init(jax.random.key(1), params))
    >>> list(trainable['glora'])
    ['E']
    >>> labels = jnp.array([0, 1, 0, 1])
    >>> loss, metrics = jax.jit(loss_fn)(trainable, frozen, images, labels, jax.random.key(2))
    >>> print(loss.shape, metrics['accuracy'])
    () 0.5
  """
  logits_fn = _FixedSubnet(subnet, apply_kwargs)
  return _Loss(logits_fn, subnet.adapted, preprocess, mix, consistency, 0.0, apply_kwargs)


@dataclasses.dataclass(frozen=True, eq=False)
class _DrawnSubnets:
  """`(variables, inputs, genome_key, model_key) -> logits` of subnets that the genome key draws.

  Attributes:
    adapted, sample, apply_kwargs: see `supernet_loss`.
  """

  adapted: Adapted
  sample: Callable[[jax.Array], jax.Array]
  apply_kwargs: Mapping[str, Any]

  def __call__(self, variables, inputs, genome_key, model_key):
    genomes = self.sample(genome_key)
    if genomes.ndim == 2:
      return self._apply(variables, genomes, inputs, model_key)
    paths = len(genomes)
    if len(inputs) % paths:
      raise ValueError(
        f'A batch of {len(inputs)} images cannot be cut into {paths} equal paths; '
        'change batch_size or sampling.paths.'
      )
    groups = inputs.reshape(paths, -1, *inputs.shape[1:])
    keys = jax.random.split(model_key, paths)
    logits = jax.vmap(self._apply, in_axes=(None, 0, 0, 0))(variables, genomes, groups, keys)
    return logits.reshape(len(inputs), -1)

  def _apply(self, variables, genome, inputs, key):
    return self.adapted.apply(
      variables, inputs, genome=genome, rngs=_rngs(key), **self.apply_kwargs
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _FixedSubnet:
  """`(variables, inputs, genome_key, model_key) -> logits` of one subnet, whatever the genome key.

  Attributes:
    subnet, apply_kwargs: see `subnet_loss`.
  """

  subnet: Subnet
  apply_kwargs: Mapping[str, Any]

  def __call__(self, variables, inputs, genome_key, model_key):
    del genome_key
    return self.subnet.apply(variables, inputs, rngs=_rngs(model_key), **self.apply_kwargs)


def _rngs(key: jax.Array) -> dict[str, jax.Array]:
  """The random streams of a model that drops paths or features."""
  return {'drop_path': key, 'dropout': jax.random.fold_in(key, DROPOUT_STREAM)}


@dataclasses.dataclass(frozen=True, eq=False)
class _Loss:
  """Cross-entropy, with what may be added to it.

  Attributes:
    logits_fn: `(variables, inputs, genome_key, model_key) -> logits` [batch, class].
    adapted, preprocess, mix, consistency, distillation, apply_kwargs: see `supernet_loss`.
  """

  logits_fn: _DrawnSubnets | _FixedSubnet
  adapted: Adapted
  preprocess: Preprocess
  mix: Mix | None
  consistency: Consistency
  distillation: float
  apply_kwargs: Mapping[str, Any]

  def __call__(self, trainable, frozen, images, labels, key):
    genome_key, image_key, model_key = jax.random.split(key, 3)
    variables = self.adapted.join(trainable, frozen)
    inputs = self.preprocess(image_key, images)
    targets = labels
    if self.mix is not None:
      logits = jax.eval_shape(self.logits_fn, variables, inputs, genome_key, model_key)
      mix_key = jax.random.fold_in(image_key, MIX_STREAM)
      inputs, targets = self.mix(mix_key, inputs, jax.nn.one_hot(labels, logits.shape[-1]))

    if self.consistency.weight:
      loss, metrics, logits = self._two_passes(variables, inputs, targets, genome_key, model_key)
    else:
      logits = self.logits_fn(variables, inputs, genome_key, model_key)
      loss, metrics = cross_entropy(logits, targets)

    if self.distillation:
      teacher = jax.nn.softmax(self._largest_logits(variables, inputs))
      imitation = optax.softmax_cross_entropy(logits, teacher).mean()
      loss = (1 - self.distillation) * loss + self.distillation * imitation
    return loss, metrics

  def _two_passes(self, variables, inputs, targets, genome_key, model_key):
    """The mean (loss, metrics) of two noisy passes, regularized, and the logits of the second."""
    passes = []
    for noise_stream, pass_stream in zip(NOISE_STREAMS, PASS_STREAMS, strict=True):
      noise_key = jax.random.fold_in(model_key, noise_stream)
      supports = self.consistency.perturb(noise_key, variables[COLLECTION])
      pass_key = jax.random.fold_in(model_key, pass_stream)
      noisy = {**variables, COLLECTION: supports}
      passes.append(self.logits_fn(noisy, inputs, genome_key, pass_key))
    first, second = passes
    loss, metrics = jax.tree.map(
      lambda a, b: (a + b) / 2, cross_entropy(first, targets), cross_entropy(second, targets)
    )
    difference = jnp.mean(jnp.sum((first - second) ** 2, axis=-1))
    return loss + self.consistency.weight * difference, metrics, second

  def _largest_logits(self, variables, inputs):
    """Logits of the largest subnet, without dropout and without gradient."""
    kwargs = dict(self.apply_kwargs)
    if 'train' in kwargs:
      kwargs['train'] = False
    genome = largest_genome(self.adapted.spec)
    variables = jax.lax.stop_gradient(variables)
    return self.adapted.apply(variables, inputs, genome=genome, **kwargs)
