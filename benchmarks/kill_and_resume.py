"""Kills the quickstart at random moments, resumes it, and compares what it leaves with an undisturbed run's.

  python -m benchmarks.kill_and_resume [--quick] [--kills 20] [--seed 0] [--folder DIR]

Two undisturbed runs come first: one with, one without compiling (the persistent compilation cache is shared by all); they must be equal, and
the second one's duration is the clock. Kill n of N comes at a random moment of the n-th N-th of it, so all stages have their share. Most are
kill -9, every fifth is SIGTERM; every fourth run is killed a second time, with -9, while it resumes. Each run has a workdir and a TFDS
folder of its own, so that preparing the data is interrupted, too. Identical means: `result.json` but for its seconds, and every byte of
`folded/`, `adapter.safetensors` and `metrics.jsonl`. `--quick` makes 6 kills of a shortened quickstart. The last line is JSON; the exit code
is 1 where a run was not identical.
"""

from __future__ import annotations

import argparse
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

from benchmarks import machine

ROOT = pathlib.Path(__file__).parent.parent
SHORT = {
  'supernet.epochs': 8,
  'finetune.epochs': 8,
  'search.generations': 2,
  'search.population': 10,
  'search.mutations': 5,
  'search.crossovers': 5,
  'search.parents': 5,
  'checkpoint_epochs': 4,
}
SAVED, ENDED = 75, 0  # exit codes: stopped with everything saved, and finished


class Starts:
  """Starts of the quickstart in one folder: the same command each time."""

  def __init__(self, folder: pathlib.Path, cache: pathlib.Path, overrides: dict[str, int]):
    self.folder, self.workdir, self.log = folder, folder / 'run', folder / 'log.txt'
    folder.mkdir(parents=True)
    self.command = [
      sys.executable,
      '-m',
      'glora_jax.main',
      '--config',
      str(ROOT / 'configs' / 'quickstart.py'),
      '--workdir',
      str(self.workdir),
      f'--config.data.dir={folder / "tfds"}',
      *(f'--config.{name}={value}' for name, value in overrides.items()),
    ]
    self.environment = {
      **os.environ,
      'JAX_COMPILATION_CACHE_DIR': str(cache),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }

  def start(self, signal_number: int | None = None, after: float = 0.0) -> int:
    """One start; with a signal number it is sent that after so many seconds. Returns the exit code."""
    with open(self.log, 'a') as log:
      process = subprocess.Popen(
        self.command, stdout=subprocess.DEVNULL, stderr=log, cwd=ROOT, env=self.environment
      )
      if signal_number is not None:
        try:
          return process.wait(after)
        except subprocess.TimeoutExpired:
          process.send_signal(signal_number)
      return process.wait()

  def stage(self) -> str:
    """That the last start was in."""
    begun = re.findall(r'^(\w+): (begins|done)', self.log.read_text(errors='replace'), re.M)
    return (
      'preparing'
      if not begun
      else begun[-1][0]
      if begun[-1][1] == 'begins'
      else f'after {begun[-1][0]}'
    )

  def left(self) -> dict[str, bytes]:
    """All that must be identical, by name."""
    with open(self.workdir / 'result.json') as file:
      result = {name: value for name, value in json.load(file).items() if name != 'seconds'}
    names = [
      'adapter.safetensors',
      'metrics.jsonl',
      *(f'folded/{path.name}' for path in (self.workdir / 'folded').iterdir()),
    ]
    return {
      'result.json': json.dumps(result, sort_keys=True).encode(),
      **{name: (self.workdir / name).read_bytes() for name in names},
    }


def difference(ours: dict[str, bytes], theirs: dict[str, bytes]) -> list[str]:
  return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def undisturbed(folder, cache, overrides) -> tuple[dict[str, bytes], float]:
  """What a whole run leaves, and its seconds."""
  begin, starts = time.perf_counter(), Starts(folder, cache, overrides)
  if code := starts.start():
    sys.exit(
      f'The undisturbed run ended with {code}:\n{starts.log.read_text(errors="replace")[-3000:]}'
    )
  seconds = time.perf_counter() - begin
  return starts.left(), seconds


def disturbed(folder, cache, overrides, rng, moment, duration, number) -> dict:
  """One run that is killed at a moment, in seconds, and resumed until it ends; what happened, as JSON types."""
  first = signal.SIGTERM if number % 5 == 4 else signal.SIGKILL
  shutil.rmtree(folder, ignore_errors=True)
  starts, kills = Starts(folder, cache, overrides), []
  planned = [(first, moment)] + [
    (signal.SIGKILL, rng.uniform(0.2, 0.9) * max(duration - moment, 0.3 * duration))
  ] * (number % 4 == 3)
  code = None
  for kind, after in planned:
    code = starts.start(kind, after)
    if code == ENDED:
      break
    kills.append(
      f'{signal.Signals(kind).name} at {after:.1f} s, {starts.stage()}, exit code {code}'
    )
    if code not in ((-kind, SAVED) if kind == signal.SIGTERM else (-kind,)):
      break
  else:
    code = starts.start()
  return {'kills': kills, 'code': code, 'starts': starts}


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--quick', action='store_true', help='6 kills of a shortened quickstart')
  parser.add_argument('--kills', type=int, help='20, or 6 with --quick')
  parser.add_argument('--seed', type=int, default=0, help='of the moments')
  parser.add_argument(
    '--folder', help='for the runs, kept; a temporary one by default, which is removed'
  )
  arguments = parser.parse_args()
  number, overrides = (
    arguments.kills or (6 if arguments.quick else 20),
    SHORT if arguments.quick else {},
  )
  rng = random.Random(arguments.seed)
  folder = pathlib.Path(arguments.folder or tempfile.mkdtemp(prefix='kill_and_resume_')).resolve()
  cache = folder / 'xla'

  whole, cold = undisturbed(folder / 'cold', cache, overrides)
  again, duration = undisturbed(folder / 'warm', cache, overrides)
  print(
    f'undisturbed: {cold:.1f} s, without compiling {duration:.1f} s; the two differ in: {", ".join(difference(whole, again)) or "nothing"}'
  )
  print(f'{"":4} {"identical":10} what was done', flush=True)
  identical, done = 0, []
  for n in range(number):
    moment = (n + rng.random()) / number * duration
    for _ in range(5):  # a run that was faster than the clock is killed earlier
      outcome = disturbed(folder / f'kill{n}', cache, overrides, rng, moment, duration, n)
      if outcome['kills']:
        break
      moment *= 0.9
    starts = outcome.pop('starts')
    if outcome['code'] == ENDED and outcome['kills']:
      changed = difference(whole, starts.left())
      said = f'differs in {", ".join(changed)}' if changed else ''
    else:
      said = (
        f'ended with {outcome["code"]}: {starts.log.read_text(errors="replace").strip()[-600:]}'
      )
    identical += not said
    done.append(outcome['kills'])
    print(
      f'{n:4} {"no" if said else "yes":10} {"; then ".join(outcome["kills"])} {said}', flush=True
    )
    if not said and not arguments.folder:
      shutil.rmtree(starts.folder)
  print(f'{identical} of {number} identical')
  if not arguments.folder and identical == number:
    shutil.rmtree(folder)
  print(
    json.dumps(
      {
        'benchmark': 'kill_and_resume',
        'machine': machine.describe(),
        'quick': arguments.quick,
        'seed': arguments.seed,
        'seconds': round(duration, 1),
        'undisturbed_runs_equal': not difference(whole, again),
        'runs': number,
        'identical': identical,
        'kills': done,
      }
    )
  )
  sys.exit(identical != number)


if __name__ == '__main__':
  main()
