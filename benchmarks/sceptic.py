"""What a sceptic asks of a finished run: is the search better than chance, does the supernet rank?

  python -m benchmarks.sceptic [--workdir runs/quickstart] [--quick]

DIAGNOSTIC: it reads test images, so it chooses no default, and it writes nothing. Where the workdir
has no finished run, that run is finished first; in a new one it is `configs/quickstart.py`. Then,
with the run's own supernet:

  chance: the winners of searches against the best of as many random subnets, several times.
  ranks: random subnets of all sizes within the budget, scored on validation images with the
    supernet's weights, against the same trained alone by the supernet's recipe, on test images;
    also with size held still, since larger ones are better either way.

`--quick` takes 2 searches and 3 subnets in place of 5 and 12. The last line is JSON.
"""

import dataclasses
import math
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from benchmarks.machinery.output import make_parser, print_result, print_table, rounded
from configs import quickstart
from glora_jax.files import read_arrays, read_json
from glora_jax.method import draws, genomes
from glora_jax.method.space import Spec
from glora_jax.runs import experiment
from glora_jax.runs.config import check_config
from glora_jax.runs.lifecycle import prepare
from glora_jax.runs.run import Run
from glora_jax.runs.workdir import read_config
from glora_jax.search import guidance
from glora_jax.search.archive import Archive
from glora_jax.search.evolution import evolve
from glora_jax.training import loop
from glora_jax.training.checkpoints import TrainingCheckpoints
from glora_jax.training.losses import subnet_loss
from glora_jax.tree import fingerprint

SEARCH_KEY, SAMPLE_KEY, ALONE_KEY = 100, 200, 201  # purposes that are not among a run's own
METRICS = ('val_accuracy', 'test_accuracy', 'val_loss', 'test_loss')
DIGITS = 4

Scores = dict[str, float]


class FinishedRun(NamedTuple):
  """What the questions are about: a run, the archive of its search, its supernet's variables."""

  run: Run
  archive: Archive
  supernet: Any


def load(workdir: str) -> FinishedRun:
  """The run in a workdir, which is finished first where it is not.

  Raises:
    ValueError: it followed the paper's protocol, or searched nothing, or what it wrote is not there
      any more or is not what it tested.
  """
  is_old = os.path.exists(os.path.join(workdir, 'config.json'))
  config = read_config(workdir) if is_old else quickstart.get_config()
  if config.protocol != 'honest':
    raise ValueError(
      f"The run in {workdir} has protocol='{config.protocol}': it searched on its test images, and "
      "none are left to ask on. Give the workdir of a run with protocol='honest'."
    )
  if config.structure != 'search':
    raise ValueError(
      f"The run in {workdir} has structure='{config.structure}': nothing was searched, and the "
      "questions are about a search. Give the workdir of a run with structure='search'."
    )
  experiment.run(config, workdir)  # returns at once where there is a result
  run = prepare(check_config(config), workdir)
  for needed in (run.path('supernet'), run.path('search', 'archive.npz')):
    if not os.path.exists(needed):
      raise ValueError(
        f'{needed} is not there any more, and the questions are about it; give a workdir with all '
        'that the run wrote.'
      )
  archive = Archive(**read_arrays(run.path('search', 'archive.npz')))
  return FinishedRun(run, archive, _load_supernet(run))


def _load_supernet(run: Run) -> Any:
  """Variables of the supernet, which must be those that the run tested."""
  trainable, frozen = run.adapted.split(run.variables)
  optimizer = run.settings.supernet.optimizer(len(run.data(run.train_split).labels))
  with TrainingCheckpoints(run.path('supernet')) as checkpoints:
    state = checkpoints.latest(loop.TrainState(trainable, optimizer.init(trainable), 0))
  tested = read_json(run.path('test_list.json'))['winner_supernet']['weights']
  if state is None or fingerprint(state.trainable) != tested:
    raise ValueError(
      f'{run.path("supernet")} does not hold the weights that the run tested; give a workdir as '
      'the run left it.'
    )
  return run.adapted.join(state.trainable, frozen)


def _key(run: Run, purpose: int) -> jax.Array:
  return jax.random.fold_in(jax.random.key(run.settings.seed), purpose)


def measure(run: Run, variables: Any, population: Sequence[np.ndarray]) -> list[Scores]:
  """Size, accuracies and mean losses of subnets [subnet, layer, 5], on val and on test."""
  stacked = np.asarray(population, np.int8)
  columns = {'params': run.adapted.count_params(stacked)}
  for split in ('val', 'test'):
    number = len(run.data(split).labels)
    correct, loss = run.score(variables, stacked, split)
    columns[f'{split}_accuracy'] = np.asarray(correct, np.float64) / number
    columns[f'{split}_loss'] = np.asarray(loss, np.float64) / number
  return [
    {name: float(values[index]) for name, values in columns.items()}
    for index in range(len(stacked))
  ]


