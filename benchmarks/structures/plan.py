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
from benchmarks.structures.laboratory import EMBEDDED, Model, backbone
from benchmarks.structures.methods import SEARCH, Name
from benchmarks.structures.rising import RISING
from benchmarks.structures.tasks import TASKS
from glora_jax.files import read_json, write_json
from glora_jax.method.genomes import count_params
from glora_jax.method.presets import preset

ADMISSION = os.path.join(os.path.dirname(__file__), 'admission.json')
CONFIRMING = 6  # most confirming tasks: the first that were admitted, in the order of `TASKS`
EPOCHS = 36
BUDGETS = (5_184, 9_216, 18_432, 36_864)
SMALLEST_BUDGET, SMALLEST_TASKS = 2_592, 2  # which no other builds on, and the first final tasks
LARGEST_RANKS = (36_864,)  # budgets to which a base adds the largest rank of each place alone
SEEDS = {5_184: 10, 9_216: 10, 18_432: 3, 36_864: 3, SMALLEST_BUDGET: 3}
FIRST_SEEDS = 1  # of every fixed method on a final task
OTHER_SEEDS = 2  # of random structures and of other values there
MARGIN = 4.0  # points behind the best after these, beyond which a method gets no further seeds
TOURNAMENT_SEEDS = 2
SEARCHED_BUDGETS = (9_216, 36_864)
SEARCH_SEEDS = 3
RANDOM = 5  # random structures of each budget, for the headroom
MAX_RANK = 16
OURS = 'gradient(shifts)'  # as `config.structure='gradient'` does it
PLACES = ('', '@qkv', '@attn', '@mlp', '@last_half')
WITHOUT_RANK = ('bitfit', 'ssf', 'prompt', 'scale_shift', 'scale_shift@last_half')
WITH_RANK = {  # and their places
  'lora': PLACES,
  'hira': PLACES,
  'scale_shift_lora': ('', '@qkv', '@attn'),
}
POOLED = ('gradient(of others)', 'gradient(with others)')
OPTIONS = ('+dropout', '+vectors2', '+up4', '+bounded')
OTHER_VALUES = ('sign', 'preconditioned', 'seen', 'gora', 'surgical', 'eva')
TUNING_SEED = 1000
TUNED_ON = ('mnist', 'silhouettes', 'bars')
FACTOR = 2.0  # between learning rates
SMALLEST, LARGEST = 2.5e-4, 0.6
TWICE_AS_LARGE = {9_216: 'lora:2', 18_432: 'lora:4'}  # LoRA of every layer, by half its size

Method = tuple[str, int]  # its name, and the budget that it fills, or 0


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
  fills = Name.parse(text).base in ('gradient', 'random', SEARCH, *RISING)
  return text, budget if fills else 0


def fixed_up_to(budget: int) -> list[Method]:
  """The fixed methods of a budget and of all smaller ones; the smallest of all stands alone."""
  smaller = [other for other in BUDGETS if other <= budget]
  return [method for other in smaller or [budget] for method in fixed_methods(other)]


def tasks(which: str) -> list[str]:
  """Names of the tasks of a set."""
  return [name for name, task in TASKS.items() if task.set == which]


def final_tasks(budget: int) -> list[str]:
  """Names of the final tasks on which a budget is compared."""
  names = tasks('final')
  return names[:SMALLEST_TASKS] if budget == SMALLEST_BUDGET else names


def confirming() -> list[str]:
  """Names of the confirming tasks that are run."""
  results = read_json(ADMISSION)
  admitted = [name for name in tasks('confirming') if results.get(name, {}).get('admitted')]
  return admitted[:CONFIRMING]


def jobs_of(
  methods: Iterable[tuple[Method, float]], names: Sequence[str], seeds: Iterable[int]
) -> list[Job]:
  """Every method, with its learning rate, on every task and seed; seeds are outermost."""
  methods = list(methods)
  return [
    Job(task, name, budget, rate, seed, EPOCHS)
    for seed in seeds
    for task in names
    for (name, budget), rate in methods
  ]


def controls(budget: int, task: str) -> list[Method]:
  """What a gain must hold against: its parts apart, and another task's structure."""
  names = tasks(TASKS[task].set)
  other = names[(names.index(task) + 1) % len(names)]
  return [
    ('gradient', budget),
    ('gradient/usual', budget),
    (f'gradient(of {other})', budget),
    (f'{strongest_lora(budget)}/aligned', 0),
  ]


def strongest_lora(budget: int) -> str:
  """The LoRA of a budget that was strongest where rates were chosen."""
  if budget >= 9_216:
    return 'lora:1'
  return 'lora:1@attn' if budget > SMALLEST_BUDGET else 'lora:1@qkv'


def beside(budget: int, task: str) -> list[Method]:
  """What ours is held against on a task beside the simple methods of its size."""
  pooled = [(name, budget) for name in (*POOLED, 'gradient(prior others)')]
  others = pooled + twice_as_large(budget) + searched(budget) + other_values(budget)
  return controls(budget, task) + others


