"""What a sceptic asks of a finished run: is it better than chance, does the supernet rank, did the search fit the images, what is needed?

  python -m benchmarks.sceptic [--workdir runs/quickstart] [--quick]

DIAGNOSTIC: it reads test images, so it chooses no default, and it writes only into WORKDIR/diagnostics. Where the workdir has no
finished run, that run is finished first; in a new one it is `configs/quickstart.py`. Then, with the run's own supernet:

  a. Random search: the best of as many random subnets as the search evaluated, several times, against as many searches.
  b. Rank correlation: random subnets of all sizes, scored with the supernet's weights and trained alone by the same recipe.
  c. Validation against test, over the first (random) and the last generation of the run's search.
  d. Ablation: the winner with each of the tensors A to E switched off, before and after finetuning, not trained again.

Writes `diagnostics.json`, `diagnostics.md`, `diagnostics.png` and prints a table; the last line is JSON. `--quick` takes 2 searches and
3 subnets in place of 5 and 12.
"""

import argparse
import dataclasses
import json
import math
import os
import sys
import time

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import scipy.stats
from tqdm.auto import tqdm

from benchmarks import machine, sceptic_report
from configs import quickstart
from glora_jax.files import read_arrays, read_json, write_json
from glora_jax.method import adapter_file, space
from glora_jax.method.genomes import (
  canonicalize,
  check_budget,
  count_params,
  largest_genome,
  random_genomes,
  smallest_genome,
)
from glora_jax.runs import experiment
from glora_jax.runs.config import check_config
from glora_jax.runs.lifecycle import prepare
from glora_jax.search import evolution, guidance
from glora_jax.search.archive import Archive
from glora_jax.training import loop
from glora_jax.training.checkpoints import TrainingCheckpoints
from glora_jax.training.losses import subnet_loss
from glora_jax.training.recipe import Recipe
from glora_jax.tree import fingerprint

METRICS = ('val_accuracy', 'val_loss', 'test_accuracy', 'test_loss')
_TOGETHER = 8  # genomes in one call of the scorer: one compilation, however many there are
_SEARCHES, _SAMPLE, _ALONE = 100, 200, 201  # purposes of random keys, apart from the run's own


def load(workdir):
  """The run in a workdir, which is finished first where it is not.

  Returns:
    (run, archive of its search, genome of the winner, weights by name: variables of the 'supernet' and of the 'finetuned' winner).

  Raises:
    ValueError: it followed the paper's protocol, or what it wrote is not there any more or not what it tested.
  """
  path = os.path.join(workdir, 'config.json')
  config = (
    ml_collections.ConfigDict(read_json(path)) if os.path.exists(path) else quickstart.get_config()
  )
  if config.protocol != 'honest':
    raise ValueError(
      f"The run in {workdir} has protocol='{config.protocol}': it searched on its test images, and none are left to ask on. "
      "Give the workdir of a run with protocol='honest'."
    )
  experiment.run(config, workdir)  # returns at once where there is a result
  run = prepare(check_config(config), workdir)
  for needed in (run.path('supernet'), run.path('search', 'archive.npz')):
    if not os.path.exists(needed):
      raise ValueError(
        f'{needed} is not there any more, and the questions are about it; give a workdir with all that the run wrote.'
      )
  trainable, frozen = run.adapted.split(run.variables)
  optimizer = Recipe(**config.supernet).optimizer(len(run.data(run.train_split).labels))
  with TrainingCheckpoints(run.path('supernet')) as checkpoints:
    state = checkpoints.latest(loop.TrainState(trainable, optimizer.init(trainable), 0))
  if (
    state is None
    or fingerprint(state.trainable)
    != read_json(run.path('test_list.json'))['winner_supernet']['weights']
  ):
    raise ValueError(
      f'{run.path("supernet")} does not hold the weights that the run tested; give a workdir as the run left it.'
    )
  archive = Archive(**read_arrays(run.path('search', 'archive.npz')))
  winner = archive.best(config.search.fitness)
  tuned, genome = adapter_file.load_adapter(
    run.path('adapter.safetensors'), run.adapted, run.variables['params']
  )
  if not np.array_equal(genome, winner):
    raise ValueError(
      f'{run.path("adapter.safetensors")} is not the winner of the search; give a workdir as the run left it.'
    )
  return (
    run,
    archive,
    winner,
    {'supernet': run.adapted.join(state.trainable, frozen), 'finetuned': tuned},
  )


