"""Which final tasks have headroom: a linear probe, full fine-tuning and all of GLoRA on each.

  python -m benchmarks.structures.admission [--tasks count size] [--quick]

A task is admitted where full fine-tuning is at least 10 points above the linear probe, and both it
and all of GLoRA are below 97%. One seed that the tables do not use, 36 epochs. Learning rates are
chosen on the 200 validation images; the accuracy is that on 1,000 further ones. No test image is
looked at. Results are kept in `admission.json` beside this file, with the version of the method
that made them, if it is known, and what is there is not trained again; a task whose pictures have
changed is, and one that another version left unfinished. The last line is JSON.
"""

import functools
import hashlib
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from benchmarks.machinery.embedded_task import Backbone, on_device
from benchmarks.machinery.measuring import make_parser, print_result, print_table
from benchmarks.structures.jobs import UNKNOWN, results_of, version
from benchmarks.structures.tasks import TASKS, draw, load_pool, more_validation
from glora_jax.data.pipeline import Split
from glora_jax.files import read_json, write_json
from glora_jax.method.adapted import Adapted
from glora_jax.method.presets import preset
from glora_jax.runs.runners import THIS_PROCESS
from glora_jax.runs.stages.training import FullFineTuning
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


def is_admitted(accuracy: Mapping[str, float]) -> bool:
  """Whether a task has headroom, by the accuracy in percent of each method in `RATES`."""
  gain = accuracy['finetuning'] - accuracy['linear']
  return gain >= LEAST_GAIN and max(accuracy['finetuning'], accuracy['full']) < HIGHEST


@functools.cache
def backbone() -> Backbone:
  """The embedded backbone. Its head has ten classes on every task: programs are compiled once."""
  return Backbone.load(remat=None)


@functools.cache
def programs(method: str) -> tuple[Adapted, loop.LossFn, Any]:
  """What is trained, its loss, and compiled `(variables, images) -> classes`."""
  base = backbone()
  adapted = base.adapted
  learner = FullFineTuning.of(adapted)
  if method != 'finetuning':
    learner = adapted.fix(preset(adapted.spec, method))

  @jax.jit
  def classify(variables, images):
    return learner.apply(variables, base.preprocess(images)).argmax(-1)

  return learner, losses.make_loss(learner, base.preprocess, train=True), classify


def train(method: str, rate: float, data: Split, epochs: int) -> Any:
  """Variables of a method after its training."""
  base = backbone()
  trained, loss_fn, _ = programs(method)
  key = jax.random.key(SEED)
  trainable, frozen = trained.split(base.adapted.init(key, base.params))
  recipe = Recipe(
    epochs=epochs,
    warmup_epochs=min(3, epochs),
    learning_rate=rate,
    final_learning_rate=rate / 1000,
  )
  images, labels = on_device(data)
  state = loop.fit(loss_fn, trainable, frozen, images, labels, recipe, key, progress=False)
  return trained.join(state.trainable, frozen)


def accuracy_percent(method: str, variables: Any, data: Split) -> float:
  """Share of images that are classified right, in percent."""
  *_, classify = programs(method)
  starts = range(0, len(data.labels), BATCH)
  parts = [np.asarray(classify(variables, data.images[at : at + BATCH])) for at in starts]
  return round(100 * float(np.mean(np.concatenate(parts) == data.labels)), 1)


def measure(task: str, method: str, epochs: int) -> dict[str, float]:
  """Accuracy of a method at the rate that is best on the validation images, and that rate."""
  pool = load_pool(task)
  splits, more = draw(pool, SEED), more_validation(pool, SEED)
  tried = []
  for rate in RATES[method]:
    variables = train(method, rate, splits['train'], epochs)
    chosen_by = accuracy_percent(method, variables, splits['val'])
    tried.append((chosen_by, -rate, accuracy_percent(method, variables, more)))
  chosen_by, negative_rate, accuracy = max(tried)
  return {'accuracy': accuracy, 'rate': -negative_rate, 'validation': chosen_by}


def print_tasks(results: Mapping[str, Any]) -> None:
  """A table for each version, with a line for each task."""
  for made_by in dict.fromkeys(result['version'] for result in results.values()):
    rows = []
    for name, result in results.items():
      if result['version'] == made_by:
        cells = [f'{result[method]["accuracy"]:.1f}' for method in RATES]
        rows.append([name, *cells, 'yes' if result['admitted'] else 'no'])
    print_table([f'task, version {made_by}', *RATES, 'admitted'], rows)


def begun(known: Mapping[str, Any], name: str) -> dict[str, Any]:
  """What is known of a task's pictures as they are, by one version, which may go on with it."""
  pool = load_pool(name)
  pictures = hashlib.sha256(pool.images.tobytes() + pool.labels.tobytes()).hexdigest()[:16]
  made_by = known.get('version', UNKNOWN)
  whole = all(method in known for method in RATES)
  if known.get('pictures') != pictures or not (whole or made_by == version()):
    return {'pictures': pictures, 'version': version()}
  return {**known, 'version': made_by}


def main() -> None:
  """Measures all tasks, and prints."""
  parser = make_parser(__doc__, 'two epochs, and nothing is kept')
  rendered = [name for name, task in TASKS.items() if task.set != 'development']
  parser.add_argument('--tasks', nargs='+', choices=TASKS, default=rendered, metavar='TASK')
  arguments = parser.parse_args()
  epochs = QUICK_EPOCHS if arguments.quick else EPOCHS
  kept = read_json(RESULTS) if os.path.exists(RESULTS) and not arguments.quick else {}
  asked = {name: begun(kept.get(name, {}), name) for name in arguments.tasks}
  places = {
    f'admission {name} {method} {epochs} {asked[name]["pictures"]}': (name, method)
    for name in asked
    for method in RATES
    if method not in asked[name]
  }
  works = {job: functools.partial(measure, *place, epochs) for job, place in places.items()}
  for job, result in results_of(works, THIS_PROCESS, 'admission'):
    name, method = places[job]
    asked[name][method] = {key: value for key, value in result.items() if key != 'version'}
    if not arguments.quick:
      write_json(RESULTS, kept | asked)
  for result in asked.values():
    result['admitted'] = is_admitted({method: result[method]['accuracy'] for method in RATES})
  if not arguments.quick:
    write_json(RESULTS, kept | asked)
  print_tasks(asked)
  print_result('admission', {'epochs': epochs, 'tasks': asked})


if __name__ == '__main__':
  main()
