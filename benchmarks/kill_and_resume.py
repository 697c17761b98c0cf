"""Kills the quickstart at random moments, resumes it, and compares with an undisturbed run.

  python -m benchmarks.kill_and_resume [--quick] [--kills 20] [--seed 0] [--folder DIR]

Two undisturbed runs come first: one with, one without compiling (the persistent compilation cache
is shared by all); they must be equal, and the second one's duration is the clock. Kill n of N comes
at a random moment of the n-th N-th of it, so all stages have their share. Most are kill -9, every
fifth is SIGTERM; every fourth run is killed a second time, with -9, while it resumes. Each run has
a workdir and a TFDS folder of its own, so that preparing the data is interrupted, too.

Identical means: `result.json` but for its seconds, and every byte of `folded/`,
`adapter.safetensors` and `metrics.jsonl`. `--quick` makes 6 kills of a shortened quickstart. The
last line is JSON; the exit code is 1 where a run was not identical.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import NamedTuple

from benchmarks.machinery.output import make_parser, print_result

ROOT = pathlib.Path(__file__).parent.parent
KILLS, QUICK_KILLS = 20, 6
QUICK_FIELDS = {
  'supernet.epochs': 8,
  'finetune.epochs': 8,
  'search.generations': 2,
  'search.population': 10,
  'search.mutations': 5,
  'search.crossovers': 5,
  'search.parents': 5,
  'checkpoint_epochs': 4,
}
ENDED, SAVED = 0, 75  # exit codes: finished, and stopped with everything saved
TRIES, EARLIER = 5, 0.9  # a run that was faster than the clock is killed that much earlier
LAST_WORDS = 600  # characters of the log of a run that failed

Contents = dict[str, bytes]


@dataclasses.dataclass(frozen=True)
class Quickstart:
  """A quickstart that can be started many times: the same command each time.

  Attributes:
    folder: for all that it writes, the log of all starts included.
    cache: of compiled programs.
    fields: of the config, in place of the quickstart's.
  """

  folder: pathlib.Path
  cache: pathlib.Path
  fields: Mapping[str, int]

  @property
  def workdir(self) -> pathlib.Path:
    """The run's own."""
    return self.folder / 'run'

  @property
  def log(self) -> str:
    """What all starts have printed."""
    return (self.folder / 'log.txt').read_text(errors='replace')

  def start(self, kill: Kill | None = None) -> int:
    """Starts it, kills it where asked to, and waits until it ends; the exit code."""
    self.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, '-m', 'glora_jax.main']
    command += ['--config', str(ROOT / 'configs' / 'quickstart.py')]
    command += ['--workdir', str(self.workdir), f'--config.data.dir={self.folder / "tfds"}']
    command += [f'--config.{name}={value}' for name, value in self.fields.items()]
    environment = {
      **os.environ,
      'JAX_COMPILATION_CACHE_DIR': str(self.cache),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    with open(self.folder / 'log.txt', 'a') as log:
      process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=log, cwd=ROOT, env=environment
      )
      if kill is not None:
        try:
          return process.wait(kill.after)
        except subprocess.TimeoutExpired:
          process.send_signal(kill.signal)
      return process.wait()

  def stage(self) -> str:
    """The stage that the last start was in."""
    marks = re.findall(r'^(\w+): (begins|done)', self.log, re.M)
    if not marks:
      return 'preparing'
    name, state = marks[-1]
    return name if state == 'begins' else f'after {name}'

  def contents(self) -> Contents:
    """All that must be identical, by name."""
    result = json.loads((self.workdir / 'result.json').read_text())
    del result['seconds']
    folded = [f'folded/{path.name}' for path in (self.workdir / 'folded').iterdir()]
    names = ['adapter.safetensors', 'metrics.jsonl', *folded]
    return {
      'result.json': json.dumps(result, sort_keys=True).encode(),
      **{name: (self.workdir / name).read_bytes() for name in names},
    }


class Kill(NamedTuple):
  """A signal, and the seconds after a start at which it is sent."""

  signal: signal.Signals
  after: float

  def is_answered_by(self, code: int) -> bool:
    """Whether a run that got the signal in time may end with this exit code."""
    return code == -self.signal or (self.signal == signal.SIGTERM and code == SAVED)


class Undisturbed(NamedTuple):
  """What a whole run has left, and how long it took."""

  contents: Contents
  seconds: float


