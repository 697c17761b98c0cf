"""Which recipe makes the supernet whose searched and finetuned subnet is best?

  python -m benchmarks.supernet_recipes [--quick] [--folder runs/recipes] [--seeds 5] [--workers 2]
                                        [--only NAME ...]

On the embedded task (digits, the embedded backbone, budget 40,000) each recipe of `RECIPES` trains
a supernet for 27 epochs at 8e-3, the paper's evolution searches it (210 evaluations by accuracy on
the 200 validation images), and the winner is finetuned for 9 epochs at half of that rate. Results
are kept in the folder, one file a job; the same command goes on where it was stopped.

Validation accuracy chooses the default of the quickstart; test accuracy is shown and chooses
nothing. What else was tried is in RESULTS.md. `--quick`: three epochs, one seed, two recipes. The
last line is JSON.
"""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from benchmarks.machinery import embedded_task
from benchmarks.machinery.embedded_task import BUDGET, Backbone
from benchmarks.machinery.jobs import parse_arguments, run_jobs
from benchmarks.machinery.output import print_result, print_table
from glora_jax.search.evolution import evolve
from glora_jax.search.scoring import make_scorer
from glora_jax.training import loop
from glora_jax.training.losses import subnet_loss, supernet_loss
from glora_jax.training.recipe import Recipe
from glora_jax.training.sampling import Sampling

EPOCHS, QUICK_EPOCHS = 36, 4
FINETUNING_SHARE = 4  # one epoch in so many is one of finetuning
LEARNING_RATE = 8e-3  # each recipe chose it over 4e-3
RECIPES = {
  'paper': Sampling(),
  'largest': Sampling(largest=0.5),
  'sandwich': Sampling(paths=4, sandwich=True),
  'paths': Sampling(largest=0.5, paths=4),
}
QUICK_RECIPES = ('paper', 'largest')
COLUMNS = ('inherited_val', 'inherited_test', 'val', 'test', 'test_loss', 'params')


class Job(NamedTuple):
  """One recipe, trained once in so many epochs of all."""

  recipe: str
  seed: int
  epochs: int


def _recipe(epochs: int, learning_rate: float) -> Recipe:
  warmup_epochs = min(embedded_task.WARMUP_EPOCHS, epochs)
  return Recipe(epochs=epochs, warmup_epochs=warmup_epochs, learning_rate=learning_rate)


def run_job(recipe: str, seed: int, epochs: int) -> dict[str, float]:
  """What the winner of a recipe's supernet reaches, as inherited and finetuned."""
  init_key, supernet_key, search_key, finetuning_key = jax.random.split(jax.random.key(seed), 4)
  digits = embedded_task.digits()
  splits = {split: embedded_task.on_device(data) for split, data in digits.items()}
  backbone, sampling = Backbone.load(), RECIPES[recipe]
  adapted = backbone.adapted
  scorer = make_scorer(adapted, backbone.preprocess)

  def fit(learner, loss_fn, variables, recipe, key):
    trainable, frozen = learner.split(variables)
    state = loop.fit(loss_fn, trainable, frozen, *splits['train'], recipe, key, progress=False)
    return learner.join(state.trainable, frozen)

  def measure(variables, genome, prefix=''):
    result = {}
    for split in ('val', 'test'):
      number = len(splits[split].labels)
      correct, loss = scorer(variables, genome[None], *splits[split])
      result[f'{prefix}{split}'] = float(correct[0]) / number
      result[f'{prefix}{split}_loss'] = float(loss[0]) / number
    return result

  finetuning_epochs = epochs // FINETUNING_SHARE
  supernet = fit(
    adapted,
    supernet_loss(
      adapted,
      backbone.unaugmented,
      lambda key: sampling.draw(key, adapted.spec),
      distillation=sampling.distillation,
      train=True,
    ),
    adapted.init(init_key, backbone.params),
    _recipe(epochs - finetuning_epochs, LEARNING_RATE),
    supernet_key,
  )
  archive = evolve(
    adapted.spec,
    lambda genomes: scorer(supernet, genomes, *splits['val']),
    search_key,
    embedded_task.SEARCH,
    budget=BUDGET,
    progress=False,
  )
  winner = archive.best()
  subnet = adapted.fix(winner)
  finetuned = fit(
    subnet,
    subnet_loss(subnet, backbone.unaugmented, train=True),
    supernet,
    _recipe(finetuning_epochs, LEARNING_RATE / 2),
    finetuning_key,
  )
  return {
    'params': subnet.count_params(),
    **measure(supernet, winner, 'inherited_'),
    **measure(finetuned, winner),
  }


def summarize(results: Sequence[dict[str, float]]) -> dict[str, list[float]]:
  """Mean and standard deviation of every number over the seeds."""
  summary = {}
  for name in COLUMNS:
    values = [result[name] for result in results]
    summary[name] = [round(statistics.mean(values), 4), round(statistics.pstdev(values), 4)]
  return summary


def main() -> None:
  """Does all jobs and prints."""
  arguments = parse_arguments(
    __doc__,
    folder='runs/recipes',
    quick='three epochs of the supernet, one seed, two recipes',
    run=run_job,
    names=tuple(RECIPES),
  )
  if arguments is None:
    return
  recipes, epochs, seeds = arguments.only, EPOCHS, arguments.seeds
  if arguments.quick:
    recipes, epochs, seeds = QUICK_RECIPES, QUICK_EPOCHS, 1
  jobs = [Job(recipe, seed, epochs) for seed in range(seeds) for recipe in recipes]
  results: dict[Job, Any] = run_jobs(
    'benchmarks.supernet_recipes', jobs, arguments.folder, arguments.workers
  )
  table = {
    recipe: summarize([results[job] for job in jobs if job.recipe == recipe]) for recipe in recipes
  }
  rows = [
    (recipe, *(f'{mean:,.6g} ± {spread:.3g}' for mean, spread in map(summary.get, COLUMNS)))
    for recipe, summary in table.items()
  ]
  print_table(('recipe', *COLUMNS), rows)
  print_result('supernet_recipes', {'epochs': epochs, 'seeds': seeds, 'table': table})


if __name__ == '__main__':
  main()
