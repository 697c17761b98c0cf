"""Images that stay on the device: what taking them costs, of the steps that take them."""

import time

import jax

from benchmarks.machinery import embedded_task
from benchmarks.machinery.measuring import in_turn
from benchmarks.machinery.training_steps import CompiledSteps, Problem, Shape
from glora_jax.data import pipeline
from glora_jax.data.catalog import find
from glora_jax.training.batches import batch_indices
from glora_jax.training.recipe import Recipe

QUICKSTART_STEPS = 28 * 12 + 28 * 12 + 8 * 12  # supernet, linear probe, finetuning


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

  @jax.jit
  def sums(images, labels, indices):
    """All that training sees of batches with indices int32 [step, batch], added up."""
    return jax.lax.map(
      lambda index: backbone.preprocess(images[index]).sum() + labels[index].sum(), indices
    ).sum()

  rows = {'input': lambda: sums(images, labels, indices), 'training': training}
  times = in_turn(rows, repeats)
  step_seconds = times.median('training') / steps
  reading = reading_seconds / (QUICKSTART_STEPS * step_seconds)
  return times.ratio('input', 'training') + reading, step_seconds, reading_seconds
