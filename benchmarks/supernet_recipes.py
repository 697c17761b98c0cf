"""Which recipe makes a supernet whose searched and finetuned subnet is at least as good as every preset of at most its size?

  python -m benchmarks.supernet_recipes [--quick] [--folder runs/recipes] [--seeds 5] [--workers 2] [--only NAME ...]

On the embedded task (digits, the embedded backbone, budget 40,000) every method gets the same number of training steps, `EPOCHS` epochs of 800
images. A preset spends them all on itself, trained alone. A recipe spends some on the supernet and the rest on finetuning what the paper's
evolution finds in it (210 evaluations by accuracy on the 200 validation images), at half of its rate. Each method has its own learning rate,
the best of `RATES` on the validation images, chosen with a seed that the table does not use; the variations of one recipe share one.
Results are kept in the folder, one file a job; the same command goes on where it was stopped.

Diagnostic: the test accuracies compare recipes here, and choose no default: validation accuracy does. `--quick`: two epochs, one seed, three
methods. The last line is JSON.
"""

import dataclasses
import json
import statistics

from benchmarks import machine
from benchmarks.jobs import command_line, run_jobs

EPOCHS = 36
RATES = (4e-3, 8e-3)  # at 1e-3 and 1e-2 everything was worse in a first look
TUNING_SEED = 1000
BUDGET = 40_000


@dataclasses.dataclass(frozen=True)
class Method:
  """A preset trained alone, or a recipe for the supernet with the share of the steps that its winner is finetuned for.

  `rate_of` names the method whose learning rate it takes untried.
  """

  says: str
  preset: str | None = None
  sampling: dict = dataclasses.field(default_factory=dict)
  recipe: dict = dataclasses.field(default_factory=dict)
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


def job(name, seed, rate, epochs):
  """Trains one method; a dictionary of what it reached."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  import glora_jax
  from benchmarks import search_efficiency
  from glora_jax.method import presets
  from glora_jax.search import evolution
  from glora_jax.training import loop
  from glora_jax.training.losses import Sampling, subnet_loss, supernet_loss
  from glora_jax.training.recipe import Recipe

  method = METHODS[name]
  splits = {
    split: tuple(map(jnp.asarray, data)) for split, data in search_efficiency.digits().items()
  }
  adapted, params, preprocess = search_efficiency.embedded()
  augmented = lambda key, x: preprocess(x)
  keys = jax.random.split(jax.random.key(seed), 4)
  variables = adapted.init(keys[0], params)
  scorer = glora_jax.make_scorer(adapted, preprocess)

  def measure(variables, genome, title):
    result = {}
    for split in ('val', 'test'):
      correct, loss = scorer(variables, jnp.asarray(genome)[None], *splits[split])
      result[f'{title}{split}'] = float(correct[0]) / len(splits[split][1])
      result[f'{title}{split}_loss'] = float(loss[0]) / len(splits[split][1])
    return result

  def fit(loss, halves, key, epochs, rate, **fields):
    recipe = Recipe(epochs=epochs, warmup_epochs=min(3, epochs), learning_rate=rate, **fields)
    return loop.fit(loss, *halves, *splits['train'], recipe, key, progress=False).trainable

  def alone(genome, variables, key, epochs, rate):
    subnet = adapted.fix(genome)
    halves = subnet.split(variables)
    return subnet.join(
      fit(subnet_loss(subnet, augmented, train=True), halves, key, epochs, rate), halves[1]
    )

  if method.preset:
    genome = presets.preset(adapted.spec, method.preset)
    trained = alone(genome, variables, keys[1], epochs, rate)
    return {'params': adapted.count_params(genome), **measure(trained, genome, '')}

  tuning = round(epochs * method.finetuned_for)
  sampling = Sampling(**method.sampling)
  halves = adapted.split(variables)
  loss = supernet_loss(
    adapted,
    augmented,
    lambda key: sampling.draw(key, adapted.spec),
    distillation=sampling.distillation,
    train=True,
  )
  trained = adapted.join(
    fit(loss, halves, keys[1], epochs - tuning, rate, **method.recipe), halves[1]
  )
  settings = evolution.Evolution(
    population=30, generations=6, parents=10, mutations=15, crossovers=15
  )
  initial = np.stack(list(presets.presets(adapted.spec).values())) if method.with_presets else None
  archive = evolution.evolve(
    adapted.spec,
    lambda genomes: scorer(trained, genomes, *splits['val']),
    keys[2],
    settings,
    budget=BUDGET,
    initial=initial,
    progress=False,
  )
  winner = archive.best()
  found = {'params': adapted.count_params(winner), **measure(trained, winner, 'inherited_')}
  for name, genome in presets.presets(adapted.spec).items():
    found |= {f'inherited_{name}_val': measure(trained, genome, '')['val']}
  found['random_val'] = float(archive.correct[archive.generation == 0].mean()) / len(
    splits['val'][1]
  )
  return found | measure(alone(winner, trained, keys[3], tuning, rate / 2), winner, '')


def main():
  given = command_line(
    __doc__, 'runs/recipes', 'two epochs, one seed, three methods', job, tuple(METHODS)
  )
  if given is None:
    return
  methods = {
    name: METHODS[name] for name in (('linear', 'lora', 'largest') if given.quick else given.only)
  }
  epochs, seeds, rates = (2, 1, RATES[:1]) if given.quick else (EPOCHS, given.seeds, RATES)
  run = lambda jobs: run_jobs(
    'benchmarks.supernet_recipes', [(*job, epochs) for job in jobs], given.folder, given.workers
  )
  tuned = run(
    [
      (name, TUNING_SEED, rate)
      for name in dict.fromkeys(METHODS[name].rate_of or name for name in methods)
      for rate in rates
    ]
  )
  quality = lambda name, rate: (
    tuned[name, TUNING_SEED, rate, epochs]['val'],
    -tuned[name, TUNING_SEED, rate, epochs]['val_loss'],
  )
  rate_of = {
    name: max(rates, key=lambda rate, name=METHODS[name].rate_of or name: quality(name, rate))
    for name in methods
  }
  results = run([(name, seed, rate_of[name]) for seed in range(seeds) for name in methods])

  table = {}
  for name in methods:
    of = [results[name, seed, rate_of[name], epochs] for seed in range(seeds)]
    columns = {key: [one[key] for one in of] for key in of[0]}
    table[name] = {'rate': rate_of[name]} | {
      key: [statistics.mean(values), statistics.pstdev(values)] for key, values in columns.items()
    }
  percent = lambda row, key: (
    f'{100 * row[key][0]:5.1f} ± {100 * row[key][1]:.1f}' if key in row else ''
  )
  print(
    f'{"method":11}{"rate":>8}{"params":>9}{"inherited, val":>16}{"inherited, test":>17}{"val":>14}{"test":>14}'
  )
  for name, row in table.items():
    print(
      f'{name:11}{row["rate"]:8g}{row["params"][0]:9,.0f}{percent(row, "inherited_val"):>16}{percent(row, "inherited_test"):>17}'
      f'{percent(row, "val"):>14}{percent(row, "test"):>14}   {METHODS[name].says}'
    )
  print(
    json.dumps(
      {
        'benchmark': 'supernet_recipes',
        'machine': machine.describe(),
        'epochs': epochs,
        'seeds': seeds,
        'table': table,
      }
    )
  )


if __name__ == '__main__':
  main()