def ask_chance(finished: FinishedRun, number: int) -> dict[str, list[Scores]]:
  """The winners of searches, of which the run's own is the first, and of random ones as long."""
  run, variables = finished.run, finished.supernet
  own = dataclasses.replace(run.settings.search, stop_early=False)  # which selects the same
  random = dataclasses.replace(own, mode='random', mutations=0, crossovers=0)
  guide = guidance.make_guide(run.adapted, run.preprocess, fitness=own.fitness)

  def search(settings, index):
    return evolve(
      run.adapted.spec,
      lambda population: run.score(variables, population, 'val'),
      _key(run, SEARCH_KEY + index),
      settings,
      budget=draws.check_budget(run.settings.budget),
      guide=lambda genome: guide(variables, jnp.asarray(genome), *run.data('val')),
      progress=False,
    )

  searched = [finished.archive, *(search(own, index) for index in range(1, number))]
  archives = {'searched': searched, 'random': [search(random, index) for index in range(number)]}
  return {
    name: measure(run, variables, [archive.best(own.fitness) for archive in found])
    for name, found in archives.items()
  }


def spread_sizes(
  rng: np.random.Generator, spec: Spec, number: int, budget: int | None
) -> np.ndarray:
  """Random subnets within the budget, the n-th within its n-th part, int8 [number, layer, 5]."""
  least = genomes.count_params(spec, genomes.smallest_genome(spec))
  most = genomes.count_params(spec, genomes.largest_genome(spec))
  limits = np.linspace(least, most if budget is None else min(budget, most), number + 1)[1:]
  drawn = [draws.random_genomes(rng, spec, 1, math.floor(limit)) for limit in limits]
  return genomes.canonicalize(spec, np.concatenate(drawn))


def train_alone(run: Run, genome: np.ndarray, title: str) -> Any:
  """Variables of a subnet trained by the supernet's recipe, from the same start, in its order."""
  subnet = run.adapted.fix(genome)
  trainable, frozen = subnet.split(run.variables)
  loss_fn = subnet_loss(subnet, run.augmented, **run.loss_options)
  data, key = run.data(run.train_split), _key(run, ALONE_KEY)
  state = loop.fit(loss_fn, trainable, frozen, *data, run.settings.supernet, key, title=title)
  return subnet.join(state.trainable, frozen)


def ask_ranks(finished: FinishedRun, number: int) -> dict[str, list[Scores]]:
  """Random subnets with the supernet's weights, and trained alone."""
  run = finished.run
  rng = np.random.default_rng(np.asarray(jax.random.key_data(_key(run, SAMPLE_KEY))))
  budget = draws.check_budget(run.settings.budget)
  sample = spread_sizes(rng, run.adapted.spec, number, budget)
  alone = []
  for index, genome in enumerate(sample, 1):
    trained = train_alone(run, genome, f'alone {index}/{number}')
    alone += measure(run, trained, [genome])
  return {'supernet': measure(run, finished.supernet, sample), 'alone': alone}


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
  """Spearman's rho; None where it does not exist."""
  if len(set(x)) < 2 or len(set(y)) < 2:
    return None
  return float(scipy.stats.spearmanr(x, y).statistic)


def partial_correlation(xy: float | None, xz: float | None, yz: float | None) -> float | None:
  """The correlation of x and y that is left when z is held still; None where it does not exist."""
  if xy is None or xz is None or yz is None or min(1 - xz**2, 1 - yz**2) < 1e-9:
    return None
  return (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))


def correlate(ranks: dict[str, list[Scores]]) -> dict[str, float | None]:
  """What the supernet's validation loss, and size, say of the test loss of subnets alone."""
  seen = [scores['val_loss'] for scores in ranks['supernet']]
  wanted = [scores['test_loss'] for scores in ranks['alone']]
  params = [scores['params'] for scores in ranks['alone']]
  by_supernet, by_params = rank_correlation(seen, wanted), rank_correlation(params, wanted)
  left = partial_correlation(by_supernet, rank_correlation(params, seen), by_params)
  found = {'supernet': by_supernet, 'params': by_params, 'supernet_given_params': left}
  return {name: rounded(value, DIGITS) for name, value in found.items()}


def diagnose(finished: FinishedRun, searches: int = 5, subnets: int = 12) -> dict[str, Any]:
  """The answers to both questions, as JSON types."""
  chance = ask_chance(finished, searches)
  ranks = ask_ranks(finished, subnets)
  return {'chance': chance, 'ranks': ranks, 'spearman_with_test_loss_alone': correlate(ranks)}


def rows(answers: dict[str, Any]) -> list[list[str]]:
  """The table for people: means, and standard deviations of the winners."""
  titles = {
    'winner of a search': answers['chance']['searched'],
    'best of as many random ones': answers['chance']['random'],
    "random, the supernet's weights": answers['ranks']['supernet'],
    'the same, trained alone': answers['ranks']['alone'],
  }
  table = []
  for title, scores in titles.items():
    cells = [f'{title}, mean of {len(scores)}']
    for metric in METRICS:
      values = [each[metric] for each in scores]
      cells.append(f'{np.mean(values):.3f} ± {np.std(values, ddof=len(values) > 1):.3f}')
    table.append(cells)
  return table


def main() -> None:
  """Asks and prints."""
  parser = make_parser(__doc__, '2 searches of each kind and 3 subnets trained alone')
  parser.add_argument('--workdir', default='runs/quickstart', help='of the run')
  arguments = parser.parse_args()
  numbers = {'searches': 2, 'subnets': 3} if arguments.quick else {}
  try:
    answers = diagnose(load(arguments.workdir), **numbers)
  except (ValueError, OSError, RuntimeError) as error:
    sys.exit(f'error: {error}')
  print_table(('DIAGNOSTIC: reads test images', *METRICS), rows(answers))
  print_result('sceptic', answers)


if __name__ == '__main__':
  main()