def measure(run, variables, genomes, title=None):
  """Parameters, and accuracy and mean loss on the validation and test images, of genomes [n, rows, 5]: a dictionary each."""
  genomes = np.asarray(genomes, np.int8)
  entries = [{'params': int(params)} for params in run.adapted.count_params(genomes)]
  size = _TOGETHER if len(genomes) > 1 else 1
  with tqdm(
    total=2 * len(genomes), desc=title, unit='score', disable=title is None, leave=False
  ) as bar:
    for split in ('val', 'test'):
      number = len(run.data(split).labels)
      for start in range(0, len(genomes), size):
        block = genomes[start : start + size]
        padded = np.concatenate([block, np.repeat(block[:1], size - len(block), axis=0)])
        scores = zip(
          *(
            np.asarray(x, np.float64)[: len(block)] / number
            for x in run.score(variables, padded, split)
          ),
          strict=True,
        )
        for entry, (accuracy, loss) in zip(entries[start : start + size], scores, strict=True):
          entry.update({f'{split}_accuracy': float(accuracy), f'{split}_loss': float(loss)})
        bar.update(len(block))
  return entries


def mean_and_spread(entries):
  """Mean and standard deviation of every number over entries."""
  spread = lambda values: float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
  columns = {name: [entry[name] for entry in entries] for name in entries[0]}
  return {
    name: {'mean': float(np.mean(values)), 'spread': spread(values)}
    for name, values in columns.items()
  }


def rank_correlation(x, y):
  """Spearman's rho and Kendall's tau with their p-values; None where they do not exist."""
  known = lambda value: float(value) if math.isfinite(value) else None
  if len(set(x)) < 2 or len(set(y)) < 2:
    return dict.fromkeys(('spearman', 'spearman_p', 'kendall', 'kendall_p'))
  rho, tau = scipy.stats.spearmanr(x, y), scipy.stats.kendalltau(x, y)
  return {
    'spearman': known(rho.statistic),
    'spearman_p': known(rho.pvalue),
    'kendall': known(tau.statistic),
    'kendall_p': known(tau.pvalue),
  }


def partial(xy, xz, yz):
  """The rank correlation of x and y that is left when z is held still; None where that does not exist."""
  if None in (xy, xz, yz) or min(1 - xz**2, 1 - yz**2) < 1e-9:
    return None
  return (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))


def random_search(run, variables, archive, seeds):
  """Question a: the winners of searches (the run's own is the first) and of random searches of the same length."""
  own = dataclasses.replace(run.settings.search, stop_early=False)  # which selects the same
  by_chance = dataclasses.replace(own, mode='random', mutations=0, crossovers=0)
  score = lambda genomes: run.score(variables, genomes, 'val')
  options = {'budget': check_budget(run.settings.budget), 'progress': False}
  if own.mode == 'guided':
    guide = guidance.make_guide(run.adapted, run.preprocess, fitness=own.fitness)
    options['guide'] = lambda genome: guide(variables, jnp.asarray(genome), *run.data('val'))
  archives = {'searched': [archive], 'random': []}
  plans = [
    (name, settings, number)
    for number in range(seeds)
    for name, settings in (('searched', own), ('random', by_chance))
  ]
  for name, settings, number in tqdm(plans[1:], desc='a. searches', unit='search'):
    archives[name].append(
      evolution.evolve(run.adapted.spec, score, run.key(_SEARCHES + number), settings, **options)
    )
  result = {}
  for name, found in archives.items():
    winners = measure(run, variables, [one.best(own.fitness) for one in found])
    result[name] = [
      {'evaluations': len(one), **winner} for one, winner in zip(found, winners, strict=True)
    ]
  summary = {name: mean_and_spread(winners) for name, winners in result.items()}
  difference = {
    name: summary['searched'][name]['mean'] - summary['random'][name]['mean'] for name in METRICS
  }
  return {**result, 'mean_and_spread': summary, 'searched_minus_random': difference}


