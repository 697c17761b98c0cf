"""What is compared: budgets, fixed methods, controls, tasks, seeds and learning rates.

Each method of each size takes the best rate of a list, on the development tasks. The list grows at
either end until no choice stands there. What is compared is the mean test accuracy over `TUNED_ON`
with one seed that no table uses; development tasks are there for that.
"""

import os
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from benchmarks.structures.jobs import Job, Store
from benchmarks.structures.laboratory import Model, backbone
from benchmarks.structures.methods import KNOWN, RISING, SEARCH, Name
from benchmarks.structures.tasks import TASKS
from glora_jax.files import read_json, write_json
from glora_jax.method.genomes import count_params
from glora_jax.method.presets import preset

HERE = os.path.dirname(__file__)
# Tasks on which full fine-tuning is 10 points above a linear probe, and below 97%: written by
# `benchmarks.structures.admission`, at commit 1f008ead.
ADMISSION = os.path.join(HERE, 'admission.json')
CONFIRMING = 6  # most confirming tasks: the first that were admitted, in the order of `TASKS`
EPOCHS = 36
BUDGETS = (5_184, 9_216, 18_432, 36_864)
SMALLEST_BUDGET, SMALLEST_TASKS = 2_592, 2  # which no other builds on, and the first final tasks
LARGEST_RANKS = (36_864,)  # budgets to which a base adds the largest rank of each place alone
SEEDS = {5_184: 10, 9_216: 10, 18_432: 3, 36_864: 3, SMALLEST_BUDGET: 3}
FIRST_SEEDS = 1  # of every fixed method on a final task
OTHER_SEEDS = 2  # of random structures there
MARGIN = 4.0  # points behind the best after these, beyond which a method gets no further seeds
TOURNAMENT_SEEDS = 2
KNOWN_SEEDS = 5  # of every development task
SEARCHED_BUDGETS = (9_216, 36_864)
SEARCH_SEEDS = 3
RANDOM = 5  # random structures of each budget, for the headroom
MAX_RANK = 16
OURS = 'pass(prior known)'  # as `config.structure='gradient'` does it
BEFORE = 'gradient(shifts)'  # as it was done in folds, at sizes that have no other results
PLACES = ('', '@qkv', '@attn', '@mlp', '@last_half')
WITHOUT_RANK = ('bitfit', 'ssf', 'prompt', 'scale_shift', 'scale_shift@last_half')
WITH_RANK = {  # and their places
  'lora': PLACES,
  'hira': PLACES,
  'scale_shift_lora': ('', '@qkv', '@attn'),
}
TUNING_SEED = 1000
TUNED_ON = ('mnist', 'silhouettes', 'bars')
FACTOR = 2.0  # between learning rates
SMALLEST, LARGEST = 2.5e-4, 0.6
TWICE_AS_LARGE = {9_216: 'lora:2', 18_432: 'lora:4'}  # LoRA of every layer, by half its size

Method = tuple[str, int]  # its name, and the budget that it fills, or 0
Rates = Mapping[Method, float]