def randoms(budget: int) -> list[Method]:
  """Random structures from the allocator of the structure read off a gradient."""
  return [(f'random({number})', budget) for number in range(RANDOM)]


def other_values(budget: int) -> list[Method]:
  """Structures by other values in the same allocator."""
  return [(f'gradient({value})', budget) for value in OTHER_VALUES]


def searched(budget: int) -> list[Method]:
  """The paper's search, where it is compared."""
  return [(SEARCH, budget)] if budget in SEARCHED_BUDGETS else []


def twice_as_large(budget: int) -> list[Method]:
  """The LoRA of twice a budget that ours is held against."""
  return [(TWICE_AS_LARGE[budget], 0)] if budget in TWICE_AS_LARGE else []


def tournament(budget: int) -> list[Method]:
  """What is compared on the development tasks: values and options of training."""
  strongest = (strongest_lora(budget), 0)
  varied = [
    (name + option, size) for name, size in (strongest, ('gradient', budget)) for option in OPTIONS
  ]
  names = ('gradient', *POOLED, 'gradient/usual', 'random(0)')
  read_off = [(name, budget) for name in names]
  return [strongest, *read_off, *other_values(budget), *varied]


def tuned_as(method: Method) -> Method:
  """The method whose learning rate one takes: a variation takes that of what it varies."""
  text, budget = method
  name = Name.parse(text)
  if name.base == 'random':
    return 'random(0)', budget
  if name.base == 'gradient':
    return 'gradient/usual' if name.start == 'usual' else 'gradient', budget
  return name.base, budget


def contenders(
  store: Store, task: str, rates: Mapping[Method, float], methods: Sequence[Method]
) -> list[Method]:
  """The fixed methods that are near the best of a task after the first seeds."""
  means = {}
  for method in methods:
    jobs = jobs_of([(method, rates[method])], [task], range(FIRST_SEEDS))
    means[method] = mean_accuracy(jobs, store)
  best = max(means.values())
  return [method for method, mean in means.items() if 100 * (best - mean) <= MARGIN]


class Trials(NamedTuple):
  """How rates are tried.

  Attributes:
    epochs: of every training.
    first_rates: that are tried of every method.
    tasks: on which.
    backbone: whose structures are trained.
  """

  epochs: int = EPOCHS
  first_rates: Sequence[float] = (3.2e-2, 6.4e-2)
  tasks: Sequence[str] = TUNED_ON
  backbone: str = EMBEDDED

  def jobs(self, method: Method, rate: float) -> list[Job]:
    """The jobs that say how good a rate is."""
    how = (TUNING_SEED, self.epochs, self.backbone)
    return [Job(task, *method, rate, *how) for task in self.tasks]

  def tried(self, method: Method, store: Store) -> list[float]:
    """The rates of which all trials are done, ascending."""
    rates = {job.rate for job in store.results if job[1:3] == method}
    return sorted(rate for rate in rates if store.results.keys() >= {*self.jobs(method, rate)})

  def best(self, method: Method, store: Store) -> float | None:
    """The best rate so far; None where none was tried."""
    return max(
      self.tried(method, store),
      key=lambda rate: mean_accuracy(self.jobs(method, rate), store),
      default=None,
    )

  def next_rates(self, method: Method, store: Store) -> list[float]:
    """The rates to try next: the first, then one beyond the end at which the best stands."""
    tried = self.tried(method, store)
    missing = [rate for rate in self.first_rates if rate not in tried]
    best = self.best(method, store)
    if missing or best is None:
      return missing
    if best == tried[-1] and best < LARGEST:
      return [float(f'{best * FACTOR:.3g}')]
    if best == tried[0] and best > SMALLEST:
      return [float(f'{best / FACTOR:.3g}')]
    return []


def mean_accuracy(jobs: Iterable[Job], store: Store) -> float:
  """Mean test accuracy of jobs that are done."""
  return statistics.mean(store.results[job]['test'][0] for job in jobs)


def tune(
  methods: Sequence[Method],
  store: Store,
  trials: Trials,
  run: Callable[[list[Job]], None],
) -> dict[Method, float | None]:
  """The best rate of every method, given as (name, budget).

  Args:
    methods: names with their budgets, 0 for those whose name says all.
    store: results so far.
    trials: how rates are tried.
    run: does jobs.
  """
  while jobs := [
    job
    for method in methods
    for rate in trials.next_rates(method, store)
    for job in trials.jobs(method, rate)
  ]:
    run(jobs)
  return {method: trials.best(method, store) for method in methods}


def write_rates(path: str, rates: Mapping[Method, float | None]) -> None:
  """Keeps the chosen rates in a file."""
  write_json(path, {'rates': [[*method, rate] for method, rate in rates.items()]})


def read_rates(path: str, program: str) -> dict[Method, float]:
  """The chosen rates.

  Args:
    path: of the file.
    program: module whose part `tune` writes it.

  Raises:
    SystemExit: there are none yet.
  """
  if not os.path.exists(path):
    raise SystemExit(f'No rates are chosen yet; python -m {program} tune does that.')
  return {(name, budget): rate for name, budget, rate in read_json(path)['rates']}
