"""What input costs: resident images against training, streaming against Pillow alone, memory.

  python -m benchmarks.input_pipeline [--quick]

`resident_share`: time for taking batches and normalizing them, over the time of the quickstart's
supernet steps that do it, plus reading the training images once, spread over the quickstart's
steps. `stream_over_pillow`: JPEG files per second through `Stream`, over what as many processes as
there are cores do that only call Pillow (decode, resize) on the same files, in turn, median of the
ratios. `growth_mib`: how much resident memory grows between the 2,000th and the last of 20,000
streamed images. `--quick` takes fewer. The last line is JSON.
"""

import concurrent.futures
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.datasets
from PIL import Image

from benchmarks.machinery import embedded_task
from benchmarks.machinery.output import make_parser, print_result
from benchmarks.machinery.timing import in_turn, median_ratio
from benchmarks.machinery.training_steps import CompiledSteps, Problem, Shape
from glora_jax.data import pipeline
from glora_jax.data.catalog import find
from glora_jax.data.examples import Files
from glora_jax.data.image import decode, resize
from glora_jax.training.batches import batch_indices
from glora_jax.training.recipe import Recipe

SIZE = 224
PHOTOGRAPH_HEIGHT, PHOTOGRAPH_WIDTH = 375, 500
BATCH = 32  # streamed images
QUICKSTART_STEPS = 28 * 12 + 28 * 12 + 8 * 12  # supernet, linear probe, finetuning


class Plan(NamedTuple):
  """How much is measured.

  Attributes:
    repeats: of everything that is compared.
    steps: training steps of a repeat.
    files: JPEG files of a repeat.
    streamed: images over which memory is watched.
  """

  repeats: int
  steps: int
  files: int
  streamed: int


FULL_PLAN = Plan(repeats=5, steps=48, files=512, streamed=20_000)
QUICK_PLAN = Plan(repeats=3, steps=24, files=256, streamed=2_000)


class Resident(NamedTuple):
  """What resident input costs.

  Attributes:
    share_of_step: gathering and normalizing, over a training step.
    reading_seconds: for the training images, once.
    step_seconds: of a training step.
  """

  share_of_step: float
  reading_seconds: float
  step_seconds: float

  def share(self) -> float:
    """All of it over the quickstart's training."""
    return self.share_of_step + self.reading_seconds / (QUICKSTART_STEPS * self.step_seconds)


@functools.partial(jax.jit, static_argnums=0)
def sum_batches(
  preprocess: Callable[[jax.Array], jax.Array],
  images: jax.Array,
  labels: jax.Array,
  indices: jax.Array,
) -> jax.Array:
  """The sum over all that training sees of batches with indices int32 [step, batch]."""

  def add(total, index):
    return total + preprocess(images[index]).sum() + labels[index].sum(), None

  return jax.lax.scan(add, jnp.float32(0), indices)[0]


def measure_resident(steps: int, repeats: int) -> Resident:
  """Times the input of training steps and the steps, in turn."""
  start = time.perf_counter()
  split = pipeline.load(find('digits').open('train'), embedded_task.IMAGE_SIZE)
  reading_seconds = time.perf_counter() - start
  images, labels = embedded_task.on_device(split)
  backbone = embedded_task.Backbone.load()
  adapted, batch = backbone.adapted, Recipe().batch_size
  shape = Shape(adapted.model, embedded_task.IMAGE_SIZE, batch, steps)
  problem = Problem(shape, backbone.params, images, labels)
  halves = adapted.split(adapted.init(jax.random.key(0), backbone.params))
  training = CompiledSteps(backbone.supernet_loss(), *halves, problem)
  indices = batch_indices(jax.random.key(1), 0, steps, len(labels), batch)

  def take_batches():
    return sum_batches(backbone.preprocess, images, labels, indices)

  times = in_turn({'input': take_batches, 'training': training}, repeats)
  step_seconds = statistics.median(times['training']) / steps
  return Resident(median_ratio(times, 'input', 'training'), reading_seconds, step_seconds)


