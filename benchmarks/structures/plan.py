"""What is compared: budgets, fixed methods, controls, tasks and seeds."""

from collections.abc import Iterable, Iterator, Sequence

from benchmarks.structures.jobs import Job
from benchmarks.structures.laboratory import backbone
from benchmarks.structures.tasks import TASKS
from glora_jax.method.genomes import count_params
from glora_jax.method.presets import preset

EPOCHS = 36
BUDGETS = (5_184, 9_216, 18_432, 36_864)
SMALLEST_BUDGET = 2_592
SEEDS = {5_184: 10, 9_216: 10, 18_432: 3, 36_864: 3, SMALLEST_BUDGET: 3}
RANDOM = 5  # random structures of each budget, for the headroom
MAX_RANK = 16
PLACES = ('', '@qkv', '@attn', '@mlp', '@last_half')
WITHOUT_RANK = ('bitfit', 'ssf', 'prompt', 'scale_shift', 'scale_shift@last_half')
WITH_RANK = {  # and their places
  'lora': PLACES,
  'hira': PLACES,
  'scale_shift_lora': ('', '@qkv', '@attn'),
}
RISING = ('lora:rising', 'hira:rising')
OTHER_VALUES = ('sign', 'preconditioned', 'seen', 'gora', 'surgical')

Method = tuple[str, int]  # its name, and the budget that it fills, or 0


def fixed_methods(budget: int) -> list[Method]:
  """Every simple method that fits a budget and no smaller one of the list."""
  spec = backbone(10).adapted.spec
  sizes = {name: count_params(spec, preset(spec, name)) for name in _names()}
  smaller = max((other for other in BUDGETS if other < budget), default=0)
  found = [(name, 0) for name, size in sizes.items() if smaller < size <= budget]
  return found + [(name, budget) for name in RISING]


def _names() -> Iterator[str]:
  yield from WITHOUT_RANK
  for base, places in WITH_RANK.items():
    for rank in range(1, MAX_RANK + 1):
      yield from (f'{base}:{rank}{place}' for place in places)


def fixed_up_to(budget: int) -> list[Method]:
  """The fixed methods of a budget and of all smaller ones."""
  smaller = [other for other in BUDGETS if other <= budget]
  return [method for other in smaller for method in fixed_methods(other)]


def tasks(which: str) -> list[str]:
  """Names of the tasks of a set."""
  return [name for name, task in TASKS.items() if task.set == which]


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
