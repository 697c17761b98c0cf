"""Which recipe makes a supernet whose searched and finetuned subnet is as good as every preset?

  python -m benchmarks.supernet_recipes [--quick] [--folder runs/recipes] [--seeds 5] [--workers 2]
                                        [--only NAME ...]

At least as good, that is, as every preset of at most its size. On the embedded task (digits, the
embedded backbone, budget 40,000) every method gets the same number of training steps, `EPOCHS`
epochs of 800 images. A preset spends them all on itself, trained alone. A recipe spends some on the
supernet and the rest on finetuning what the paper's evolution finds in it (210 evaluations by
accuracy on the 200 validation images), at half of its rate. Each method has its own learning rate,
the best of `RATES` on the validation images, chosen with a seed that the table does not use; the
variations of one recipe share one. Results are kept in the folder, one file a job; the same command
goes on where it was stopped.

Diagnostic: the test accuracies compare recipes here, and choose no default: validation accuracy
does. `--quick`: two epochs, one seed, three methods. The last line is JSON.
"""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import glora_jax
from benchmarks.machinery import embedded_task
from benchmarks.machinery.embedded_task import BUDGET, Backbone
from benchmarks.machinery.jobs import parse_arguments, run_jobs
from benchmarks.machinery.output import print_result, print_table
from glora_jax.method import presets
from glora_jax.search.archive import Archive
from glora_jax.search.evolution import evolve
from glora_jax.training import loop
from glora_jax.training.losses import subnet_loss, supernet_loss
from glora_jax.training.recipe import Recipe
from glora_jax.training.sampling import Sampling

EPOCHS, QUICK_EPOCHS = 36, 2
RATES = (4e-3, 8e-3)  # at 1e-3 and 1e-2 everything was worse in a first look
TUNING_SEED = 1000
QUICK_METHODS = ('linear', 'lora', 'largest')


@dataclasses.dataclass(frozen=True)
class Method:
  """A preset trained alone, or a recipe for the supernet.

  Attributes:
    title: what the table calls it.
    preset: name of the preset; None for a recipe.
    sampling: fields of `Sampling`.
    recipe: fields of `Recipe`, beside rate and epochs.
    finetuned_for: share of the steps in which the winner is finetuned.
    with_presets: whether the search starts from the presets.
    rate_of: name of the method whose learning rate it takes untried.
  """

  title: str
  preset: str | None = None
  sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  finetuned_for: float = 0.25
  with_presets: bool = False
  rate_of: str | None = None


METHODS = {
  'linear': Method('linear probe', preset='linear'),
  'bitfit': Method('BitFit', preset='bitfit'),
  'ssf': Method('SSF-like', preset='ssf'),
  'lora': Method('LoRA, rank 4', preset='lora'),
  'paper': Method("the paper's: one uniform genome a step"),
  'largest': Method('each gene at its largest with probability 1/2', sampling={'largest': 0.5}),
  'used_only': Method(
    'as largest, only used numbers updated',
    sampling={'largest': 0.5},
    recipe={'update_used_only': True},
    rate_of='largest',
  ),
  'sandwich': Method(
    'four paths: largest, smallest, two uniform',
    sampling={'paths': 4, 'sandwich': True},
    rate_of='largest',
  ),
  'paths': Method(
    'as largest, four paths', sampling={'largest': 0.5, 'paths': 4}, rate_of='largest'
  ),
  'distilled': Method(
    'as largest, half of the loss from the largest subnet',
    sampling={'largest': 0.5, 'distillation': 0.5},
    rate_of='largest',
  ),
  'halves': Method(
    'as largest, half of the steps for finetuning',
    sampling={'largest': 0.5},
    finetuned_for=0.5,
    rate_of='largest',
  ),
  'quarter': Method(
    'as largest, three quarters for finetuning, presets in the first generation',
    sampling={'largest': 0.5},
    finetuned_for=0.75,
    with_presets=True,
    rate_of='largest',
  ),
}


class Job(NamedTuple):
  """One method, trained once.

  Attributes:
    method: name, of `METHODS`.
    seed: of everything random.
    rate: learning rate.
    epochs: of all training together.
  """

  method: str
  seed: int
  rate: float
  epochs: int


