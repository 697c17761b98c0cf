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

import argparse
import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.machinery import peers, training_steps
from benchmarks.machinery.embedded_task import EMBEDDED_VIT, IMAGE_SIZE
from benchmarks.machinery.output import make_parser, print_result, print_table, rounded
from benchmarks.machinery.timing import in_turn, median_ratio, medians
from benchmarks.machinery.training_steps import CLASSES, Problem, Row, Shape
from glora_jax.models.vit import vit

SHAPES = {
  'Ti': Shape(vit('Ti', CLASSES), size=96, batch=64, steps=4),
  'B': Shape(vit('B', CLASSES, dtype=jnp.bfloat16), size=224, batch=64, steps=10),
}
QUICK_SHAPE = Shape(EMBEDDED_VIT, IMAGE_SIZE, batch=64, steps=12)
QUICK_REPEATS = 5
PAUSE = 0.3  # seconds; threads of the other framework spin for a while after their work
QUICK_SIDE, CPU_SIDE, ACCELERATOR_SIDE = 1024, 2048, 8192  # of the matrices that tell the peak


class Method(NamedTuple):
  """How a row is made, and the libraries that it takes."""

  make: Callable[[Problem], Row]
  libraries: tuple[str, ...] = ()


FULL, SUPERNET, LORA = 'full fine-tuning', 'supernet', 'LoRA preset'
QWIX, PEFT_LORA, PEFT_GLORA = 'qwix LoRA', 'PEFT LoRA (torch)', 'PEFT GLoRA (torch)'
TORCH = ('torch', 'timm', 'peft')
METHODS = {
  FULL: Method(training_steps.full_row),
  SUPERNET: Method(training_steps.supernet_row),
  LORA: Method(functools.partial(training_steps.preset_row, preset='lora')),
  'BitFit preset': Method(functools.partial(training_steps.preset_row, preset='bitfit')),
  QWIX: Method(peers.qwix_lora_row, ('qwix',)),
  PEFT_LORA: Method(functools.partial(peers.peft_row, adapter='lora'), TORCH),
  PEFT_GLORA: Method(functools.partial(peers.peft_row, adapter='glora'), TORCH),
}


class Measurement(NamedTuple):
  """All that a run has found, by row.

  Attributes:
    rows: what was run, with its bytes.
    times: seconds of a dispatch in each repeat.
    milliseconds: median of one step.
    share_of_peak: operations per second over the peak's.
    peak: operations per second of a large matrix product.
  """

  rows: dict[str, Row]
  times: dict[str, list[float]]
  milliseconds: dict[str, float]
  share_of_peak: dict[str, float]
  peak: float

  def ratio(self, numerator: str, denominator: str) -> float | None:
    """Time of one row over that of the other; None where one of the two was not run."""
    return rounded(median_ratio(self.times, numerator, denominator))


def measure(shape: Shape, names: list[str], repeats: int, peak_side: int) -> Measurement:
  """Runs the rows in turn.

  Args:
    shape: see `Shape`.
    names: rows, whose libraries are installed.
    repeats: dispatches of each row that are timed.
    peak_side: of the matrices whose product tells the peak.
  """
  problem = Problem.random(shape)
  rows = {name: METHODS[name].make(problem) for name in names}
  times = in_turn({name: row.run for name, row in rows.items()}, repeats, pause=PAUSE)
  step = {name: median / shape.steps for name, median in medians(times).items()}
  peak = training_steps.peak_operations(shape.model.dtype or jnp.float32, peak_side)
  operations = training_steps.model_operations(shape)
  return Measurement(
    rows,
    times,
    {name: 1e3 * seconds for name, seconds in step.items()},
    {name: operations / seconds / peak for name, seconds in step.items()},
    peak,
  )


def mebibytes(value: int | None) -> str:
  """A cell of the table."""
  return '' if value is None else f'{value / 2**20:.1f}'


