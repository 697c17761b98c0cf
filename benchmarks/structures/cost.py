"""What a structure read off a gradient costs, over training LoRA, in wall seconds.

  python -m benchmarks.structures.cost [--quick] [--backbones embedded vit_s] [--repeats 3]

Everything before training counts, compilation too: the features of the body, the head's epochs on
them, gradients, directions. What every training needs is there before the clock starts: images,
weights, fresh supports, the program that draws the order of images. Two backbones, 800 images of
ten classes, batches of 64, LoRA of rank 1 for 36 epochs: the embedded one on digits, and ten blocks
of a ViT-S/14 on noise of 84 x 84 pixels, with random weights (the time does not depend on values).

Each part of each repeat is a process of its own without a cache of compiled programs. A few epochs
of LoRA are measured, and the others count as much as these, the first, which compiles, apart.
`--quick`: one repeat, two epochs; of the ViT-S 96 images alone, where compilation counts for more.
The last line is JSON.
"""

import argparse
import collections
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machinery.embedded_task import NUM_CLASSES, Backbone, digits, on_device
from benchmarks.machinery.measuring import make_parser, print_result, print_table
from benchmarks.structures import laboratory as lab
from benchmarks.structures import plan
from glora_jax.data.pipeline import Split
from glora_jax.method.space import SearchSpace
from glora_jax.models import weights
from glora_jax.models.vit import vit
from glora_jax.runs.sections import RANKS_OTHERWISE, AllocationSettings
from glora_jax.runs.stages.allocation import equal_batches
from glora_jax.runs.stages.training import HeadOnFeatures
from glora_jax.search.allocate import allocate, compile_ahead
from glora_jax.training import loop
from glora_jax.training.batches import batch_indices, in_rows
from glora_jax.training.head_alone import warm_head
from glora_jax.training.losses import cross_entropy, make_loss

NUM_IMAGES = 800
QUICK_IMAGES = {weights.EMBEDDED: NUM_IMAGES, 'vit_s': 96}
EPOCHS = {weights.EMBEDDED: 12, 'vit_s': 2}  # that are measured
SIDE = 84  # of the ViT-S's images
SETTINGS = AllocationSettings()


def load(given: argparse.Namespace, space: SearchSpace) -> tuple[Backbone, Any, Split]:
  """A backbone adapted with a space, its variables, and the images and labels that it learns."""
  number, (backbone,) = given.images, given.backbones
  if backbone == weights.EMBEDDED:
    loaded = None
    train = Split(*(part[:number] for part in digits()['train']))
  else:
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(number, SIDE, SIDE, 3), dtype=np.uint8)
    train = Split(images, rng.integers(NUM_CLASSES, size=number, dtype=np.int32))
    model = vit('S', 0, patch_size=14, depth=10, layer_scale=1.0)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))['params']
    loaded = model, params, {'image_size': SIDE, 'normalization': 'imagenet'}
  batch_indices(jax.random.key(0), 0, 1, number, lab.BATCH_SIZE)
  base = Backbone.load(loaded, NUM_CLASSES, train.images.shape[1], space)
  params = jax.tree.map(jnp.asarray, base.params)
  return base, jax.block_until_ready(base.adapted.init(jax.random.key(0), params)), on_device(train)


