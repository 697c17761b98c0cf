"""Trainings as jobs, and the lines of JSON that tables are made of."""

import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from tqdm import tqdm

from benchmarks.machinery.measuring import append_line, read_lines
from glora_jax.files import read_json

Method = tuple[str, int]  # its name, and the budget that it fills, or 0
Results = dict['Job', dict[str, Any]]


class Job(NamedTuple):
  """One training.

  Attributes:
    task: its name.
    method: name of a structure.
    budget: most trained parameters, if the method fills a budget; 0 if its name says all.
    rate: peak learning rate.
    seed: of images, initial values and order.
    epochs: of the training.
  """

  task: str
  method: str
  budget: int
  rate: float
  seed: int
  epochs: int


def path_of(folder: str) -> str:
  """The file of a folder's results."""
  return os.path.join(folder, 'final.jsonl')


def read_results(folder: str) -> Results:
  """The results in a folder, by job."""
  return {Job(*line.pop('job')): line for line in read_lines(path_of(folder))}


def read_rates(folder: str) -> dict[Method, float]:
  """The learning rate of each method; they were chosen on other tasks."""
  listed = read_json(os.path.join(folder, 'rates.json'))['rates']
  return {(name, budget): rate for name, budget, rate in listed}


def run_jobs(jobs: Iterable[Job], folder: str, train: Callable[[Job], dict[str, Any]]) -> None:
  """Does the jobs that have no result in a folder, and adds their results."""
  done = read_results(folder)
  for job in tqdm([job for job in jobs if job not in done]):
    append_line(path_of(folder), {'job': list(job), **train(job)})