def spread_sizes(rng, spec, number, budget):
  """Random subnets within the budget, the n-th within its n-th part, int8 [number, rows, 5]."""
  least = count_params(spec, smallest_genome(spec))
  most = count_params(spec, largest_genome(spec))
  limits = np.linspace(least, most if budget is None else min(budget, most), number + 1)[1:]
  return canonicalize(
    spec, np.concatenate([random_genomes(rng, spec, 1, math.floor(limit)) for limit in limits])
  )


def train_alone(run, genome, title):
  """Variables of one subnet trained by the supernet's recipe, from the same start and in the same order of images."""
  subnet = run.adapted.fix(genome)
  trainable, frozen = subnet.split(run.variables)
  loss = subnet_loss(subnet, run.augmented, mix=run.mix, train=True)
  recipe = run.settings.supernet
  state = loop.fit(
    loss, trainable, frozen, *run.data(run.train_split), recipe, run.key(_ALONE), title=title
  )
  return subnet.join(state.trainable, frozen)


def supernet_ranks(run, variables, winner, number):
  """Question b: random subnets, and the winner beside them, with the supernet's weights and trained alone."""
  rng = np.random.default_rng(np.asarray(jax.random.key_data(run.key(_SAMPLE))))
  sample = spread_sizes(rng, run.adapted.spec, number, check_budget(run.settings.budget))
  genomes = [*sample, winner]
  shared, alone = measure(run, variables, genomes, 'b. supernet scores'), []
  for index, genome in enumerate(genomes):
    trained = train_alone(run, genome, f'b. alone {index + 1}/{len(genomes)}')
    alone += measure(run, trained, [genome])
  *subnets, best = [
    {
      'params': s['params'],
      'supernet': {m: s[m] for m in METRICS},
      'alone': {m: a[m] for m in METRICS},
    }
    for s, a in zip(shared, alone, strict=True)
  ]
  params, correlations = [subnet['params'] for subnet in subnets], {}
  column = lambda weights, metric: [subnet[weights][metric] for subnet in subnets]
  for metric in METRICS:
    # What the search can see is the validation images; what it is for, the subnet on others.
    seen, wanted = column('supernet', metric.replace('test', 'val')), column('alone', metric)
    pairs = {'supernet': rank_correlation(seen, wanted), 'params': rank_correlation(params, wanted)}
    size = rank_correlation(params, seen)['spearman']
    left = partial(pairs['supernet']['spearman'], size, pairs['params']['spearman'])
    correlations[metric] = {**pairs, 'supernet_given_params': left}
  recipe = run.settings.supernet
  steps = recipe.epochs * recipe.steps_per_epoch(len(run.data(run.train_split).labels))
  return {'steps': steps, 'subnets': subnets, 'winner': best, 'correlations': correlations}


def generalization(run, variables, archive, winner):
  """Question c: the first and the last generation of the search, on the images it saw and on those it did not."""
  last = int(archive.generation.max())
  result = {'generation': {'first': 0, 'last': last}}
  gap = lambda e: {
    'accuracy_gap': e['val_accuracy'] - e['test_accuracy'],
    'loss_gap': e['test_loss'] - e['val_loss'],
  }
  for name, number in result['generation'].items():
    entries = measure(
      run, variables, archive.genomes[archive.generation == number], f'c. {name} generation'
    )
    column = lambda metric, entries=entries: [entry[metric] for entry in entries]
    result[name] = {
      'mean_and_spread': mean_and_spread([{**entry, **gap(entry)} for entry in entries]),
      'subnets': entries,
      'correlations': {
        kind: rank_correlation(column(f'val_{kind}'), column(f'test_{kind}'))
        for kind in ('accuracy', 'loss')
      },
    }
  [entry] = measure(run, variables, [winner])
  result['winner'] = {**entry, **gap(entry)}
  first = {metric: value['mean'] for metric, value in result['first']['mean_and_spread'].items()}
  # Over the random generation, whose gap is no fault of the search.
  result['winner_over_first'] = {
    metric: result['winner'][metric] - first[metric]
    for metric in (*METRICS, 'accuracy_gap', 'loss_gap')
  }
  return result