class Disturbed(NamedTuple):
  """A run that was killed and resumed until it ended.

  Attributes:
    quickstart: the run.
    kills: what was done to it, a sentence for each kill that came in time.
    code: exit code of the last start.
  """

  quickstart: Quickstart
  kills: list[str]
  code: int

  def failure(self, expected: Contents) -> str:
    """Why the run is not identical; empty where it is."""
    if self.code == ENDED and self.kills:
      changed = differences(expected, self.quickstart.contents())
      return f'differs in {", ".join(changed)}' if changed else ''
    return f'ended with {self.code}: {self.quickstart.log.strip()[-LAST_WORDS:]}'


def differences(expected: Contents, actual: Contents) -> list[str]:
  """Names of all that is not the same."""
  names = expected.keys() | actual.keys()
  return sorted(name for name in names if expected.get(name) != actual.get(name))


def run_undisturbed(quickstart: Quickstart) -> Undisturbed:
  """A whole run; leaves the program where it fails."""
  start = time.perf_counter()
  if code := quickstart.start():
    sys.exit(f'The undisturbed run ended with {code}:\n{quickstart.log[-5 * LAST_WORDS :]}')
  return Undisturbed(quickstart.contents(), time.perf_counter() - start)


def plan_kills(number: int, moment: float, duration: float, rng: random.Random) -> list[Kill]:
  """The kills of run `number`, the first of them `moment` seconds after its start."""
  first = Kill(signal.SIGTERM if number % 5 == 4 else signal.SIGKILL, moment)
  rest = max(duration - moment, 0.3 * duration)
  second = Kill(signal.SIGKILL, rng.uniform(0.2, 0.9) * rest)
  return [first, second] if number % 4 == 3 else [first]


def run_disturbed(quickstart: Quickstart, planned: list[Kill]) -> Disturbed:
  """A run from an empty folder that is killed as planned, and then resumed until it ends."""
  shutil.rmtree(quickstart.folder, ignore_errors=True)
  kills = []
  for kill in planned:
    code = quickstart.start(kill)
    if code == ENDED:
      return Disturbed(quickstart, kills, code)
    stage = quickstart.stage()
    kills.append(f'{kill.signal.name} at {kill.after:.1f} s, {stage}, exit code {code}')
    if not kill.is_answered_by(code):
      return Disturbed(quickstart, kills, code)
  return Disturbed(quickstart, kills, quickstart.start())


def parse_arguments() -> argparse.Namespace:
  """The command line."""
  parser = make_parser(__doc__, f'{QUICK_KILLS} kills of a shortened quickstart')
  parser.add_argument('--kills', type=int, help=f'{KILLS}, or {QUICK_KILLS} with --quick')
  parser.add_argument('--seed', type=int, default=0, help='of the moments')
  parser.add_argument(
    '--folder', help='for the runs, kept; a temporary one by default, which is removed'
  )
  return parser.parse_args()


def main() -> None:
  """Runs, kills, compares and prints."""
  arguments = parse_arguments()
  fields = QUICK_FIELDS if arguments.quick else {}
  number = arguments.kills or (QUICK_KILLS if arguments.quick else KILLS)
  rng = random.Random(arguments.seed)
  folder = pathlib.Path(arguments.folder or tempfile.mkdtemp(prefix='kill_and_resume_')).resolve()

  def quickstart(name: str) -> Quickstart:
    return Quickstart(folder / name, folder / 'xla', fields)

  expected, cold_seconds = run_undisturbed(quickstart('cold'))
  repeated, duration = run_undisturbed(quickstart('warm'))
  changed = ', '.join(differences(expected, repeated))
  print(
    f'undisturbed: {cold_seconds:.1f} s, without compiling {duration:.1f} s; the two differ in: '
    f'{changed or "nothing"}'
  )
  print(f'{"":4} {"identical":10} what was done', flush=True)
  identical, kills = 0, []
  for index in range(number):
    moment = (index + rng.random()) / number * duration
    for _ in range(TRIES):
      planned = plan_kills(index, moment, duration, rng)
      outcome = run_disturbed(quickstart(f'kill{index}'), planned)
      if outcome.kills:
        break
      moment *= EARLIER
    failure = outcome.failure(expected)
    identical += not failure
    kills.append(outcome.kills)
    answer = 'no' if failure else 'yes'
    print(f'{index:4} {answer:10} {"; then ".join(outcome.kills)} {failure}', flush=True)
    if not failure and not arguments.folder:
      shutil.rmtree(outcome.quickstart.folder)
  print(f'{identical} of {number} identical')
  if not arguments.folder and identical == number:
    shutil.rmtree(folder)
  values = {
    'quick': arguments.quick,
    'seed': arguments.seed,
    'seconds': round(duration, 1),
    'undisturbed_runs_equal': not changed,
    'runs': number,
    'identical': identical,
    'kills': kills,
  }
  print_result('kill_and_resume', values)
  sys.exit(identical != number)


if __name__ == '__main__':
  main()
