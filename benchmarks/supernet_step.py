"""One training step: the supernet, fixed presets and their peers, against full fine-tuning.

  pip install -e '.[peers]' peft qwix   # what is not installed is left out
  python -m benchmarks.supernet_step [--shape Ti|B] [--remat POLICY] [--unroll BLOCKS]
                                     [--repeats 7] [--only NAME ...] [--quick]

`--shape Ti` (the default) is ViT-Ti/16 at 96 pixels in float32, for two CPU cores; `--shape B` is
ViT-B/16 at 224 in bfloat16, for a GPU. Batch 64, 10 classes, AdamW, rank 4, the head always
trained, no augmentation, images resident. `--quick` takes a ViT as large as the embedded backbone,
batch 16, in dispatches of four steps, twice: it shows that all runs, no more.

The model's `apply` as a function of parameters and images, whose layers are found by use, is
compared with the Linen model, whose layers are found by their modules.

Each row does the same number of steps, in turn; JAX rows as one dispatch of
`glora_jax.training.loop.make_steps`, torch rows as a plain loop. A ratio is the median over the
repeats of the ratios within one repeat, so a machine that slows down for a while slows both sides;
below 1 is faster. Bytes are XLA's account of the compiled steps: arguments, temporaries, and
results that take no argument's place; gradients are counted in them, and shown apart as what the
trained parameters measure. The share of the peak is the model's floating-point operations by
arithmetic (three times the forward's matrix products, for every row alike) per second over those of
one large matrix product, timed in the same run. The last line is JSON.
"""

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp

import glora_jax
from benchmarks.machinery import peers
from benchmarks.machinery.embedded_task import EMBEDDED_VIT, IMAGE_SIZE
from benchmarks.machinery.measuring import make_parser, print_result, seconds
from benchmarks.machinery.training_steps import (
  CLASSES,
  RANK,
  CompiledSteps,
  Problem,
  Shape,
  compare,
  full_steps,
  glora_steps,
)
from benchmarks.machinery.vits import vit

SHAPES = {
  'Ti': Shape(vit('Ti', CLASSES), size=96, batch=64, steps=4),
  'B': Shape(vit('B', CLASSES, dtype=jnp.bfloat16), size=224, batch=64, steps=10),
}
QUICK_SHAPE = Shape(EMBEDDED_VIT, IMAGE_SIZE, batch=16, steps=4)
QUICK_REPEATS = 2
PAUSE = 0.3  # seconds; threads of the other framework spin for a while after their work
QUICK_SIDE, CPU_SIDE, ACCELERATOR_SIDE = 256, 2048, 8192  # of the matrices that tell the peak
PRODUCTS, PRODUCT_REPEATS = 8, 5  # of these, in a chain

FULL, SUPERNET, LORA = 'full fine-tuning', 'supernet', 'LoRA preset'
FUNCTION, FUNCTION_LORA = 'supernet of a function', 'LoRA of a function'
QWIX, PEFT_LORA, PEFT_GLORA = 'qwix LoRA', 'PEFT LoRA (torch)', 'PEFT GLoRA (torch)'
TORCH = ('torch', 'timm', 'peft')


def of_function(problem: Problem, structure: str | None = None) -> CompiledSteps:
  """The model's `apply`, whose layers are found by use."""

  def apply(params, images):
    return problem.shape.model.apply({'params': params}, images)

  space = glora_jax.SearchSpace(ranks=(RANK,))
  adapted = glora_jax.adapt_function(apply, problem.params, problem.images[:1], space=space)
  return glora_steps(problem, structure, adapted)