def ablations(run, weights, genome):
  """Question d: an ablation for each name of weights."""
  return {
    name: ablation(run, variables, genome)
    for name, variables in tqdm(weights.items(), desc='d. ablations', unit='weights')
  }


def ablation(run, variables, genome):
  """A subnet as it is, and with each tensor, or all, switched off in every layer; nothing is trained."""
  off = {
    tensor: np.where(np.arange(5) == index, 0, genome) for index, tensor in enumerate(space.TENSORS)
  }
  off['all'] = np.zeros_like(genome)
  whole, *others = measure(run, variables, [genome, *off.values()])
  without = {
    tensor: {
      **entry,
      'params_saved': whole['params'] - entry['params'],
      'change': {m: entry[m] - whole[m] for m in METRICS},
    }
    for tensor, entry in zip(off, others, strict=True)
  }
  return {'whole': whole, 'without': without}


def diagnose(run, archive, winner, weights, *, seeds=5, subnets=12):
  """Answers the four questions for what `load` returned; writes and returns what `diagnostics.json` holds."""
  config, variables, seconds = run.settings, weights['supernet'], {}

  def timed(name, answer, *arguments):
    start = time.perf_counter()
    result = answer(run, *arguments)
    seconds[name] = round(time.perf_counter() - start, 1)
    return result

  diagnostics = {
    'benchmark': 'sceptic',
    'label': "DIAGNOSTIC: read test images; chooses no default, and is no part of the run's result",
    'machine': machine.describe(),
    'run': {
      'task': run.task.name,
      'seed': config.seed,
      'budget': check_budget(config.budget),
      'mode': config.search.mode,
      'fitness': config.search.fitness,
      'evaluations': len(archive),
      # Trained on the validation images, too: what it gets right of them says nothing.
      'finetuned_on_val': config.finetune.on == 'train+val' and config.finetune.epochs > 0,
      'images': {split: len(run.data(split).labels) for split in ('train', 'val', 'test')},
    },
    'random_search': timed('random_search', random_search, variables, archive, seeds),
    'supernet_ranks': timed('supernet_ranks', supernet_ranks, variables, winner, subnets),
    'generalization': timed('generalization', generalization, variables, archive, winner),
    'ablation': timed('ablation', ablations, weights, winner),
    'seconds': seconds,
  }
  folder = run.path('diagnostics')
  os.makedirs(folder, exist_ok=True)
  write_json(os.path.join(folder, 'diagnostics.json'), diagnostics)
  sceptic_report.write(folder, diagnostics)
  return diagnostics


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--workdir',
    default=os.path.join('runs', 'quickstart'),
    help='of the run; runs/quickstart by default',
  )
  parser.add_argument(
    '--quick', action='store_true', help='2 searches of each kind and 3 subnets trained alone'
  )
  arguments = parser.parse_args()
  numbers = {'seeds': 2, 'subnets': 3} if arguments.quick else {}
  try:
    diagnostics = diagnose(*load(arguments.workdir), **numbers)
  except (ValueError, OSError, RuntimeError) as error:
    sys.exit(f'error: {error}')
  print(sceptic_report.table(diagnostics))
  print(f'{arguments.workdir}/diagnostics/diagnostics.md has the whole story.')
  print(json.dumps(sceptic_report.headline(diagnostics)))


if __name__ == '__main__':
  main()
