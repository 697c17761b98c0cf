"""Memory of reading a structure off a gradient, against that of training a LoRA of a sketch's rank.

  python -m benchmarks.allocation_memory [--quick]

A ViT-B/16 on 224 pixels, batch 32, float32; 8 folds of 12 directions each, so that the LoRA has
rank 96. Nothing is run: the figures are XLA's own for the compiled programs, arguments,
temporaries and results together. `allocate` sums up on the host, and its one program serves both
passes. `--quick` takes a ViT as large as the embedded one, whose kernels' gradients are stored.
The last line is JSON.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import glora_jax
from benchmarks.machinery.embedded_task import EMBEDDED_VIT, IMAGE_SIZE
from benchmarks.machinery.measuring import make_parser, print_result, print_table, rounded
from benchmarks.machinery.training_steps import Cost
from glora_jax.models.vit import ViT, vit
from glora_jax.search.fold_gradients import Passes, Settings
from glora_jax.training import loop, losses
from glora_jax.training.recipe import Recipe

BATCH = 32
SETTINGS = Settings(folds=8, max_rank=8, progress=False)


class Shapes(NamedTuple):
  """A model of which only shapes are known: images [batch, size, size, 3], labels, parameters."""

  model: ViT
  images: Any
  labels: Any
  params: Any


def lora_cost(shapes: Shapes, rank: int) -> Cost:
  """A step of training a LoRA in every layer, and the head."""
  space = glora_jax.SearchSpace(ranks=(rank,))
  adapted = glora_jax.adapt(shapes.model, shapes.images, space=space)
  subnet = adapted.fix(glora_jax.preset(adapted.spec, 'lora'))
  variables = jax.eval_shape(adapted.init, jax.random.key(0), shapes.params)
  trainable, frozen = jax.eval_shape(subnet.split, variables)

  def loss_fn(trainable, frozen, batch, key):
    images, labels = batch
    del key
    logits = subnet.apply(subnet.join(trainable, frozen), images)
    return losses.cross_entropy(logits, labels)

  optimizer = Recipe(batch_size=BATCH).optimizer(BATCH)
  state = jax.eval_shape(optimizer.init, trainable)
  indices = jax.ShapeDtypeStruct((1, BATCH), jnp.int32)
  steps = loop.make_steps(loss_fn, optimizer)
  batch = (shapes.images, shapes.labels, indices)
  return Cost.of(steps.lower(trainable, state, 0, frozen, *batch, jax.random.key(0)))


def allocation_cost(shapes: Shapes, scales: bool) -> Cost:
  """A batch of either pass of `allocate`, with or without a LoRA of A on offer."""
  ranks = tuple(range(1, SETTINGS.max_rank + 1))
  space = glora_jax.SearchSpace(ranks=ranks, A=None if scales else ('none', 'vector'))
  adapted = glora_jax.adapt(shapes.model, shapes.images, space=space)
  variables = jax.eval_shape(adapted.init, jax.random.key(0), shapes.params)

  def loss(forward, batch, key):
    del key
    images, labels = batch
    return losses.cross_entropy(forward(images), labels)[0]

  passes = Passes(adapted, variables, loss, [], jax.random.key(0), SETTINGS)
  return Cost.of(passes.lowered((shapes.images, shapes.labels)))


def main() -> None:
  """Compiles in turn and prints."""
  quick = make_parser(__doc__, 'a small ViT').parse_args().quick
  jax.config.update('jax_enable_compilation_cache', False)
  model, size = (EMBEDDED_VIT, IMAGE_SIZE) if quick else (vit('B', 1000), 224)
  images = jax.ShapeDtypeStruct((BATCH, size, size, 3), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), images)['params']
  shapes = Shapes(model, images, jax.ShapeDtypeStruct((BATCH,), jnp.int32), params)
  rows = {
    f'LoRA of rank {SETTINGS.width}, a training step': lora_cost(shapes, SETTINGS.width),
    'allocate, a batch': allocation_cost(shapes, scales=True),
    'allocate without LoRAs of A, a batch': allocation_cost(shapes, scales=False),
  }
  print_table(
    ('', 'held', 'temporaries', 'compile'),
    [
      (name, f'{held:,.0f} MiB', f'{temporaries:,.0f} MiB', f'{seconds:.1f} s')
      for name, (held, temporaries, seconds) in rows.items()
    ],
  )
  lora, allocation, without_scales = rows.values()
  values = {
    'quick': quick,
    'lora_mib': rounded(lora.held, 1),
    'allocation_mib': rounded(allocation.held, 1),
    'allocation_over_lora': rounded(allocation.held / lora.held),
    'without_scales_over_lora': rounded(without_scales.held / lora.held),
    'parameters': int(sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params))),
  }
  print_result('allocation_memory', values)


if __name__ == '__main__':
  main()