class Training(NamedTuple):
  """How long and how fast one part of the training goes."""

  key: jax.Array
  epochs: int
  rate: float


class Task:
  """The embedded task, with the operations that methods are made of."""

  def __init__(self) -> None:
    """Loads the backbone and the images."""
    digits = embedded_task.digits()
    self.splits = {split: embedded_task.on_device(data) for split, data in digits.items()}
    self.backbone = Backbone.load()
    self.adapted = self.backbone.adapted
    self.scorer = glora_jax.make_scorer(self.adapted, self.backbone.preprocess)

  def measure(self, variables: Any, genome: np.ndarray, prefix: str = '') -> dict[str, float]:
    """Accuracy and mean loss of a subnet on validation and test images."""
    result = {}
    for split in ('val', 'test'):
      number = len(self.splits[split].labels)
      correct, loss = self.scorer(variables, jnp.asarray(genome)[None], *self.splits[split])
      result[f'{prefix}{split}'] = float(correct[0]) / number
      result[f'{prefix}{split}_loss'] = float(loss[0]) / number
    return result

  def fit(
    self, loss_fn: loop.LossFn, halves: Sequence[Any], training: Training, **fields: Any
  ) -> Any:
    """What was trainable of the (trainable, frozen) halves, trained."""
    key, epochs, rate = training
    warmup_epochs = min(embedded_task.WARMUP_EPOCHS, epochs)
    recipe = Recipe(epochs=epochs, warmup_epochs=warmup_epochs, learning_rate=rate, **fields)
    data = self.splits['train']
    return loop.fit(loss_fn, *halves, *data, recipe, key, progress=False).trainable

  def train_subnet(self, genome: np.ndarray, variables: Any, training: Training) -> Any:
    """Variables of a subnet that was trained alone."""
    subnet = self.adapted.fix(genome)
    trainable, frozen = subnet.split(variables)
    loss_fn = subnet_loss(subnet, self.backbone.unaugmented, train=True)
    return subnet.join(self.fit(loss_fn, (trainable, frozen), training), frozen)

  def train_supernet(self, method: Method, variables: Any, training: Training) -> Any:
    """Variables of a supernet that was trained by a recipe."""
    sampling = Sampling(**method.sampling)
    trainable, frozen = self.adapted.split(variables)
    loss_fn = supernet_loss(
      self.adapted,
      self.backbone.unaugmented,
      lambda key: sampling.draw(key, self.adapted.spec),
      distillation=sampling.distillation,
      train=True,
    )
    trained = self.fit(loss_fn, (trainable, frozen), training, **method.recipe)
    return self.adapted.join(trained, frozen)

  def search(self, method: Method, variables: Any, key: jax.Array) -> Archive:
    """What the paper's evolution finds in a supernet."""
    initial = None
    if method.with_presets:
      initial = np.stack(list(presets.presets(self.adapted.spec).values()))
    return evolve(
      self.adapted.spec,
      lambda genomes: self.scorer(variables, genomes, *self.splits['val']),
      key,
      embedded_task.SEARCH,
      budget=BUDGET,
      initial=initial,
      progress=False,
    )


def run_preset(task: Task, job: Job) -> dict[str, float]:
  """What a preset reaches, trained alone in all steps."""
  init_key, training_key, _, _ = jax.random.split(jax.random.key(job.seed), 4)
  variables = task.adapted.init(init_key, task.backbone.params)
  genome = presets.preset(task.adapted.spec, METHODS[job.method].preset)
  trained = task.train_subnet(genome, variables, Training(training_key, job.epochs, job.rate))
  return {'params': task.adapted.count_params(genome), **task.measure(trained, genome)}


