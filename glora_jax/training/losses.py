"""What is minimized: the loss of a weight-sharing supernet, whose subnets are drawn anew for every batch, and that of one fixed subnet."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from glora_jax.method import space
from glora_jax.method.adapted import COLLECTION, Adapted, Subnet
from glora_jax.method.genomes import largest_genome, sample_genome, smallest_genome
from glora_jax.method.supports import SUPPORTS
from glora_jax.training.loop import LossFn


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Which subnets a step of the supernet's training takes. `Sampling(largest=0)` is the paper's: one, uniform over all genomes.

  Attributes:
    largest: probability that a gene takes its largest allele, and is not drawn uniformly.
    paths: groups that every batch is cut into, each with a genome of its own.
    sandwich: the first of at least three paths is the largest subnet and the second the smallest (Yu & Huang 2019, arXiv 1903.05134).
    distillation: share of the loss that takes the answers of the largest subnet for labels (no gradient goes through them); costs
      one more forward pass.
  """

  largest: float = 0.0
  paths: int = 1
  sandwich: bool = False
  distillation: float = 0.0

  def __post_init__(self):
    for name in ('largest', 'distillation'):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f'sampling.{name}={getattr(self, name)} must be between 0 and 1.')
    if self.paths < 1 or (self.sandwich and self.paths < 3):
      raise ValueError(f'sampling.paths={self.paths} must be at least {3 if self.sandwich else 1}.')

  def draw(self, key: jax.Array, spec: space.Spec) -> jax.Array:
    """The genomes of one step, int8 [rows, 5], or [paths, rows, 5] where there are several."""
    if self.paths == 1:
      return sample_genome(key, spec, self.largest)
    genomes = jax.vmap(lambda key: sample_genome(key, spec, self.largest))(
      jax.random.split(key, self.paths)
    )
    if self.sandwich:
      genomes = genomes.at[0].set(largest_genome(spec)).at[1].set(smallest_genome(spec))
    return genomes


@dataclasses.dataclass(frozen=True)
class Consistency:
  """Consistency regularization after PACE (Ni et al. 2024, arXiv 2409.17137): two passes whose supports are multiplied by different noise
  should answer alike.

  Attributes:
    weight: of the squared difference of the logits, summed over classes; 0 makes one pass without noise.
    sigma: standard deviation of the noise around 1: one number for each output of a layer, the same for all its supports.
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


def cross_entropy(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Mean softmax cross-entropy of [batch, classes] logits, and the accuracy as a metric."""
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
  return loss, {'accuracy': jnp.mean(logits.argmax(-1) == labels)}


def supernet_loss(
  adapted: Adapted,
  preprocess: Callable,
  sample: Callable[[jax.Array], jax.Array],
  *,
  mix: Callable | None = None,
  distillation: float = 0.0,
  consistency: Consistency = Consistency(),
  **apply_kwargs: Any,
) -> LossFn:
  """The loss of one step of weight-sharing training: fresh genomes for every batch (GLoRA section 3.3).

  Args:
    adapted: what `glora_jax.adapt` returned.
    preprocess: `(key, images) -> inputs` of the model; normalization and augmentation.
    sample: `key -> genome` [rows, 5], or genomes [paths, rows, 5]: as many equal groups of the batch, each through its own subnet.
    mix: `(key, inputs, targets) -> (inputs, targets)`, targets [batch, classes]; mixup for instance.
    distillation: see `Sampling`.
    consistency: see `Consistency`.
    **apply_kwargs: handed on to the model, `train=True` for instance.
  """

  def forward(variables, inputs, genome_key, model_key):
    apply = lambda genome, inputs, key: adapted.apply(
      variables, inputs, genome=genome, rngs=_rngs(key), **apply_kwargs
    )
    genomes = sample(genome_key)
    if genomes.ndim == 2:
      return apply(genomes, inputs, model_key)
    paths = len(genomes)
    if len(inputs) % paths:
      raise ValueError(
        f'A batch of {len(inputs)} images cannot be cut into {paths} equal paths; change batch_size or sampling.paths.'
      )
    groups = inputs.reshape(paths, -1, *inputs.shape[1:])
    logits = jax.vmap(apply)(genomes, groups, jax.random.split(model_key, paths))
    return logits.reshape(len(inputs), -1)

  def teacher(variables, inputs):
    quiet = {**apply_kwargs, **({'train': False} if 'train' in apply_kwargs else {})}
    variables = jax.lax.stop_gradient(variables)
    return jax.nn.softmax(
      adapted.apply(variables, inputs, genome=largest_genome(adapted.spec), **quiet)
    )

  return _loss(
    adapted.join,
    forward,
    preprocess,
    mix,
    consistency,
    teacher if distillation else None,
    distillation,
  )


def subnet_loss(
  subnet: Subnet,
  preprocess: Callable,
  *,
  mix: Callable | None = None,
  consistency: Consistency = Consistency(),
  **apply_kwargs: Any,
) -> LossFn:
  """The loss of one fixed subnet (`adapted.fix(genome)`) alone: only the terms that it uses are computed.

  Its trainable half is that of `subnet.split`. Arguments as for `supernet_loss`.
  """
  forward = lambda variables, inputs, _, model_key: subnet.apply(
    variables, inputs, rngs=_rngs(model_key), **apply_kwargs
  )
  return _loss(subnet.join, forward, preprocess, mix, consistency)


def _rngs(key):
  return {'drop_path': key, 'dropout': jax.random.fold_in(key, 1)}


def _loss(join, forward, preprocess, mix, consistency, teacher=None, distillation=0.0):
  def loss_fn(trainable, frozen, images, labels, key):
    genome_key, image_key, model_key = jax.random.split(key, 3)
    variables = join(trainable, frozen)
    inputs, targets = preprocess(image_key, images), None
    if mix is not None:
      classes = jax.eval_shape(
        lambda x: forward(variables, x, genome_key, model_key), inputs
      ).shape[-1]
      inputs, targets = mix(
        jax.random.fold_in(image_key, 1), inputs, jax.nn.one_hot(labels, classes)
      )

    def judge(logits):
      if targets is None:
        return cross_entropy(logits, labels)
      return optax.softmax_cross_entropy(logits, targets).mean(), {
        'accuracy': jnp.mean(logits.argmax(-1) == targets.argmax(-1))
      }

    if consistency.weight:
      first, logits = (
        forward(
          {
            **variables,
            COLLECTION: consistency.perturb(
              jax.random.fold_in(model_key, 2 + n), variables[COLLECTION]
            ),
          },
          inputs,
          genome_key,
          jax.random.fold_in(model_key, 4 + n),
        )
        for n in range(2)
      )
      loss, metrics = jax.tree.map(lambda a, b: (a + b) / 2, judge(first), judge(logits))
      loss += consistency.weight * jnp.mean(jnp.sum((first - logits) ** 2, axis=-1))
    else:
      logits = forward(variables, inputs, genome_key, model_key)
      loss, metrics = judge(logits)
    if teacher is not None:
      imitation = optax.softmax_cross_entropy(logits, teacher(variables, inputs)).mean()
      loss = (1 - distillation) * loss + distillation * imitation
    return loss, metrics

  return loss_fn
