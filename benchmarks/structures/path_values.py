"""Values from a short warm-up: what the numbers of every unit earned on batches not yet seen."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from benchmarks.structures import laboratory as lab
from benchmarks.structures import methods
from benchmarks.structures.jobs import Job
from benchmarks.structures.units import everything, unit_sums
from glora_jax.search.choice import choose
from glora_jax.training.batches import batch_indices
from glora_jax.training.loop import LossFn

WARM_EPOCHS = 5  # taken from the training that follows


def find(job: Job, setting: methods.Setting) -> methods.Structure:
  """The structure of the units that earned most for their parameters (arXiv 1909.01440)."""
  adapted, start = setting.adapted, methods.allocation(setting).variables
  trainable, frozen = adapted.split(start)
  frozen = {**frozen, 'genome': jnp.asarray(everything(len(adapted.spec)))}
  images, labels = setting.train
  order_key, step_key = jax.random.split(setting.key)
  steps_per_epoch = len(labels) // lab.BATCH_SIZE
  last = WARM_EPOCHS * steps_per_epoch
  indices = batch_indices(order_key, 0, last, len(labels), lab.BATCH_SIZE)
  base = lab.backbone(setting.num_classes)
  steps = jax.jit(Earning(lab.masked_loss(base), lab.optimizer(job.epochs)).steps)
  state = lab.start_state(trainable, job.epochs, job.rate)
  earned = steps(trainable, state, frozen, images, labels, indices, step_key)
  values = unit_sums(adapted, earned['glora'])
  genome = choose(methods.distinct(adapted.spec), values, job.budget)
  return methods.Structure(genome, start, {'genome': genome.tolist()}, WARM_EPOCHS)


@dataclasses.dataclass(frozen=True, eq=False)
class Earning:
  """Training steps that also sum up what each number earned.

  A step's update earns, to first order, minus its product with the gradient on the next batch,
  which has not seen it.

  Attributes:
    loss_fn: see `loop.fit`.
    optimizer: what makes updates of gradients.
  """

  loss_fn: LossFn
  optimizer: optax.GradientTransformation

  def steps(self, trainable, opt_state, frozen, images, labels, indices, key):
    """What every trainable number earned in steps of images at indices, int [step, batch]."""
    zeros = jax.tree.map(jnp.zeros_like, trainable)
    step = functools.partial(self._step, frozen=frozen, images=images, labels=labels, key=key)
    start = (trainable, opt_state, zeros, zeros)
    (_, _, _, earned), _ = jax.lax.scan(step, start, (jnp.arange(len(indices)), indices))
    return earned

  def _step(self, carry, numbered, *, frozen, images, labels, key):
    trainable, opt_state, last, earned = carry
    number, index = numbered
    step_key = jax.random.fold_in(key, number)
    gradient_fn = jax.grad(self.loss_fn, has_aux=True)
    grads, _ = gradient_fn(trainable, frozen, images[index], labels[index], step_key)
    earned = jax.tree.map(lambda total, u, g: total - u * g, earned, last, grads)
    updates, opt_state = self.optimizer.update(grads, opt_state, trainable)
    trainable = optax.apply_updates(trainable, updates)
    return (trainable, opt_state, updates, earned), None