def structure_seconds(given: argparse.Namespace) -> dict[str, float]:
  """Wall seconds of what comes before a structure's training."""
  base, variables, (images, labels) = load(given, SearchSpace.distinct(RANKS_OTHERWISE))

  def loss(forward, batch, key):
    del key
    images, labels = batch
    return cross_entropy(forward(base.preprocess(images)), labels)[0]

  # As `runs.stages.structures` does it.
  start = time.perf_counter()
  key, sizes = jax.random.key(1), {'max_rank': SETTINGS.max_rank}
  rows = equal_batches(key, len(labels), lab.BATCH_SIZE)
  batches = in_rows(images, labels, rows)
  first = images[rows[0]], labels[rows[0]]
  ahead = compile_ahead(base.adapted, variables, loss, first, **sizes)
  head = HeadOnFeatures.of(base.adapted)
  features = head.features(variables, base.preprocess, images, labels, lab.BATCH_SIZE)
  variables = warm_head(head, variables, features, labels, lab.HEAD, key, progress=False)
  jax.block_until_ready(variables)
  warm = time.perf_counter()
  options = {'budget': plan.BUDGETS[1], 'progress': False, 'ahead': ahead}
  found = allocate(base.adapted, variables, loss, batches, key=key, **sizes, **options)
  jax.block_until_ready(found.variables)
  return {'head': warm - start, 'allocation': time.perf_counter() - warm}


def lora_seconds(given: argparse.Namespace) -> dict[str, float]:
  """Wall seconds of training LoRA for all epochs, of which a few are measured."""
  base, variables, train = load(given, SearchSpace(ranks=(1,)))
  fixed = base.adapted.fix('lora:1')
  recipe, ends = lab.recipe(plan.EPOCHS), []
  start = time.perf_counter()
  loop.fit(
    make_loss(fixed, base.preprocess, train=True),
    *fixed.split(variables),
    *train,
    recipe,
    jax.random.key(1),
    stop_epoch=given.epochs,
    steps_per_dispatch=recipe.steps_per_epoch(len(train.labels)),
    on_dispatch=lambda *_: ends.append(time.perf_counter()),
    progress=False,
  )
  first, last = ends[0], ends[-1]
  each = (last - first) / (given.epochs - 1)
  return {'training': first - start + each * (plan.EPOCHS - 1)}


PARTS = {'structure': structure_seconds, 'lora': lora_seconds}


def medians(backbone: str, given: argparse.Namespace) -> dict[str, float]:
  """The median of every part over the repeats, each in processes of its own."""
  images, epochs, repeats = NUM_IMAGES, EPOCHS[backbone], given.repeats
  if given.quick:
    images, epochs, repeats = QUICK_IMAGES[backbone], 2, 1
  flags = [f'--images={images}', f'--epochs={epochs}']
  found = collections.defaultdict(list)
  for part in [*PARTS] * repeats:
    command = [sys.executable, '-m', 'benchmarks.structures.cost', f'--measure={part}']
    command += [f'--backbones={backbone}', *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    for name, seconds in json.loads(done.stdout.splitlines()[-1]).items():
      found[name].append(seconds)
  seconds = {name: statistics.median(values) for name, values in found.items()}
  return {**seconds, 'share': (seconds['head'] + seconds['allocation']) / seconds['training']}


def main() -> None:
  """Measures in fresh processes and prints."""
  parser = make_parser(__doc__, 'one repeat, two epochs, few images of the ViT-S', repeats=3)
  parser.add_argument('--backbones', nargs='+', choices=EPOCHS, default=EPOCHS)
  parser.add_argument('--measure', choices=PARTS, help='in this process')
  parser.add_argument('--images', type=int, default=NUM_IMAGES, help='with --measure')
  parser.add_argument('--epochs', type=int, default=2, help='with --measure, of LoRA')
  given = parser.parse_args()
  if given.measure:
    print(json.dumps(PARTS[given.measure](given)))
    return
  result = {backbone: medians(backbone, given) for backbone in given.backbones}
  names = next(iter(result.values()))
  print_table(
    {'seconds': '', **dict.fromkeys(result, '.2f')},
    [(name, *(seconds[name] for seconds in result.values())) for name in names],
  )
  shorter = SETTINGS.epochs() / plan.EPOCHS
  print(f'its training is shorter by {SETTINGS.epochs()} of {plan.EPOCHS} epochs, {shorter:.3f}')
  print_result('structures.cost', {**result, 'shorter': shorter})


if __name__ == '__main__':
  main()
