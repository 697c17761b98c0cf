"""Which weights of a training should go on: those of its best epoch on validation images, or last?

  python -m benchmarks.kept_weights [--quick]

Every structure is trained twice on 800 images of three development tasks of `benchmarks.structures`
with five seeds, 36 epochs at the saved learning rates; 200 validation images choose the epoch. The
table has test accuracies in %, mean and standard deviation over seeds. The last line is JSON.
"""

import os
import tempfile

import numpy as np
from PIL import Image

from benchmarks.machinery.measuring import make_parser, print_result, print_table
from benchmarks.structures.tasks import draw, load_pool
from configs.compare import get_config
from glora_jax.runs import comparison

TASKS = ('digits', 'discs', 'bars')
METHODS = ('linear', 'lora:2')


def write_folder(task: str, folder: str) -> None:
  """The images of a task as files, in a folder for each split and class."""
  for split, (images, labels) in draw(load_pool(task), seed=0).items():
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
      of_class = os.path.join(folder, split, str(label))
      os.makedirs(of_class, exist_ok=True)
      Image.fromarray(pixels).save(os.path.join(of_class, f'{number}.png'))


def accuracies(folder: str, keep: str, quick: bool) -> dict[str, list[float]]:
  """Test accuracies in % by method, one for each seed."""
  config = get_config('tiny=True' if quick else '')
  config.task = f'folder:{folder}'
  config.training.keep = keep
  config.compare.update(methods=METHODS, seeds=2 if quick else 5)
  with tempfile.TemporaryDirectory() as workdir:
    methods = comparison.run(config, os.path.join(workdir, 'run'))['methods']
  return {name: [100 * row['test_accuracy'] for row in rows] for name, rows in methods.items()}


def main() -> None:
  """Prints what this file says at its top."""
  quick = make_parser(__doc__, 'one task, a tiny recipe').parse_args().quick
  found: dict[str, dict[str, dict[str, list[float]]]] = {}
  for task in TASKS[: 1 if quick else None]:
    with tempfile.TemporaryDirectory() as folder:
      write_folder(task, folder)
      found[task] = {keep: accuracies(folder, keep, quick) for keep in ('best', 'last')}
  lines, gains = [], []
  for task, kept in found.items():
    for method, best in kept['best'].items():
      last = kept['last'][method]
      gains.append(gain := np.subtract(best, last))
      cells = (f'{np.mean(x):.1f} +- {np.std(x, ddof=1):.1f}' for x in (best, last, gain))
      lines.append((task, method, *cells))
  titles = ('task', 'structure', 'best epoch', 'last epoch', 'difference')
  print_table(dict.fromkeys(titles, ''), lines)
  print_result('kept_weights', {'mean_gain': np.mean(gains), 'accuracies': found})


if __name__ == '__main__':
  main()