def print_measurement(shape: Shape, repeats: int, measured: Measurement) -> None:
  """The table for people."""
  titles = ('', 'ms a step', 'over full', 'of peak', 'MiB held', 'optimizer', 'gradients')
  lines = []
  for name, row in measured.rows.items():
    over_full = measured.ratio(name, FULL)
    lines.append(
      (
        name,
        f'{measured.milliseconds[name]:.1f}',
        '' if over_full is None else f'{over_full:.3f}',
        f'{measured.share_of_peak[name]:.3f}',
        *map(mebibytes, (row.held, row.optimizer, row.gradients)),
      )
    )
  print_table(titles, lines)
  print(
    f'Peak: {measured.peak / 1e9:.0f} GFLOP/s in {jnp.dtype(shape.model.dtype or "float32").name}. '
    f'One step of full fine-tuning: {training_steps.model_operations(shape) / 1e9:.1f} GFLOP. '
    f'{repeats} repeats of {shape.steps} steps.'
  )


def result(measured: Measurement) -> dict[str, Any]:
  """What the last line holds of the measurement."""
  rows = measured.rows
  bytes_over_full = (
    rows[SUPERNET].held / rows[FULL].held if {SUPERNET, FULL} <= rows.keys() else None
  )
  return {
    'milliseconds': {name: round(value, 2) for name, value in measured.milliseconds.items()},
    'share_of_peak': {name: round(value, 4) for name, value in measured.share_of_peak.items()},
    'supernet_over_full': measured.ratio(SUPERNET, FULL),
    'lora_over_full': measured.ratio(LORA, FULL),
    'bytes_over_full': rounded(bytes_over_full),
    'bytes_held': {name: row.held for name, row in rows.items()},
    'optimizer_bytes': {name: row.optimizer for name, row in rows.items()},
    'gradient_bytes': {name: row.gradients for name, row in rows.items()},
    'supernet_over_peft_glora': measured.ratio(SUPERNET, PEFT_GLORA),
    'lora_over_qwix': measured.ratio(LORA, QWIX),
    'lora_over_peft_lora': measured.ratio(LORA, PEFT_LORA),
  }


def parse_arguments() -> argparse.Namespace:
  """The command line."""
  parser = make_parser(__doc__, 'the embedded ViT, 12 steps, five repeats')
  parser.add_argument('--shape', choices=SHAPES, default='Ti')
  parser.add_argument(
    '--remat', help='policy of jax.checkpoint_policies for all JAX rows; dots_saveable for instance'
  )
  parser.add_argument(
    '--unroll', type=int, default=1, help='blocks in a step of the scan over them, for all JAX rows'
  )
  parser.add_argument('--repeats', type=int, default=7)
  parser.add_argument(
    '--only',
    nargs='+',
    choices=METHODS,
    metavar='NAME',
    help='these rows alone, for a look at one of them',
  )
  return parser.parse_args()


def main() -> None:
  """Measures and prints."""
  arguments = parse_arguments()
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # torch shares the card
  shape = QUICK_SHAPE if arguments.quick else SHAPES[arguments.shape]
  shape = shape._replace(model=shape.model.clone(remat=arguments.remat, unroll=arguments.unroll))
  repeats = QUICK_REPEATS if arguments.quick else arguments.repeats
  if arguments.quick:
    peak_side = QUICK_SIDE
  else:
    peak_side = CPU_SIDE if jax.default_backend() == 'cpu' else ACCELERATOR_SIDE
  if peers.installed('torch'):
    import torch

    torch.set_num_threads(os.cpu_count())
  names = [
    name
    for name, method in METHODS.items()
    if peers.installed(*method.libraries) and name in (arguments.only or METHODS)
  ]
  measured = measure(shape, names, repeats, peak_side)
  print_measurement(shape, repeats, measured)
  settings = {
    'quick': arguments.quick,
    'shape': arguments.shape,
    'remat': arguments.remat,
    'unroll': arguments.unroll,
    'repeats': repeats,
  }
  print_result('supernet_step', {**settings, **result(measured)})


if __name__ == '__main__':
  main()
