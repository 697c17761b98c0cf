"""Images that stay on the device: what taking them costs, of the steps that take them."""

import functools
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks.machinery import embedded_task
from benchmarks.machinery.measuring import in_turn, median_ratio
from benchmarks.machinery.training_steps import CompiledSteps, Problem, Shape
from glora_jax.data import pipeline
from glora_jax.data.catalog import find
from glora_jax.training.batches import batch_indices
from glora_jax.training.recipe import Recipe

QUICKSTART_STEPS = 28 * 12 + 28 * 12 + 8 * 12  # supernet, linear probe, finetuning


@functools.partial(jax.jit, static_argnums=0)
def sum_batches(
  preprocess: Callable, images: jax.Array, labels: jax.Array, indices: jax.Array
) -> jax.Array:
  """The sum over all that training sees of batches with indices int32 [step, batch]."""

  def add(total, index):
    return total + preprocess(images[index]).sum() + labels[index].sum(), None

  return jax.lax.scan(add, jnp.float32(0), indices)[0]


def measure(steps: int, repeats: int) -> tuple[float, float, float]:
  """Times the input of training steps and the steps, in turn.

  Returns:
    All of it (gathering, normalizing, reading once) over the quickstart's training; seconds of a
    step, and of reading.
  """
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
  reading = reading_seconds / (QUICKSTART_STEPS * step_seconds)
  return median_ratio(times, 'input', 'training') + reading, step_seconds, reading_seconds