METHODS = {  # what makes a row, and the libraries that it takes
  FULL: (full_steps, ()),
  SUPERNET: (glora_steps, ()),
  LORA: (functools.partial(glora_steps, structure='lora'), ()),
  'BitFit preset': (functools.partial(glora_steps, structure='bitfit'), ()),
  FUNCTION: (of_function, ()),
  FUNCTION_LORA: (functools.partial(of_function, structure='lora'), ()),
  QWIX: (peers.qwix_lora_steps, ('qwix',)),
  PEFT_LORA: (functools.partial(peers.peft_steps, adapter='lora'), TORCH),
  PEFT_GLORA: (functools.partial(peers.peft_steps, adapter='glora'), TORCH),
}
RATIOS = {
  'supernet_over_full': (SUPERNET, FULL),
  'lora_over_full': (LORA, FULL),
  'bytes_over_full': (SUPERNET, FULL),
  'supernet_over_peft_glora': (SUPERNET, PEFT_GLORA),
  'function_over_linen': (FUNCTION, SUPERNET),
  'bytes_of_function_over_linen': (FUNCTION, SUPERNET),
  'lora_of_function_over_linen': (FUNCTION_LORA, LORA),
  'lora_over_qwix': (LORA, QWIX),
  'lora_over_peft_lora': (LORA, PEFT_LORA),
}


def model_operations(shape: Shape) -> float:
  """Floating-point operations of the matrix products of one training step.

  The backward pass counts as two forward passes, whatever is trained.
  """
  model = shape.model
  patches = (shape.size // model.patch_size) ** 2
  tokens = patches + int(model.class_token)
  dense = 12 * model.width**2 * tokens  # multiply-adds of a block, as all that follow
  attention = 2 * tokens**2 * model.width
  embedding = patches * model.patch_size**2 * 3 * model.width
  forward = 2 * shape.batch * (model.depth * (dense + attention) + embedding)
  return 3 * forward


def peak_operations(dtype: Any, side: int) -> float:
  """Floating-point operations a second of a chain of large matrix products, at their best."""
  factor = jnp.full((side, side), 1 / side, dtype)

  @jax.jit
  def chain():
    return jax.lax.fori_loop(0, PRODUCTS, lambda _, product: product @ factor, factor)

  chain().block_until_ready()
  return PRODUCTS * 2 * side**3 / min(seconds(chain) for _ in range(PRODUCT_REPEATS))


def main() -> None:
  """Measures and prints."""
  parser = make_parser(__doc__, 'the embedded ViT, four steps, two repeats', repeats=7)
  parser.add_argument('--shape', choices=SHAPES, default='Ti')
  parser.add_argument('--remat', help='policy of jax.checkpoint_policies for all JAX rows')
  parser.add_argument(
    '--unroll', type=int, default=1, help='blocks in a step of the scan over them'
  )
  parser.add_argument('--only', nargs='+', choices=METHODS, default=[*METHODS], metavar='NAME')
  given = parser.parse_args()
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # torch shares the card
  shape, repeats = SHAPES[given.shape], given.repeats
  side = CPU_SIDE if jax.default_backend() == 'cpu' else ACCELERATOR_SIDE
  if given.quick:
    shape, repeats, side = QUICK_SHAPE, QUICK_REPEATS, QUICK_SIDE
  shape = shape._replace(model=shape.model.clone(remat=given.remat, unroll=given.unroll))
  if peers.installed('torch'):
    import torch

    torch.set_num_threads(os.cpu_count())
  problem = Problem.random(shape)
  rows = {
    name: make(problem)
    for name, (make, libraries) in METHODS.items()
    if peers.installed(*libraries) and name in given.only
  }
  dtype = shape.model.dtype or jnp.float32
  peak, operations = peak_operations(dtype, side), model_operations(shape)
  found = compare(rows, shape.steps, repeats, RATIOS, pause=PAUSE, at_peak=1e3 * operations / peak)
  print(
    f'Peak: {peak / 1e9:.0f} GFLOP/s in {jnp.dtype(dtype).name}. '
    f'One step of full fine-tuning: {operations / 1e9:.1f} GFLOP. '
    f'{repeats} repeats of {shape.steps} steps.'
  )
  settings = {name: getattr(given, name) for name in ('quick', 'shape', 'remat', 'unroll')}
  print_result('supernet_step', {**settings, **found})


if __name__ == '__main__':
  main()
