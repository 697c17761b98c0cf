"""What a structure read off a gradient costs, over training LoRA, in wall seconds.

  python -m benchmarks.structures.cost [--quick] [--repeats 3]

Everything before training counts: the head's epochs, gradients, directions, compilation of all.
Each repeat is a process of its own without a cache of compiled programs. The embedded backbone,
digits, 36 epochs. `--quick`: one repeat of six epochs. The last line is JSON.
"""

import json
import statistics
import subprocess
import sys
import time

import jax

from benchmarks.machinery.embedded_task import digits
from benchmarks.machinery.output import make_parser, print_result, print_table
from benchmarks.structures import laboratory as lab
from benchmarks.structures import methods, plan
from benchmarks.structures.tuning import TUNING_SEED
from glora_jax.method.adapt import adapt
from glora_jax.method.presets import preset
from glora_jax.method.space import SearchSpace
from glora_jax.training import loop
from glora_jax.training.losses import subnet_loss

TASK = 'digits'
PARTS = ('head', 'allocation', 'training')


def measure(epochs: int) -> dict[str, float]:
  """Wall seconds of each part, in this process."""
  digits()  # data is prepared before the clock starts
  lab.splits(TASK, TUNING_SEED)
  base = lab.backbone(10)
  seconds = {}
  start = time.perf_counter()
  setting = lab.setting(TASK, TUNING_SEED)
  jax.block_until_ready(setting.variables)
  seconds['head'] = time.perf_counter() - start
  start = time.perf_counter()
  jax.block_until_ready(methods.allocation(setting).variables)
  seconds['allocation'] = time.perf_counter() - start
  adapted = adapt(base.adapted.model, base.preprocess(setting.train.images[:1]), space=_lora())
  subnet = adapted.fix(preset(adapted.spec, 'lora:1'))
  start = time.perf_counter()
  variables = adapted.init(jax.random.key(0), setting.variables['params'])
  trainable, frozen = subnet.split(variables)
  loop.fit(
    subnet_loss(subnet, base.unaugmented, train=True),
    trainable,
    frozen,
    *setting.train,
    lab.recipe(epochs),
    jax.random.key(1),
    progress=False,
  )
  seconds['training'] = time.perf_counter() - start
  return seconds


def _lora() -> SearchSpace:
  return SearchSpace(ranks=(1,))


def main() -> None:
  """Measures in fresh processes and prints."""
  parser = make_parser(__doc__ or '', 'one repeat of six epochs')
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--measure', type=int, help='epochs; measures in this process')
  arguments = parser.parse_args()
  if arguments.measure:
    print(json.dumps(measure(arguments.measure)))
    return
  epochs = 6 if arguments.quick else plan.EPOCHS
  command = [sys.executable, '-m', 'benchmarks.structures.cost', '--measure', str(epochs)]
  found = []
  for _ in range(1 if arguments.quick else arguments.repeats):
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found.append(json.loads(done.stdout.splitlines()[-1]))
  seconds = {part: statistics.median(each[part] for each in found) for part in PARTS}
  ratio = (seconds['head'] + seconds['allocation']) / seconds['training']
  rows = [(part, f'{value:.1f}') for part, value in seconds.items()]
  print_table(('part', 'seconds'), [*rows, ('before training, over it', f'{ratio:.2f}')])
  values = {part: round(value, 2) for part, value in seconds.items()}
  print_result('structures.cost', {**values, 'over_training': round(ratio, 3)})


if __name__ == '__main__':
  main()