class Protocol(NamedTuple):
  """How structures are trained, and where what became of them lies.

  Attributes:
    folder: of results and rates.
    epochs: of every training.
    first_rates: that are tried of every method.
    tuned_on: tasks on which they are.
    backbone: whose structures are trained.
  """

  folder: str = os.path.join(HERE, 'results')
  epochs: int = EPOCHS
  first_rates: Sequence[float] = (3.2e-2, 6.4e-2)
  tuned_on: Sequence[str] = TUNED_ON
  backbone: str = 'embedded'

  def store(self, part: str, versions: Sequence[str] | None = None) -> Store:
    """The results of a part by some versions, by default the present one."""
    return Store(os.path.join(self.folder, f'{part}.jsonl'), versions)

  def jobs(self, rates: Rates, names: Sequence[str], seeds: Iterable[int]) -> list[Job]:
    """Every method, with its learning rate, on every task and seed; seeds are outermost."""
    return [
      Job(task, *method, rate, seed, self.epochs, self.backbone)
      for seed in seeds
      for task in names
      for method, rate in rates.items()
    ]

  def trials(self, method: Method, rate: float) -> list[Job]:
    """The jobs that say how good a rate is."""
    return self.jobs({method: rate}, self.tuned_on, [TUNING_SEED])

  def tried(self, method: Method, store: Store) -> dict[float, float]:
    """Mean accuracies by rate, of which all trials are done, ascending."""
    rates = sorted({job.rate for job in store.results if job[1:3] == method})
    trials = {rate: self.trials(method, rate) for rate in rates}
    return {
      rate: mean_accuracy(jobs, store)
      for rate, jobs in trials.items()
      if store.results.keys() >= {*jobs}
    }

  def next_rates(self, method: Method, store: Store) -> list[float]:
    """The rates to try next: the first, then one beyond the end at which the best stands."""
    tried = self.tried(method, store)
    missing = [rate for rate in self.first_rates if rate not in tried]
    if missing or not tried:
      return missing
    best = max(tried, key=tried.__getitem__)
    if best == max(tried) and best < LARGEST:
      return [float(f'{best * FACTOR:.3g}')]
    if best == min(tried) and best > SMALLEST:
      return [float(f'{best / FACTOR:.3g}')]
    return []

  def tune(
    self, methods: Sequence[Method], store: Store, run: Callable[[list[Job]], None]
  ) -> dict[Method, float | None]:
    """The best rate of every method, by trials that `run` does."""
    while jobs := [
      job
      for method in methods
      for rate in self.next_rates(method, store)
      for job in self.trials(method, rate)
    ]:
      run(jobs)
    tried = {method: self.tried(method, store) for method in methods}
    return {method: max(of, key=of.__getitem__, default=None) for method, of in tried.items()}

  def read_rates(self) -> dict[Method, float]:
    """The chosen rates; none before `tune`."""
    path = os.path.join(self.folder, 'rates.json')
    listed = read_json(path)['rates'] if os.path.exists(path) else []
    return {(name, budget): rate for name, budget, rate in listed}

  def add_rates(self, rates: Mapping[Method, float | None]) -> None:
    """Keeps chosen rates with those chosen before."""
    listed = [[*method, rate] for method, rate in (self.read_rates() | dict(rates)).items()]
    write_json(os.path.join(self.folder, 'rates.json'), {'rates': listed})


MAIN = Protocol()


def rated(methods: Iterable[Method], rates: Rates, *, all_of_them: bool = False) -> Rates:
  """The methods that have rates, with them; those that vary another take its rate.

  Raises:
    SystemExit: one has none, where all were asked for.
  """
  tuned = {method: tuned_as(method) for method in methods}
  without = sorted({name for name, budget in tuned.values() if (name, budget) not in rates})
  if all_of_them and without:
    raise SystemExit(
      f'No learning rate is chosen for {", ".join(without)}; the part tune, with the same budgets, '
      'does that.'
    )
  return {method: rates[own] for method, own in tuned.items() if own in rates}


def fixed_methods(budget: int) -> list[Method]:
  """The simple methods that fit a budget and no smaller one of the list: all, or the largest.

  Of all 61 that fit 36,864 parameters the rates alone would take some 500 trainings.
  """
  spec = backbone(Model(10)).adapted.spec
  ranked = [
    f'{base}:{rank}{place}'
    for base, places in WITH_RANK.items()
    for rank in range(1, MAX_RANK + 1)
    for place in places
  ]
  sizes = {name: count_params(spec, preset(spec, name)) for name in (*WITHOUT_RANK, *ranked)}
  smaller = max((other for other in BUDGETS if other < budget), default=0)
  found = [name for name, size in sizes.items() if smaller < size <= budget]
  if budget in LARGEST_RANKS:
    found = list({re.sub(r'\d+', '', name): name for name in found}.values())
  return [(name, 0) for name in found] + [(name, budget) for name in RISING]


