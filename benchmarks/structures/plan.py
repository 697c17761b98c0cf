"""What is compared: budgets, fixed methods, controls and seeds.

Each method of each size has the learning rate that was best on development tasks, with a seed that
no table uses. These rates are in `results/rates.json`, which so also lists the methods.
"""

import functools
import os
from collections.abc import Iterable, Sequence

from benchmarks.structures.jobs import Job, Method, read_rates
from benchmarks.structures.laboratory import backbone
from benchmarks.structures.methods import OURS, PASS, RANDOM, RISING, TRANSFER
from glora_jax.method.genomes import count_params
from glora_jax.method.presets import preset

RESULTS = os.path.join(os.path.dirname(__file__), 'results')
EPOCHS = 36
DRAWN = (5_184, 9_216, 18_432, 36_864)
BUDGETS = (2_592, *DRAWN)  # the smallest is on two tasks alone, and no other builds on it
SEEDS = 5
OTHER_SEEDS = 2  # of random structures
MARGIN = 4.0  # points behind the best after the first seed, beyond which a method gets no other
BEFORE = 'gradient(shifts)'  # ours as it once was, at sizes that have no other results
TWICE_AS_LARGE = {9_216: 'lora:2', 18_432: 'lora:4'}  # LoRA of every layer, by half its size


@functools.cache
def rates() -> dict[Method, float]:
  """The learning rate of each method."""
  return read_rates(RESULTS)


@functools.cache
def fixed_methods(budget: int) -> list[Method]:
  """The simple methods of at most a budget; those that fill one, at this and smaller ones."""
  spec = backbone(10).adapted.spec
  filled = {budget, *(other for other in DRAWN if other < budget)}
  return [
    (name, own)
    for name, own in rates()
    if (own in filled and name in RISING)
    or (not own and count_params(spec, preset(spec, name)) <= budget)
  ]


def randoms(budget: int) -> list[Method]:
  """Random structures by the allocator of the structure by one gradient."""
  return [(f'{RANDOM}{number})', budget) for number in range(5)]


def twice_as_large(budget: int) -> list[Method]:
  """The LoRA of twice a budget."""
  return [(TWICE_AS_LARGE[budget], 0)] if budget in TWICE_AS_LARGE else []


def rate_of(method: Method) -> float:
  """A method's learning rate; one that varies another has that one's."""
  name, budget = method
  if name in (PASS, OURS, TRANSFER):
    name = 'gradient'
  elif name.startswith(RANDOM):
    name = 'random(0)'
  return rates()[name, budget]


def jobs(methods: Sequence[Method], task: str, seeds: Iterable[int]) -> list[Job]:
  """Every method on every seed of a task."""
  return [Job(task, *method, rate_of(method), seed, EPOCHS) for seed in seeds for method in methods]