def run_recipe(task: Task, job: Job) -> dict[str, float]:
  """What the winner of a supernet reaches, as inherited and finetuned, and what else is in it."""
  method, adapted = METHODS[job.method], task.adapted
  init_key, supernet_key, search_key, finetuning_key = jax.random.split(jax.random.key(job.seed), 4)
  finetuning_epochs = round(job.epochs * method.finetuned_for)
  supernet = task.train_supernet(
    method,
    adapted.init(init_key, task.backbone.params),
    Training(supernet_key, job.epochs - finetuning_epochs, job.rate),
  )
  archive = task.search(method, supernet, search_key)
  winner = archive.best()
  result = {
    'params': adapted.count_params(winner),
    **task.measure(supernet, winner, 'inherited_'),
  }
  for name, genome in presets.presets(adapted.spec).items():
    result[f'inherited_{name}_val'] = task.measure(supernet, genome)['val']
  random_correct = float(archive.correct[archive.generation == 0].mean())
  result['random_val'] = random_correct / len(task.splits['val'].labels)
  finetuning = Training(finetuning_key, finetuning_epochs, job.rate / 2)
  finetuned = task.train_subnet(winner, supernet, finetuning)
  return result | task.measure(finetuned, winner)


def run_job(method: str, seed: int, rate: float, epochs: int) -> dict[str, float]:
  """Trains one method; what it reached."""
  run = run_preset if METHODS[method].preset else run_recipe
  return run(Task(), Job(method, seed, rate, epochs))


def choose_rates(
  methods: Sequence[str], rates: Sequence[float], epochs: int, run: Callable[[list[Job]], Any]
) -> dict[str, float]:
  """The learning rate of each method, by validation accuracy and then by validation loss."""
  tuned = {method: METHODS[method].rate_of or method for method in methods}
  jobs = [
    Job(method, TUNING_SEED, rate, epochs)
    for method in dict.fromkeys(tuned.values())
    for rate in rates
  ]
  results = run(jobs)
  best = {}
  for job in jobs:  # of equally good rates the first
    quality = results[job]['val'], -results[job]['val_loss']
    if job.method not in best or quality > best[job.method][0]:
      best[job.method] = quality, job.rate
  return {method: best[tuned[method]][1] for method in methods}


def summarize(results: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
  """Mean and standard deviation of every number over the seeds."""
  summary = {}
  for name in results[0]:
    values = [result[name] for result in results]
    summary[name] = [statistics.mean(values), statistics.pstdev(values)]
  return summary


def print_summaries(table: Mapping[str, Mapping[str, Any]]) -> None:
  """The table for people."""
  columns = {
    'inherited_val': 'inherited, val',
    'inherited_test': 'inherited, test',
    'val': 'val',
    'test': 'test',
  }
  rows = []
  for name, summary in table.items():
    cells = [name, f'{summary["rate"]:g}', f'{summary["params"][0]:,.0f}']
    for column in columns:
      mean, spread = summary.get(column, (None, None))
      cells.append('' if mean is None else f'{100 * mean:.1f} ± {100 * spread:.1f}')
    rows.append((*cells, METHODS[name].title))
  print_table(('method', 'rate', 'params', *columns.values(), ''), rows)


def main() -> None:
  """Does all jobs and prints."""
  arguments = parse_arguments(
    __doc__,
    folder='runs/recipes',
    quick='two epochs, one seed, three methods',
    run=run_job,
    names=tuple(METHODS),
  )
  if arguments is None:
    return
  methods, epochs, seeds, rates = arguments.only, EPOCHS, arguments.seeds, RATES
  if arguments.quick:
    methods, epochs, seeds, rates = QUICK_METHODS, QUICK_EPOCHS, 1, RATES[:1]

  def run(jobs: list[Job]) -> dict[Job, Any]:
    return run_jobs('benchmarks.supernet_recipes', jobs, arguments.folder, arguments.workers)

  rate_of = choose_rates(methods, rates, epochs, run)
  jobs = {
    name: [Job(name, seed, rate_of[name], epochs) for seed in range(seeds)] for name in methods
  }
  results = run([jobs[name][seed] for seed in range(seeds) for name in methods])
  table = {
    name: {'rate': rate_of[name], **summarize([results[job] for job in jobs[name]])}
    for name in methods
  }
  print_summaries(table)
  print_result('supernet_recipes', {'epochs': epochs, 'seeds': seeds, 'table': table})


if __name__ == '__main__':
  main()
