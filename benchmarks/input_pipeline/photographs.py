"""JPEG photographs streamed: over Pillow alone, and by the number of workers."""

import collections
import concurrent.futures
import os
import time
from collections.abc import Iterator

import numpy as np
import sklearn.datasets
from PIL import Image

from benchmarks.machinery.measuring import in_turn
from glora_jax.vision.data import pipeline
from glora_jax.vision.data.image import decode, resize
from glora_jax.vision.data.pipeline import Split, blocks
from glora_jax.vision.data.task import Files

SIZE = 224
HEIGHT, WIDTH = 375, 500
BATCH = 32  # streamed images
TIMED = 48  # images of a core
FEWEST_BATCHES = 16  # over which workers are timed


def write(folder: str, count: int) -> Files:
  """JPEG files of 500 x 375."""
  paths = [os.path.join(folder, f'{number}.jpg') for number in range(count)]
  for path, cut in zip(paths, cuts(count, HEIGHT, WIDTH), strict=True):
    cut.save(path, quality=90)
  return Files(paths, [number % 2 for number in range(count)])


def cuts(count: int, height: int, width: int) -> Iterator[Image.Image]:
  """Random pieces of the two photographs that come with scikit-learn, which take turns."""
  rng = np.random.default_rng(0)
  photographs = sklearn.datasets.load_sample_images().images
  for number in range(count):
    image = photographs[number % 2]
    top = rng.integers(0, image.shape[0] - height)
    left = rng.integers(0, image.shape[1] - width)
    yield Image.fromarray(image[top : top + height, left : left + width])


def read_with_pillow(paths: list[str]) -> None:
  """Decodes and resizes, and nothing else."""
  for path in paths:
    resize(decode(path), SIZE)


def measure_over_pillow(files: Files, repeats: int) -> tuple[float, float, float | None]:
  """Reads all files by a stream and by as many processes as there are cores, in turn.

  Returns:
    Images per second of `Stream` and of Pillow alone, and the median of their ratios.
  """
  stream = pipeline.Stream(files, SIZE)
  cores = os.cpu_count()
  parts = [files.paths[core::cores] for core in range(cores)]

  with concurrent.futures.ProcessPoolExecutor(cores) as pool:
    ways = {
      'pillow': lambda: list(pool.map(read_with_pillow, parts)),
      'ours': lambda: collections.deque(blocks(Split(stream, stream.labels), BATCH), maxlen=0),
    }
    times = in_turn(ways, repeats)
  ours, pillow = (len(files.paths) / times.median(name) for name in ('ours', 'pillow'))
  return ours, pillow, times.ratio('pillow', 'ours')


def images_per_core(files: Files) -> float:
  """Images that one core reads, decodes and resizes per second."""
  read_with_pillow(files.paths[:1])  # which loads the decoder
  start = time.thread_time()
  read_with_pillow(files.paths[:TIMED])
  return TIMED / (time.thread_time() - start)


def measure_workers(files: Files, repeats: int) -> dict[int, tuple[float, ...]]:
  """By the number of processes, 0 for threads, in turn, medians of the repeats.

  They are the seconds to the first batch, and images a second over the second half: none is read
  ahead.
  """
  number, found = max(FEWEST_BATCHES, len(files.paths) // BATCH), collections.defaultdict(list)
  half = number // 2
  for workers in sorted({0, 1, 2, os.cpu_count() or 1}) * repeats:
    seen = [time.perf_counter()]
    stream = pipeline.Stream(files, SIZE, workers=workers)
    seen += [time.perf_counter() for _ in stream.batches(cycled(len(files.paths), number))]
    found[workers].append((seen[1] - seen[0], (number - half) * BATCH / (seen[-1] - seen[half])))
  return {workers: tuple(np.median(measured, axis=0)) for workers, measured in found.items()}


def cycled(files: int, batches: int) -> np.ndarray:
  """Indices of files in their order, again and again, int [batches, BATCH]."""
  return np.resize(np.arange(files), (batches, BATCH))


def resident_memory() -> float:
  """MiB that the process holds now."""
  with open('/proc/self/statm') as file:
    return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**20


def watched(batches: Iterator[pipeline.Split], number: int) -> float:
  """MiB by which memory grows after the first tenth of `number` images of a stream."""
  seen, early = 0, 0.0
  for batch in batches:
    seen += len(batch.labels)
    if seen <= number // 10:
      early = resident_memory()
  return resident_memory() - early
