"""All trainings of a setting, and times of their steps."""

import os
from typing import Any

import jax

from benchmarks.language import trainings
from benchmarks.language.methods import METHODS, MOOD, UNTRAINED
from benchmarks.language.tables import (
  Job,
  milliseconds_path,
  read_results,
  read_sweeps,
  results_path,
  sweeps_path,
)
from benchmarks.language.trainings import Setting
from benchmarks.machinery.measuring import append_line, in_turn, plain
from glora_jax.files import write_json

PROGRAMS = os.path.join('runs', 'language', 'programs')  # compiled ones
STEPS = 2  # that are timed at once


def train(setting: Setting, folder: str) -> None:
  """Trains what has no result in a folder, first all sweeps on sentences."""
  jax.config.update('jax_compilation_cache_dir', PROGRAMS)
  done, sweeps = read_results(folder), read_sweeps(folder)

  def keep(job: Job, result: dict[str, Any]) -> None:
    append_line(results_path(folder), plain({'job': job, **result}))

  for task in setting.tasks:
    if (task, UNTRAINED, 0) not in done:
      keep((task, UNTRAINED, 0), trainings.untrained(setting, task))
    if task == MOOD:
      for method in METHODS:
        if method not in sweeps:
          sweeps[method], result = trainings.sweep(setting, task, method)
          keep((task, method, 0), result)
          line = plain({'method': method, **sweeps[method]})
          append_line(sweeps_path(folder), line)
    done = read_results(folder)
    for seed in range(setting.seeds):
      for method in METHODS:
        if (task, method, seed) not in done:
          rate = sweeps[method]['best']
          keep((task, method, seed), trainings.train(setting, task, method, seed, rate))


def time_steps(setting: Setting, folder: str, repeats: int) -> None:
  """Times steps of all methods on both tasks, and keeps milliseconds of one."""
  found = {}
  for task in setting.tasks:
    works = {method: trainings.steps(setting, task, method, STEPS) for method in METHODS}
    times = in_turn(works, repeats)
    found[task] = {method: 1e3 * times.median(method) / STEPS for method in METHODS}
  write_json(milliseconds_path(folder), plain(found))
