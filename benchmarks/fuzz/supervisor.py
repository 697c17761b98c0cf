"""Processes that try cases; one that dies or hangs costs its case, and the next goes on."""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tqdm import tqdm

from benchmarks.fuzz.oracle import Outcome
from benchmarks.fuzz.place import Place
from benchmarks.fuzz.strategies import choose

REPOSITORY = pathlib.Path(__file__).parents[2]
CHUNK = 2000  # cases of a process, whose memory grows
LAST_WORDS = 1500  # characters of what a process that died printed last


class Result(NamedTuple):
  """How a case ended.

  Attributes:
    case: its number.
    strategy: name of its strategy.
    shown: what was tried.
    outcome: see `oracle.OUTCOMES`.
    reason: why.
    seconds: that it took.
  """

  case: int
  strategy: str
  shown: str
  outcome: Outcome
  reason: str
  seconds: float = 0.0


def supervise(
  root: str, seed: int, numbers: Sequence[int], names: Sequence[str]
) -> Iterator[Result]:
  """The results of cases, each as soon as it is known.

  Args:
    root: folder for all files.
    seed: seed of all cases.
    numbers: numbers of the cases.
    names: names of the strategies.
  """
  left = list(numbers)
  with tqdm(total=len(left), unit='case') as bar:
    while left:
      results = 0
      for result in _process(root, seed, left[:CHUNK], names):
        results += 1
        bar.update()
        yield result
      left = left[results:]


def _process(
  root: str, seed: int, numbers: Sequence[int], names: Sequence[str]
) -> Iterator[Result]:
  """Results of a process of its own; where it dies, its last case has one, too."""
  place = Place(os.path.join(root, 'place'))
  environment = {
    **os.environ,
    'HOME': place.path('home'),
    'TMPDIR': place.path('temporary'),
    'PYTHONPATH': os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get('PYTHONPATH')])),
    'JAX_PLATFORMS': 'cpu',
  }
  order = json.dumps(
    {'root': place.root, 'seed': seed, 'numbers': list(numbers), 'names': list(names)}
  )
  command = [sys.executable, '-m', 'benchmarks.fuzz.worker', order]
  done = 0
  with open(os.path.join(root, 'log'), 'w+', errors='replace') as log:
    with subprocess.Popen(
      command,
      stdout=subprocess.PIPE,
      stderr=log,
      cwd=place.path('here'),
      env=environment,
      text=True,
    ) as process:
      try:
        for line in process.stdout or ():
          done += 1
          yield Result(**json.loads(line))
      except BaseException:
        process.kill()
        raise
    if process.returncode:
      log.seek(0)
      text = log.read()[-LAST_WORDS:]
      number = numbers[done]
      outcome: Outcome = 'hang' if 'Timeout (' in text else 'traceback'
      reason = f'its process ended with {process.returncode}: {text}'
      yield Result(number, choose(number, seed, list(names))[0], '', outcome, reason)
