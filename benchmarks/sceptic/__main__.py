"""What a sceptic asks of a finished run.

  python -m benchmarks.sceptic [--workdir runs/quickstart] [--quick]

DIAGNOSTIC: it reads test images, so it chooses no default, and it writes only into
WORKDIR/diagnostics. Where the workdir has no finished run, that run is finished first; in a new one
it is `configs/quickstart.py`. Then, with the run's own supernet:

  a. Random search: the best of as many random subnets as the search evaluated, several times,
     against as many searches.
  b. Rank correlation: random subnets of all sizes, scored with the supernet's weights and trained
     alone by the same recipe.
  c. Validation against test, over the first (random) and the last generation of the run's search.
  d. Ablation: the winner with each of the tensors A to E switched off, before and after finetuning,
     not trained again.

Writes `diagnostics.json`, `diagnostics.md`, `diagnostics.png` and prints a table; the last line is
JSON. `--quick` takes 2 searches and 3 subnets in place of 5 and 12.
"""

import os
import sys

from benchmarks.machinery.output import make_parser, print_result
from benchmarks.sceptic import report
from benchmarks.sceptic.diagnosis import diagnose
from benchmarks.sceptic.finished_run import load

QUICK = {'seeds': 2, 'subnets': 3}


def main() -> None:
  """Asks and prints."""
  parser = make_parser(__doc__, '2 searches of each kind and 3 subnets trained alone')
  parser.add_argument(
    '--workdir',
    default=os.path.join('runs', 'quickstart'),
    help='of the run; runs/quickstart by default',
  )
  arguments = parser.parse_args()
  try:
    diagnostics = diagnose(load(arguments.workdir), **(QUICK if arguments.quick else {}))
  except (ValueError, OSError, RuntimeError) as error:
    sys.exit(f'error: {error}')
  print(report.table(diagnostics))
  print(f'{arguments.workdir}/diagnostics/diagnostics.md has the whole story.')
  print_result('sceptic', report.headline(diagnostics))


if __name__ == '__main__':
  main()
