"""Which final tasks have headroom: a linear probe, full fine-tuning and all of GLoRA on each.

  python -m benchmarks.structures.admission [--tasks count size] [--quick]

A task is admitted where full fine-tuning is at least 10 points above the linear probe, and both it
and all of GLoRA are below 97%. One seed that the tables do not use, 36 epochs. Learning rates are
chosen on the 200 validation images; the accuracy is that on 1,000 further ones. No test image is
looked at. Results are kept in `admission.json` beside this file, and what is there is not trained
again; a task whose pictures have changed is. The last line is JSON.
"""

import argparse
import functools
import hashlib
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machinery.embedded_task import IMAGE_SIZE, NUM_CLASSES, Backbone, on_device
from benchmarks.machinery.output import make_parser, print_result, print_table
from benchmarks.structures.tasks import TASKS, Pool, draw, load_pool, more_validation
from glora_jax.data.pipeline import Split
from glora_jax.files import read_json, write_json
from glora_jax.method.adapt import adapt
from glora_jax.method.presets import preset
from glora_jax.models import weights
from glora_jax.runs.stages.many_starts import FullFineTuning, Learner
from glora_jax.training import loop, losses
from glora_jax.training.recipe import Recipe

RESULTS = os.path.join(os.path.dirname(__file__), 'admission.json')
SEED = 1000
EPOCHS = 36
QUICK_EPOCHS = 2
LEAST_GAIN = 10.0  # points of full fine-tuning over the linear probe
HIGHEST = 97.0  # percent
BATCH = 200  # images that are classified at a time
RATES: Mapping[str, tuple[float, ...]] = {
  'linear': (1.6e-2,),
  'finetuning': (5e-4, 1e-3),
  'full': (4e-3, 8e-3),
}


def parse_arguments() -> argparse.Namespace:
  """Reads the command line."""
  parser = make_parser(__doc__ or '', 'two epochs, and nothing is kept')
  rendered = [name for name, task in TASKS.items() if task.set != 'development']
  parser.add_argument('--tasks', nargs='+', choices=TASKS, default=rendered, metavar='TASK')
  return parser.parse_args()


def is_admitted(accuracy: Mapping[str, float]) -> bool:
  """Whether a task has headroom, by the accuracy in percent of each method in `RATES`."""
  gain = accuracy['finetuning'] - accuracy['linear']
  return gain >= LEAST_GAIN and max(accuracy['finetuning'], accuracy['full']) < HIGHEST


@functools.cache
def backbone() -> Backbone:
  """The embedded backbone. Its head has ten classes on every task: programs are compiled once."""
  loaded = weights.load(weights.EMBEDDED_FILE)
  model, params, metadata = weights.refit(*loaded, num_classes=NUM_CLASSES)
  sample = jnp.zeros((1, IMAGE_SIZE, IMAGE_SIZE, 3))
  return Backbone(adapt(model.clone(drop_path=0.1), sample), params, metadata['normalization'])


@functools.cache
def learner(method: str) -> Learner:
  """What is trained: a fixed subnet, or all of the base."""
  adapted = backbone().adapted
  if method == 'finetuning':
    return FullFineTuning(adapted)
  return adapted.fix(preset(adapted.spec, method))


@functools.cache
def loss_fn(method: str) -> loop.LossFn:
  """The loss of a method."""
  return losses.subnet_loss(learner(method), backbone().unaugmented, train=True)


@functools.cache
def classifier(method: str) -> Any:
  """Compiled `(variables, images) -> classes`."""

  def classify(variables, images):
    return learner(method).apply(variables, backbone().preprocess(images)).argmax(-1)

  return jax.jit(classify)


def train(method: str, rate: float, data: Split, epochs: int) -> Any:
  """Variables of a method after its training."""
  base, trained = backbone(), learner(method)
  key = jax.random.key(SEED)
  trainable, frozen = trained.split(base.adapted.init(key, base.params))
  recipe = Recipe(
    epochs=epochs,
    warmup_epochs=min(3, epochs),
    learning_rate=rate,
    final_learning_rate=rate / 1000,
  )
  images, labels = on_device(data)
  state = loop.fit(loss_fn(method), trainable, frozen, images, labels, recipe, key, progress=False)
  return trained.join(state.trainable, frozen)


def accuracy_percent(method: str, variables: Any, data: Split) -> float:
  """Share of images that are classified right, in percent."""
  classify = classifier(method)
  starts = range(0, len(data.labels), BATCH)
  parts = [np.asarray(classify(variables, data.images[at : at + BATCH])) for at in starts]
  return round(100 * float(np.mean(np.concatenate(parts) == data.labels)), 1)


def measure(pool: Pool, method: str, epochs: int) -> dict[str, float]:
  """Accuracy of a method at the rate that is best on the validation images, and that rate."""
  splits, more = draw(pool, SEED), more_validation(pool, SEED)
  tried = []
  for rate in RATES[method]:
    variables = train(method, rate, splits['train'], epochs)
    chosen_by = accuracy_percent(method, variables, splits['val'])
    tried.append((chosen_by, -rate, accuracy_percent(method, variables, more)))
  chosen_by, negative_rate, accuracy = max(tried)
  return {'accuracy': accuracy, 'rate': -negative_rate, 'validation': chosen_by}


def fingerprint(pool: Pool) -> str:
  """SHA-256 of a task's pictures and labels, its first 16 digits."""
  sha = hashlib.sha256(pool.images.tobytes())
  sha.update(pool.labels.tobytes())
  return sha.hexdigest()[:16]


def admit(name: str, epochs: int, known: dict[str, Any], keep: Callable[[], None]) -> None:
  """Measures what is not known of a task.

  Args:
    name: of the task.
    epochs: of every training.
    known: what was measured before, JSON types; the rest is added, and all is measured anew where
      the task's pictures have changed.
    keep: called after each method.
  """
  pool = load_pool(name)
  pictures = fingerprint(pool)
  if known.get('pictures') != pictures:
    known.clear()
    known['pictures'] = pictures
  for method in RATES:
    if method not in known:
      known[method] = measure(pool, method, epochs)
      keep()
  accuracy = {method: known[method]['accuracy'] for method in RATES}
  known['admitted'] = is_admitted(accuracy)
  keep()


def row(name: str, result: Mapping[str, Any]) -> list[str]:
  """A line of the table."""
  cells = [f'{result[method]["accuracy"]:.1f}' for method in RATES]
  return [name, *cells, 'yes' if result['admitted'] else 'no']


def main() -> None:
  """Measures task by task, and prints."""
  arguments = parse_arguments()
  epochs = QUICK_EPOCHS if arguments.quick else EPOCHS
  results = read_json(RESULTS) if os.path.exists(RESULTS) and not arguments.quick else {}

  def keep():
    if not arguments.quick:
      write_json(RESULTS, results)

  for name in arguments.tasks:
    admit(name, epochs, results.setdefault(name, {}), keep)
    print_table(['task', *RATES, 'admitted'], [row(name, results[name])])
  asked = {name: results[name] for name in arguments.tasks}
  print_table(['task', *RATES, 'admitted'], [row(*item) for item in asked.items()])
  print_result('admission', {'epochs': epochs, 'tasks': asked})


if __name__ == '__main__':
  main()
