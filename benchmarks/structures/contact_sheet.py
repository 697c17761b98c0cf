"""Draws `tasks.png` beside this file: a row for each task, a picture for each label, in two blocks.

  python -m benchmarks.structures.contact_sheet [--tasks count size]

The rows are the rendered tasks in the order of `TASKS`; the left block has a picture of each label
in its order, the right block another one. Images that are drawn are never among the test images.
"""

import os

import numpy as np
from PIL import Image

from benchmarks.machinery.measuring import make_parser
from benchmarks.structures.tasks import TASKS, Pool, draw, load_pool

PATH = os.path.join(os.path.dirname(__file__), 'tasks.png')
MOST_CLASSES = 9
SCALE = 2  # pixels a side for each pixel of a picture
GAP = 2  # pixels between pictures
COLORS = 256  # of the palette, which keeps the file small
RENDERED = [name for name in TASKS if name not in ('digits', 'mnist', 'silhouettes')]


def strip(pool: Pool, number: int) -> np.ndarray:
  """A row of training pictures, uint8 [height, width, 3]: the `number`-th of each label."""
  images, labels = draw(pool, 0)['train']
  side = images.shape[1] + GAP
  row = np.full((side, MOST_CLASSES * side, 3), 255, np.uint8)
  for label in range(min(pool.num_classes, MOST_CLASSES)):
    picture = images[np.flatnonzero(labels == label)[number]]
    row[:-GAP, label * side : (label + 1) * side - GAP] = picture
  return row


def main() -> None:
  """Draws the sheet."""
  parser = make_parser(__doc__)
  parser.add_argument('--tasks', nargs='+', choices=TASKS, default=RENDERED, metavar='TASK')
  pools = [load_pool(name) for name in parser.parse_args().tasks]
  rows = [np.concatenate([strip(pool, 0), strip(pool, 1)], axis=1) for pool in pools]
  sheet = Image.fromarray(np.concatenate(rows))
  sheet = sheet.resize((SCALE * sheet.width, SCALE * sheet.height), Image.Resampling.NEAREST)
  sheet.quantize(COLORS).save(PATH, optimize=True)
  print(f'{PATH}: {os.path.getsize(PATH) / 1000:.0f} kB')


if __name__ == '__main__':
  main()
