"""Which final tasks have headroom: a linear probe, full fine-tuning and all of GLoRA on each.

  python -m benchmarks.structures.admission [--tasks count size] [--quick]

A task is admitted where full fine-tuning is at least 10 points above the linear probe, and both it
and all of GLoRA are below 97%. One seed that the tables do not use, 36 epochs. Learning rates are
chosen on the 200 validation images; the accuracy is that on 1,000 further ones. No test image is
looked at. Results are kept in `admission.json` beside this file, with the version of the method
that made them, if it is known, and what is there is not trained again, unless a task's pictures
have changed. The last line is JSON.
"""

import functools
import hashlib
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from benchmarks.machinery.embedded_task import Backbone, on_device
from benchmarks.machinery.measuring import make_parser, print_result, print_table
from benchmarks.structures.jobs import UNKNOWN, version
from benchmarks.structures.plan import ADMISSION, EPOCHS
from benchmarks.structures.tasks import TASKS, draw, load_pool, more_validation
from glora_jax.data.pipeline import Split
from glora_jax.files import read_json, write_json
from glora_jax.method.adapted import Adapted
from glora_jax.runs.stages.training import FullFineTuning
from glora_jax.training import loop, losses
from glora_jax.training.recipe import Recipe

SEED = 1000
QUICK_EPOCHS = 2
LEAST_GAIN = 10.0  # points of full fine-tuning over the linear probe
HIGHEST = 97.0  # percent
BATCH = 200  # images that are classified at a time
RATES: Mapping[str, tuple[float, ...]] = {
  'linear': (1.6e-2,),
  'finetuning': (5e-4, 1e-3),
  'full': (4e-3, 8e-3),
}


def is_admitted(result: Mapping[str, Any]) -> bool:
  """Whether a task has headroom, by what each method in `RATES` reached."""
  linear, finetuning, full = (result[method]['accuracy'] for method in RATES)
  return finetuning - linear >= LEAST_GAIN and max(finetuning, full) < HIGHEST


@functools.cache
def learner(method: str) -> tuple[Backbone, Adapted, loop.LossFn, Any]:
  """The backbone, what is trained, its loss, and compiled `(variables, images) -> classes`.

  The embedded backbone's head has ten classes on every task: programs are compiled once.
  """
  base = Backbone.load(remat=None)
  adapted = base.adapted
  own = FullFineTuning.of(adapted) if method == 'finetuning' else adapted.fix(method)

  @jax.jit
  def classify(variables, images):
    return own.apply(variables, base.preprocess(images)).argmax(-1)

  return base, own, losses.make_loss(own, base.preprocess, train=True), classify


def measure(task: str, method: str, epochs: int) -> dict[str, float]:
  """Accuracy in percent of a method at the rate that is best on the validation images."""
  base, own, loss_fn, classify = learner(method)
  pool, key, tried = load_pool(task), jax.random.key(SEED), []
  splits, more = draw(pool, SEED), more_validation(pool, SEED)

  def accuracy(variables: Any, data: Split) -> float:
    starts = range(0, len(data.labels), BATCH)
    answers = [classify(variables, data.images[at : at + BATCH]) for at in starts]
    return round(100 * float(np.mean(np.concatenate(answers) == data.labels)), 1)

  for rate in RATES[method]:
    trainable, frozen = own.split(base.adapted.init(key, base.params))
    recipe = Recipe(
      epochs=epochs,
      warmup_epochs=min(3, epochs),
      learning_rate=rate,
      final_learning_rate=rate / 1000,
    )
    data = on_device(splits['train'])
    state = loop.fit(loss_fn, trainable, frozen, *data, recipe, key, progress=False)
    variables = own.join(state.trainable, frozen)
    tried.append((accuracy(variables, splits['val']), -rate, accuracy(variables, more)))
  validation, negative_rate, found = max(tried)
  return {'accuracy': found, 'rate': -negative_rate, 'validation': validation}


def main() -> None:
  """Measures all tasks, and prints."""
  parser = make_parser(__doc__, 'two epochs, and nothing is kept')
  rendered = [name for name, task in TASKS.items() if task.set != 'development']
  parser.add_argument('--tasks', nargs='+', choices=TASKS, default=rendered, metavar='TASK')
  given = parser.parse_args()
  epochs = QUICK_EPOCHS if given.quick else EPOCHS
  kept = read_json(ADMISSION) if os.path.exists(ADMISSION) and not given.quick else {}
  asked = {}
  for name in tqdm(given.tasks, desc='admission'):
    pool = load_pool(name)
    pictures = hashlib.sha256(pool.images.tobytes() + pool.labels.tobytes()).hexdigest()[:16]
    asked[name] = found = {'version': UNKNOWN, **kept.get(name, {})}
    if found.get('pictures') == pictures:
      continue
    found |= {'pictures': pictures, 'version': version()}
    found |= {method: measure(name, method, epochs) for method in RATES}
    found['admitted'] = is_admitted(found)
    if not given.quick:
      write_json(ADMISSION, kept | asked)
  print_table(
    dict.fromkeys(['task', *RATES, 'admitted', 'version'], '.1f'),
    [
      (
        name,
        *(result[method]['accuracy'] for method in RATES),
        'yes' if result['admitted'] else 'no',
        result['version'],
      )
      for name, result in asked.items()
    ],
  )
  print_result('admission', {'epochs': epochs, 'tasks': asked})


if __name__ == '__main__':
  main()
