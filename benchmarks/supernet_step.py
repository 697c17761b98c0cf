"""One training step: the supernet, fixed presets and their peers, against full fine-tuning.

  pip install -e '.[peers]' peft qwix   # what is not installed is left out
  python -m benchmarks.supernet_step [--shape Ti|B] [--remat POLICY] [--unroll BLOCKS]
                                     [--repeats 7] [--only NAME ...] [--quick]

`--shape Ti` (the default) is ViT-Ti/16 at 96 pixels in float32, for two CPU cores; `--shape B` is
ViT-B/16 at 224 in bfloat16, for a GPU. Batch 64, 10 classes, AdamW, rank 4, the head always
trained, no augmentation, images resident. `--quick` takes a ViT as large as the embedded backbone,
in dispatches of 12 steps, five times.

Each row does the same number of steps, in turn; JAX rows as one dispatch of
`glora_jax.training.make_steps`, torch rows as a plain loop. A ratio is the median over the repeats
of the ratios within one repeat, so a machine that slows down for a while slows both sides; below 1
is faster. Bytes are XLA's account of the compiled steps: arguments, temporaries, and results that
take no argument's place; gradients are counted in them, and shown apart as what the trained
parameters measure. The share of the peak is the model's floating-point operations by arithmetic
(three times the forward's matrix products, for every row alike) per second over those of one large
matrix product, timed in the same run. The last line is JSON.
"""

import functools
import os

import jax
import jax.numpy as jnp

from benchmarks.machinery import peers, training_steps
from benchmarks.machinery.embedded_task import EMBEDDED_VIT, IMAGE_SIZE
from benchmarks.machinery.measuring import (
  in_turn,
  make_parser,
  median_ratio,
  milliseconds,
  print_result,
  print_table,
  rounded,
)
from benchmarks.machinery.training_steps import CLASSES, Problem, Shape
from glora_jax.models.vit import vit

SHAPES = {
  'Ti': Shape(vit('Ti', CLASSES), size=96, batch=64, steps=4),
  'B': Shape(vit('B', CLASSES, dtype=jnp.bfloat16), size=224, batch=64, steps=10),
}
QUICK_SHAPE = Shape(EMBEDDED_VIT, IMAGE_SIZE, batch=64, steps=12)
QUICK_REPEATS = 5
PAUSE = 0.3  # seconds; threads of the other framework spin for a while after their work
QUICK_SIDE, CPU_SIDE, ACCELERATOR_SIDE = 1024, 2048, 8192  # of the matrices that tell the peak


FULL, SUPERNET, LORA = 'full fine-tuning', 'supernet', 'LoRA preset'
QWIX, PEFT_LORA, PEFT_GLORA = 'qwix LoRA', 'PEFT LoRA (torch)', 'PEFT GLoRA (torch)'
TORCH = ('torch', 'timm', 'peft')
METHODS = {  # what makes a row, and the libraries that it takes
  FULL: (training_steps.full_row, ()),
  SUPERNET: (training_steps.supernet_row, ()),
  LORA: (functools.partial(training_steps.preset_row, preset='lora'), ()),
  'BitFit preset': (functools.partial(training_steps.preset_row, preset='bitfit'), ()),
  QWIX: (peers.qwix_lora_row, ('qwix',)),
  PEFT_LORA: (functools.partial(peers.peft_row, adapter='lora'), TORCH),
  PEFT_GLORA: (functools.partial(peers.peft_row, adapter='glora'), TORCH),
}


def main() -> None:
  """Measures and prints."""
  parser = make_parser(__doc__, 'the embedded ViT, 12 steps, five repeats', repeats=7)
  parser.add_argument('--shape', choices=SHAPES, default='Ti')
  parser.add_argument(
    '--remat', help='policy of jax.checkpoint_policies for all JAX rows; dots_saveable for instance'
  )
  parser.add_argument(
    '--unroll', type=int, default=1, help='blocks in a step of the scan over them, for all JAX rows'
  )
  parser.add_argument(
    '--only',
    nargs='+',
    choices=METHODS,
    default=[*METHODS],
    metavar='NAME',
    help='these rows alone, for a look at one of them',
  )
  arguments = parser.parse_args()
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # torch shares the card
  shape, repeats = SHAPES[arguments.shape], arguments.repeats
  peak_side = CPU_SIDE if jax.default_backend() == 'cpu' else ACCELERATOR_SIDE
  if arguments.quick:
    shape, repeats, peak_side = QUICK_SHAPE, QUICK_REPEATS, QUICK_SIDE
  shape = shape._replace(model=shape.model.clone(remat=arguments.remat, unroll=arguments.unroll))
  if peers.installed('torch'):
    import torch

    torch.set_num_threads(os.cpu_count())
  problem = Problem.random(shape)
  rows = {
    name: make(problem)
    for name, (make, libraries) in METHODS.items()
    if peers.installed(*libraries) and name in arguments.only
  }
  times = in_turn({name: row.run for name, row in rows.items()}, repeats, pause=PAUSE)
  step = milliseconds(times, shape.steps)
  dtype = shape.model.dtype or jnp.float32
  peak = training_steps.peak_operations(dtype, peak_side)
  operations = training_steps.model_operations(shape)
  share_of_peak = {name: 1e3 * operations / value / peak for name, value in step.items()}
  ratio = functools.partial(median_ratio, times)

  lines = []
  for name, row in rows.items():
    over_full = ratio(name, FULL)
    numbers = (row.held, row.optimizer, row.gradients)
    lines.append(
      (
        name,
        f'{step[name]:.1f}',
        '' if over_full is None else f'{over_full:.3f}',
        f'{share_of_peak[name]:.3f}',
        *('' if number is None else f'{number / 2**20:.1f}' for number in numbers),
      )
    )
  titles = ('', 'ms a step', 'over full', 'of peak', 'MiB held', 'optimizer', 'gradients')
  print_table(titles, lines)
  print(
    f'Peak: {peak / 1e9:.0f} GFLOP/s in {jnp.dtype(dtype).name}. '
    f'One step of full fine-tuning: {operations / 1e9:.1f} GFLOP. '
    f'{repeats} repeats of {shape.steps} steps.'
  )
  both = {SUPERNET, FULL} <= rows.keys()
  ratios = {
    'supernet_over_full': ratio(SUPERNET, FULL),
    'lora_over_full': ratio(LORA, FULL),
    'bytes_over_full': rows[SUPERNET].held / rows[FULL].held if both else None,
    'supernet_over_peft_glora': ratio(SUPERNET, PEFT_GLORA),
    'lora_over_qwix': ratio(LORA, QWIX),
    'lora_over_peft_lora': ratio(LORA, PEFT_LORA),
  }
  values = {
    'quick': arguments.quick,
    'shape': arguments.shape,
    'remat': arguments.remat,
    'unroll': arguments.unroll,
    'repeats': repeats,
    'milliseconds': rounded(step, 2),
    'share_of_peak': rounded(share_of_peak, 4),
    **rounded(ratios),
    'bytes_held': {name: row.held for name, row in rows.items()},
    'optimizer_bytes': {name: row.optimizer for name, row in rows.items()},
    'gradient_bytes': {name: row.gradients for name, row in rows.items()},
  }
  print_result('supernet_step', values)


if __name__ == '__main__':
  main()
