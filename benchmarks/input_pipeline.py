"""What input costs: resident images against training, streaming against Pillow alone, memory over many images.

  python -m benchmarks.input_pipeline [--quick]

`resident_share`: time for taking batches and normalizing them, over the time of the quickstart's supernet steps that do it, plus reading the
training images once, spread over the quickstart's steps. `stream_over_pillow`: JPEG files per second through `Stream`, over what as
many processes as there are cores do that only call Pillow (decode, resize) on the same files, in turn, median of the ratios.
`growth_mib`: how much resident memory grows between the 2,000th and the last of 20,000 streamed images. `--quick` takes fewer. The last line
is JSON.
"""

import argparse
import concurrent.futures
import json
import os
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.datasets
from PIL import Image

from benchmarks import machine
from glora_jax.data import normalization, pipeline
from glora_jax.data.catalog import find
from glora_jax.data.examples import Files
from glora_jax.data.image import decode, resize
from glora_jax.method import genomes
from glora_jax.method.adapt import adapt
from glora_jax.models import weights
from glora_jax.training import loop, losses
from glora_jax.training.batches import batch_indices
from glora_jax.training.recipe import Recipe

SIZE = 224


def resident(steps, repeats):
  """(share of gathering and normalizing in a step, seconds to read the training images, seconds of a step)."""
  start = time.perf_counter()
  images, labels = pipeline.load(find('digits').open('train'), 28)
  reading = time.perf_counter() - start
  images, labels = jnp.asarray(images), jnp.asarray(labels)
  model, params, metadata = weights.refit(*weights.load(weights.EMBEDDED_FILE), num_classes=10)
  adapted = adapt(model.clone(remat='dots_saveable', drop_path=0.1), jnp.zeros((1, 28, 28, 3)))
  trainable, frozen = adapted.split(adapted.init(jax.random.key(0), params))
  normalize = lambda _, x: normalization.normalize(x, metadata['normalization'])
  loss = losses.supernet_loss(
    adapted, normalize, lambda key: genomes.sample_genome(key, adapted.spec), train=True
  )
  recipe = Recipe(epochs=28, warmup_epochs=3)
  step = loop.make_steps(loss, recipe.optimizer(len(labels)))
  indices = batch_indices(jax.random.key(1), 0, steps, len(labels), recipe.batch_size)

  @jax.jit
  def only_input(images, labels, indices):
    def one(total, index):
      return total + normalize(None, images[index]).sum() + labels[index].sum(), None

    return jax.lax.scan(one, jnp.float32(0), indices)[0]

  def timed(function, *arguments):
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start

  def train():
    copy = jax.tree.map(jnp.copy, trainable)
    return timed(
      step,
      copy,
      recipe.optimizer(len(labels)).init(copy),
      0,
      frozen,
      images,
      labels,
      indices,
      jax.random.key(2),
    )

  train()
  timed(only_input, images, labels, indices)
  shares, seconds = [], []
  for _ in range(repeats):
    whole = train()
    shares.append(timed(only_input, images, labels, indices) / whole)
    seconds.append(whole / steps)
  return statistics.median(shares), reading, statistics.median(seconds)


def write_photographs(folder, count):
  """JPEG files of about 500 x 375, cut from the two photographs that come with scikit-learn."""
  rng = np.random.default_rng(0)
  photographs = sklearn.datasets.load_sample_images().images
  paths = []
  for number in range(count):
    image = photographs[number % 2]
    top, left = rng.integers(0, image.shape[0] - 375), rng.integers(0, image.shape[1] - 500)
    paths.append(os.path.join(folder, f'{number}.jpg'))
    Image.fromarray(image[top : top + 375, left : left + 500]).save(paths[-1], quality=90)
  return paths


def pillow(paths):
  for path in paths:
    resize(decode(path), SIZE)


def throughput(function, count):
  start = time.perf_counter()
  function()
  return count / (time.perf_counter() - start)


def resident_memory():
  with open('/proc/self/statm') as file:
    return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**20


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--quick', action='store_true', help='fewer images and repeats')
  quick = parser.parse_args().quick
  repeats, cores = (1 if quick else 5), os.cpu_count()
  share, reading, seconds = resident(12 if quick else 48, repeats)
  quickstart_steps = 28 * 12 + 28 * 12 + 8 * 12  # supernet, linear probe, finetuning
  share += reading / (quickstart_steps * seconds)
  with tempfile.TemporaryDirectory() as folder:
    paths = write_photographs(folder, 64 if quick else 512)
    stream = pipeline.Stream(Files(paths, [0] * len(paths)), SIZE)
    consume = lambda: [None for _ in stream.blocks(32)]
    with concurrent.futures.ProcessPoolExecutor(cores) as pool:
      parts = [paths[n::cores] for n in range(cores)]
      all_cores = lambda: list(pool.map(pillow, parts))
      all_cores(), consume()
      rates = [
        (throughput(consume, len(paths)), throughput(all_cores, len(paths))) for _ in range(repeats)
      ]
    ratio = statistics.median(ours / theirs for ours, theirs in rates)
    many = 2_000 if quick else 20_000
    order = np.resize(np.arange(len(paths)), many // 32 * 32).reshape(-1, 32)
    seen, early = 0, 0.0
    for batch in stream.batches(order):
      seen += len(batch.labels)
      if seen <= many // 10:
        early = resident_memory()
    growth = resident_memory() - early
  ours, theirs = (statistics.median(column) for column in zip(*rates, strict=True))
  print(
    f"resident input            {100 * share:6.2f}% of the quickstart's training ({1000 * seconds:.0f} ms a step, "
    f'{reading:.2f} s of reading)'
  )
  print(
    f'streaming                 {ours:6.0f} images a second; Pillow alone on {cores} cores {theirs:.0f}; ratio {ratio:.2f}'
  )
  print(f'memory over {many:,} images  {growth:+.0f} MiB')
  print(
    json.dumps(
      {
        'benchmark': 'input_pipeline',
        'machine': machine.describe(),
        'resident_share': round(share, 4),
        'stream_over_pillow': round(ratio, 3),
        'growth_mib': round(growth, 1),
      }
    )
  )


if __name__ == '__main__':
  main()
