"""Memory of reading a structure off a gradient, against that of training a LoRA of a sketch's rank.

  python -m benchmarks.allocation_memory [--quick]

A ViT-B/16 on 224 pixels, batch 32, float32; 8 folds of 12 directions each, so that the LoRA has
rank 96. Nothing is run: the figures are XLA's own for the compiled programs, arguments,
temporaries and results together. `allocate` sums up on the host, and its one program serves both
passes. `--quick` takes a ViT as large as the embedded one, whose kernels' gradients are stored.
The last line is JSON.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import glora_jax
from benchmarks.machinery.embedded_task import EMBEDDED_VIT, IMAGE_SIZE
from benchmarks.machinery.measuring import make_parser, print_result, print_table
from benchmarks.machinery.training_steps import Cost
from glora_jax.models.vit import ViT, vit
from glora_jax.search.fold_gradients import Passes, Settings
from glora_jax.training import loop, losses
from glora_jax.training.recipe import Recipe

BATCH = 32
SETTINGS = Settings(folds=8, max_rank=8, progress=False)
KEY = jax.random.key(0)


def cost(model: ViT, size: int, structure: str | None = None, **space: Any) -> Cost:
  """A step of training a structure and the head, or a batch of `allocate` without one.

  Args:
    model: of which only shapes are known.
    size: side of its images.
    structure: name of a preset.
    **space: fields of a `SearchSpace`.
  """
  images = jax.ShapeDtypeStruct((BATCH, size, size, 3), jnp.float32)
  batch = images, jax.ShapeDtypeStruct((BATCH,), jnp.int32)
  adapted = glora_jax.adapt(model, images, space=glora_jax.SearchSpace(**space))
  params = jax.eval_shape(model.init, KEY, images)['params']
  variables = jax.eval_shape(adapted.init, KEY, params)
  if structure is None:

    def loss(forward, batch, key):
      del key
      images, labels = batch
      return losses.cross_entropy(forward(images), labels)[0]

    return Cost.of(Passes(adapted, variables, loss, [], KEY, SETTINGS).lowered(batch))
  fixed = adapted.fix(structure)
  trainable, frozen = jax.eval_shape(fixed.split, variables)
  optimizer = Recipe(batch_size=BATCH).optimizer(BATCH)
  state = jax.eval_shape(optimizer.init, trainable)
  indices = jax.ShapeDtypeStruct((1, BATCH), jnp.int32)
  steps = loop.make_steps(losses.make_loss(fixed), optimizer)
  return Cost.of(steps.lower(trainable, state, 0, frozen, *batch, indices, KEY))


def main() -> None:
  """Compiles in turn and prints."""
  quick = make_parser(__doc__, 'a small ViT').parse_args().quick
  jax.config.update('jax_enable_compilation_cache', False)
  model, size = (EMBEDDED_VIT, IMAGE_SIZE) if quick else (vit('B', 1000), 224)
  width, ranks = SETTINGS.width, tuple(range(1, SETTINGS.max_rank + 1))
  rows = {
    f'LoRA of rank {width}, a training step': cost(model, size, 'lora', ranks=(width,)),
    'allocate, a batch': cost(model, size, ranks=ranks),
    'allocate without LoRAs of A, a batch': cost(model, size, ranks=ranks, A=('none', 'vector')),
  }
  print_table(
    {'': '', 'held, MiB': ',.0f', 'temporaries, MiB': ',.0f', 'compile, s': '.1f'},
    [(name, *found) for name, found in rows.items()],
  )
  images = jnp.zeros((1, size, size, 3))
  shapes = jax.tree.leaves(jax.eval_shape(model.init, KEY, images)['params'])
  lora, allocation, without_scales = (found.held for found in rows.values())
  values = {
    'quick': quick,
    'lora_mib': lora,
    'allocation_mib': allocation,
    'allocation_over_lora': allocation / lora,
    'without_scales_over_lora': without_scales / lora,
    'parameters': sum(int(np.prod(leaf.shape)) for leaf in shapes),
  }
  print_result('allocation_memory', values)


if __name__ == '__main__':
  main()
