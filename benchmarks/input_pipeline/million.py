"""A million small records on the disk, as a TFDS data set: made, opened, checked and streamed."""

import io
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds

from benchmarks.input_pipeline.photographs import cuts, resident_memory, watched
from glora_jax.training.batches import batch_indices
from glora_jax.vision.data import pipeline
from glora_jax.vision.data.task import Task
from glora_jax.vision.data.tfds import TfdsExamples, prepare, read

SIDE = 32
CLASSES = 1000
DISTINCT = 4096  # images, which take turns
BATCH = 128


class Million(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """JPEG images of 32 x 32, cut from photographs; labels go round."""

  VERSION = tfds.core.Version('1.0.0')
  number = 10**6

  def _info(self) -> tfds.core.DatasetInfo:
    features = {
      'image': tfds.features.Image(shape=(SIDE, SIDE, 3), encoding_format='jpeg'),
      'label': tfds.features.ClassLabel(num_classes=CLASSES),
    }
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
    )

  def _split_generators(self, dl_manager) -> dict[str, Iterator]:
    return {'train': self._generate_examples()}

  def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
    encoded = []
    for cut in cuts(DISTINCT, SIDE, SIDE):
      file = io.BytesIO()
      cut.save(file, 'jpeg', quality=85)
      encoded.append(file.getvalue())
    for number in range(self.number):
      image = io.BytesIO(encoded[number % DISTINCT])
      yield number, {'image': image, 'label': number % CLASSES}


Cost = tuple[float, float, float]  # seconds of wall and processor, MiB that the process holds then


def measure(folder: str, number: int) -> tuple[int, dict[str, Cost], float, float]:
  """Prepares the data set, opens it twice, checks its images, and streams it once.

  Returns:
    Its number of examples; what came before the first step, by what it was; images per second over
    an epoch, the first batch apart; MiB by which memory grows after a tenth of the epoch.
  """
  costs: dict[str, Cost] = {}

  def timed(title: str, function: Callable[[], Any]) -> Any:
    wall, processor = time.perf_counter(), time.process_time()
    result = function()
    taken = time.perf_counter() - wall, time.process_time() - processor
    costs[title] = (*taken, resident_memory())
    return result

  builder = Million(data_dir=folder, file_format='array_record')
  builder.number = number
  timed('preparing', lambda: prepare(builder))
  for title in ('labels, at the first start', 'labels, at later ones'):
    labels = timed(title, lambda: read(builder, 'train').labels)
  examples = read(builder, 'train')
  timed('opening every image once', lambda: check(examples))
  indices = timed(
    'order of an epoch',
    lambda: np.stack(
      [*batch_indices(jax.random.key(0), 0, len(labels) // BATCH, len(labels), BATCH)]
    ),
  )
  batches = pipeline.Stream(examples, SIDE).batches(indices)
  first = timed('first batch', lambda: next(batches))
  np.testing.assert_array_equal(first.labels, indices[0] % CLASSES)
  start = time.perf_counter()
  growth = watched(batches, indices.size - BATCH)
  rate = (indices.size - BATCH) / (time.perf_counter() - start)
  return len(labels), costs, rate, growth


def check(examples: TfdsExamples) -> None:
  """Opens every image once, as a run that streams them does before its first stage."""
  names = tuple(map(str, range(CLASSES)))
  task = Task('million', names, {'train': examples}, 'a benchmark')
  pipeline.open_images(pipeline.Images(task, SIDE))
