"""Kept results, and the tables of them."""

import os
from typing import Any

import numpy as np

from benchmarks.language.methods import DOCUMENTATION, LORA, METHODS, MOOD, UNTRAINED
from benchmarks.machinery.measuring import print_result, print_table, read_lines
from benchmarks.structures.statistics import Difference, difference
from glora_jax.files import read_json

# Of scores, and what `difference`, which makes percent of shares, gets for one.
UNITS = {MOOD: ('accuracy, %', 1), DOCUMENTATION: ('loss, nats', 0.01)}

Job = tuple[str, str, int]  # task, method, seed


def results_path(folder: str) -> str:
  """The file of results."""
  return os.path.join(folder, 'final.jsonl')


def sweeps_path(folder: str) -> str:
  """The file of rates."""
  return os.path.join(folder, 'sweeps.jsonl')


def read_results(folder: str) -> dict[Job, dict[str, Any]]:
  """Results in a folder: `params` and `scores`, one for each text to test on."""
  lines = read_lines(results_path(folder))
  return {tuple(line['job']): line | {'scores': np.array(line['scores'])} for line in lines}


def read_sweeps(folder: str) -> dict[str, dict[str, Any]]:
  """Validation losses by method: `rates`, `losses`, and the `best` rate."""
  return {line['method']: line for line in read_lines(sweeps_path(folder))}


def milliseconds_path(folder: str) -> str:
  """The file of times of a step, by task and method."""
  return os.path.join(folder, 'milliseconds.json')


def show(folder: str) -> None:
  """Prints the rates, and for each task scores with intervals and milliseconds of a step."""
  results, sweeps = read_results(folder), read_sweeps(folder)
  path = milliseconds_path(folder)
  milliseconds = read_json(path) if os.path.exists(path) else {}
  for method, found in sweeps.items():
    pairs = zip(found['rates'], found['losses'], strict=True)
    print(method, *(f'{rate:g}: {loss:.3f}' for rate, loss in pairs), sep='  ')
  found = {}
  for task, (unit, scale) in UNITS.items():
    scores = {method: scores_of(results, task, method) for method in (UNTRAINED, *METHODS)}
    scores = {method: scale * rows for method, rows in scores.items() if len(rows)}
    means = {method: difference(rows, 0 * rows) for method, rows in scores.items()}
    less_lora = {
      method: compared(rows, scores[LORA])
      for method, rows in scores.items()
      if LORA in scores and method != LORA
    }
    columns = {task: '', 'parameters': ',', unit: '', f'less {LORA}': '', 'ms a step': ',.0f'}
    print_table(
      columns,
      [
        (
          method,
          results[task, method, 0]['params'],
          '{:.2f} [{:.2f}, {:.2f}]'.format(*mean),
          '{:+.2f} [{:+.2f}, {:+.2f}]'.format(*less_lora[method]) if method in less_lora else None,
          milliseconds.get(task, {}).get(method),
        )
        for method, mean in means.items()
      ],
    )
    found[task] = {'means': means, 'less_lora': less_lora}
  rates = {method: found['best'] for method, found in sweeps.items()}
  print_result('language', {**found, 'rates': rates, 'milliseconds': milliseconds})


def scores_of(results: dict[Job, dict[str, Any]], task: str, method: str) -> np.ndarray:
  """Scores of a method on a task, [seed, text]."""
  jobs = sorted(job for job in results if job[:2] == (task, method))
  return np.array([results[job]['scores'] for job in jobs])


def compared(ours: np.ndarray, theirs: np.ndarray) -> Difference:
  """The difference over the seeds that both have."""
  seeds = min(len(ours), len(theirs))
  return difference(ours[:seeds], theirs[:seeds])