def sized(text: str, budget: int) -> Method:
  """A method by its name, with the budget where it fills one."""
  fills = Name.parse(text).base in ('pass', 'random', KNOWN, SEARCH, *RISING)
  return text, budget if fills else 0


def fixed_up_to(budget: int) -> list[Method]:
  """The fixed methods of a budget and of all smaller ones; the smallest of all stands alone."""
  smaller = [other for other in BUDGETS if other <= budget]
  return [method for other in smaller or [budget] for method in fixed_methods(other)]


def tasks(which: str) -> list[str]:
  """Names of the tasks of a set."""
  return [name for name, task in TASKS.items() if task.set == which]


def tasks_of(part: str, budget: int) -> list[str]:
  """Names of the tasks on which a budget is compared: final ones, or confirming ones."""
  names = tasks(part)
  if part == 'confirming':
    results = read_json(ADMISSION)
    return [name for name in names if results.get(name, {}).get('admitted')][:CONFIRMING]
  return names[:SMALLEST_TASKS] if budget == SMALLEST_BUDGET else names


def controls(budget: int, task: str) -> list[Method]:
  """What a gain must hold against: its parts apart, and another task's structure."""
  names = tasks(TASKS[task].set)
  other = names[(names.index(task) + 1) % len(names)]
  ours = ('pass', 'pass/usual', f'pass(of {other})', 'pass(prior shifts)', KNOWN)
  return [*((name, budget) for name in ours), (f'{strongest_lora(budget)}/aligned', 0)]


def strongest_lora(budget: int) -> str:
  """The LoRA of a budget that was strongest where rates were chosen."""
  if budget >= 9_216:
    return 'lora:1'
  return 'lora:1@attn' if budget > SMALLEST_BUDGET else 'lora:1@qkv'


def beside(budget: int, task: str) -> list[Method]:
  """What ours is held against on a task beside the simple methods of its size."""
  folds = [(name, budget) for name in ('gradient', BEFORE)]
  return controls(budget, task) + folds + twice_as_large(budget) + searched(budget)


def randoms(budget: int) -> list[Method]:
  """Random structures from the allocator of the structure read off a gradient."""
  return [(f'random({number})', budget) for number in range(RANDOM)]


def searched(budget: int) -> list[Method]:
  """The paper's search, where it is compared."""
  return [(SEARCH, budget)] if budget in SEARCHED_BUDGETS else []


def twice_as_large(budget: int) -> list[Method]:
  """The LoRA of twice a budget that ours is held against."""
  return [(TWICE_AS_LARGE[budget], 0)] if budget in TWICE_AS_LARGE else []


def tournament(budget: int) -> list[Method]:
  """What is compared on the development tasks."""
  names = ('pass', 'pass(of others)', 'pass/usual', 'random(0)', 'gradient')
  return [(strongest_lora(budget), 0), *((name, budget) for name in names)]


def tuned_as(method: Method) -> Method:
  """The method whose learning rate one takes: a variation takes that of what it varies.

  A pass and known values take the rate of structures by gradients in folds, which were tuned.
  """
  text, budget = method
  name = Name.parse(text)
  if name.base == 'random':
    return 'random(0)', budget
  if name.base in ('pass', KNOWN, 'gradient'):
    return 'gradient/usual' if name.start == 'usual' else 'gradient', budget
  return name.base, budget


def contenders(store: Store, task: str, rates: Rates) -> list[Method]:
  """The methods that are near the best of a task after the first seeds."""
  means = {
    method: mean_accuracy(MAIN.jobs({method: rate}, [task], range(FIRST_SEEDS)), store)
    for method, rate in rates.items()
  }
  best = max(means.values())
  return [method for method, mean in means.items() if 100 * (best - mean) <= MARGIN]


def mean_accuracy(jobs: Iterable[Job], store: Store) -> float:
  """Mean test accuracy of jobs that are done."""
  return statistics.mean(store.results[job]['test'][0] for job in jobs)