def write_photographs(folder: str, count: int) -> list[str]:
  """JPEG files of 500 x 375, cut from the two photographs that come with scikit-learn."""
  rng = np.random.default_rng(0)
  photographs = sklearn.datasets.load_sample_images().images
  paths = []
  for number in range(count):
    image = photographs[number % 2]
    top = rng.integers(0, image.shape[0] - PHOTOGRAPH_HEIGHT)
    left = rng.integers(0, image.shape[1] - PHOTOGRAPH_WIDTH)
    cut = image[top : top + PHOTOGRAPH_HEIGHT, left : left + PHOTOGRAPH_WIDTH]
    paths.append(os.path.join(folder, f'{number}.jpg'))
    Image.fromarray(cut).save(paths[-1], quality=90)
  return paths


def read_with_pillow(paths: list[str]) -> None:
  """Decodes and resizes, and nothing else."""
  for path in paths:
    resize(decode(path), SIZE)


class Streaming(NamedTuple):
  """Images per second of `Stream` and of Pillow alone, and the median of their ratios."""

  ours: float
  pillow: float
  ratio: float


def measure_streaming(stream: pipeline.Stream, paths: list[str], repeats: int) -> Streaming:
  """Reads all files by the stream and by as many processes as there are cores, in turn."""
  cores = os.cpu_count()
  parts = [paths[core::cores] for core in range(cores)]

  def consume_stream():
    for _ in stream.blocks(BATCH):
      pass

  with concurrent.futures.ProcessPoolExecutor(cores) as pool:

    def use_all_cores():
      list(pool.map(read_with_pillow, parts))

    times = in_turn({'pillow': use_all_cores, 'ours': consume_stream}, repeats)
  ours, pillow = (len(paths) / statistics.median(times[name]) for name in ('ours', 'pillow'))
  return Streaming(ours, pillow, median_ratio(times, 'pillow', 'ours'))


def resident_memory() -> float:
  """MiB that the process holds now."""
  with open('/proc/self/statm') as file:
    return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**20


def measure_growth(stream: pipeline.Stream, number: int) -> float:
  """MiB by which memory grows after the first tenth of `number` streamed images."""
  files = len(stream.labels)
  order = np.resize(np.arange(files), number // BATCH * BATCH).reshape(-1, BATCH)
  seen, early = 0, 0.0
  for batch in stream.batches(order):
    seen += len(batch.labels)
    if seen <= number // 10:
      early = resident_memory()
  return resident_memory() - early


def main() -> None:
  """Measures and prints."""
  quick = make_parser(__doc__, 'fewer images and repeats').parse_args().quick
  plan = QUICK_PLAN if quick else FULL_PLAN
  resident = measure_resident(plan.steps, plan.repeats)
  with tempfile.TemporaryDirectory() as folder:
    paths = write_photographs(folder, plan.files)
    stream = pipeline.Stream(Files(paths, [0] * len(paths)), SIZE)
    streaming = measure_streaming(stream, paths, plan.repeats)
    growth = measure_growth(stream, plan.streamed)
  print(
    f"resident input            {100 * resident.share():6.2f}% of the quickstart's training "
    f'({1000 * resident.step_seconds:.0f} ms a step, {resident.reading_seconds:.2f} s of reading)'
  )
  print(
    f'streaming                 {streaming.ours:6.0f} images a second; Pillow alone on '
    f'{os.cpu_count()} cores {streaming.pillow:.0f}; ratio {streaming.ratio:.2f}'
  )
  print(f'memory over {plan.streamed:,} images  {growth:+.0f} MiB')
  values = {
    'resident_share': round(resident.share(), 4),
    'stream_over_pillow': round(streaming.ratio, 3),
    'growth_mib': round(growth, 1),
  }
  print_result('input_pipeline', values)


if __name__ == '__main__':
  main()
