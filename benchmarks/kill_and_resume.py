"""Kills a command at random moments, resumes it, and compares with an undisturbed one.

  python -m benchmarks.kill_and_resume [--what gradient] [--quick] [--kills 20] [--seed 0]

`--what` is a `search`, that of configs/quickstart.py:search; the same with the structure of one
`gradient`; a `suite` of three few-shot tasks; a `grid` of four structures on one of them, of which
one chooses its learning rate; or the search in `two` processes, of which one is killed.

Two undisturbed runs come first: one with, one without compiling (the persistent compilation cache
is shared by all); they must be equal, and the second one's log is the clock. Every second kill
comes at a random moment of its share of that time, the others at one of a stage or of a run of a
suite, in turn, so that short ones such as the report have theirs. Most are kill -9, every fifth is
SIGTERM, every tenth kill -STOP for `--pause` seconds. Every fourth run is killed again by kill -9
while it resumes. Each run has its own workdir and TFDS folder, so that preparing the data is
interrupted, too.

Identical means: every `result.json` but for its seconds, and every byte of `folded/`,
`adapter.safetensors`, `genome.json`, `test_list.json` and `metrics.jsonl`, and of a suite
`table.csv` but for its seconds. `--quick` makes 6 kills of a shortened command. The last line is
JSON; the exit code is 1 if a run was not identical.
"""

import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence

from benchmarks.machinery.killable import ANSWERS, ENDED, KINDS, Contents, Kill, Killable
from benchmarks.machinery.measuring import make_parser, print_result

KILLS, QUICK_KILLS = 20, 6
QUICK_FIELDS = {
  'training.epochs': 5,
  'finetune.epochs': 2,
  'search.generations': 2,
  'search.population': 10,
  'search.mutations': 5,
  'search.crossovers': 5,
  'search.parents': 5,
  'checkpoint_epochs': 2,
}
TRIES, EARLIER = 5, 0.9  # a run that was faster than the clock is killed that much earlier
LAST_WORDS = 600  # characters of the log of a run that failed


def differences(expected: Contents, actual: Contents) -> list[str]:
  """Names of all that is not the same."""
  names = expected.keys() | actual.keys()
  return sorted(name for name in names if expected.get(name) != actual.get(name))


def run_undisturbed(job: Killable) -> tuple[Contents, list[float]]:
  """What a whole run leaves, and the seconds of its beginnings and of its end.

  Leaves the program if it fails.
  """
  start = time.perf_counter()
  code, _, begun = job.start()
  if code:
    sys.exit(f'The undisturbed run ended with {code}:\n{job.log[-5 * LAST_WORDS :]}')
  return job.contents(), [*begun, time.perf_counter() - start]


def plan_kills(
  number: int,
  total: int,
  clock: Sequence[float],
  rng: random.Random,
  pause: float,
  processes: int = 1,
) -> list[Kill]:
  """The kills of run `number` of `total`.

  Args:
    number: number of the run.
    total: number of runs.
    clock: seconds of the beginnings of an undisturbed run, and of its end.
    rng: source of the moments.
    pause: seconds of a kill -STOP.
    processes: number of processes, which are killed in turn.
  """
  kind = signal.SIGTERM if number % 5 == 4 else signal.SIGKILL
  if number % 10 == 7:
    kind = signal.SIGSTOP
  victim, seconds = number // 2 % processes, clock[-1]
  if number % 2:
    index = number // 2 * (len(clock) - 1) // (total // 2)
    lasts = clock[index + 1] - clock[index]
    first = Kill(kind, rng.random() * lasts, index + 1, victim, pause)
  else:
    moment = (number + 2 * rng.random()) / max(total, 2) * seconds
    first = Kill(kind, min(moment, seconds), 0, victim, pause)
  second = Kill(signal.SIGKILL, rng.uniform(0.1, 0.6) * seconds)
  return [first, second] if number % 4 == 3 else [first]


def run_disturbed(job: Killable, planned: list[Kill]) -> tuple[list[str], int]:
  """Kills a run from an empty folder as planned, and then resumes it until it ends.

  Where it was faster than its first kill it is tried again, with all kills earlier.

  Returns:
    A sentence for each kill that came in time, and the exit code of the last start.
  """
  kills, code = [], ENDED
  for _ in range(TRIES):
    shutil.rmtree(job.folder, ignore_errors=True)
    for kill in planned:
      code, was_killed, _ = job.start(kill)
      if was_killed:
        kills.append(f'{kill} ({job.place()}), exit code {code}')
      if code == ENDED or code not in ANSWERS[kill.signal]:
        break
    else:
      code = job.start().code
    if kills:
      break
    planned = [kill._replace(after=kill.after * EARLIER) for kill in planned]
  return kills, code


def main() -> None:
  """Runs, kills, compares and prints."""
  parser = make_parser(__doc__, f'{QUICK_KILLS} kills of a shortened command')
  parser.add_argument('--what', choices=KINDS, default='search', help='what is killed')
  parser.add_argument('--kills', type=int, help=f'{KILLS}, or {QUICK_KILLS} with --quick')
  parser.add_argument('--seed', type=int, default=0, help='of the moments')
  parser.add_argument('--pause', type=float, default=60.0, help='seconds of a kill -STOP')
  parser.add_argument(
    '--field', action='append', default=[], metavar='NAME=VALUE', help='of the config, repeatable'
  )
  parser.add_argument(
    '--folder', help='for the runs, kept; a temporary one by default, which is removed'
  )
  given = parser.parse_args()
  fields = dict(QUICK_FIELDS) if given.quick else {}
  fields |= dict(field.split('=', 1) for field in given.field)
  number = given.kills or (QUICK_KILLS if given.quick else KILLS)
  rng = random.Random(given.seed)
  folder = pathlib.Path(given.folder or tempfile.mkdtemp(prefix='kill_and_resume_')).resolve()

  def job(name: str) -> Killable:
    return Killable(given.what, folder / name, folder, fields)

  expected, cold = run_undisturbed(job('cold'))
  again, clock = run_undisturbed(job('warm'))
  changed = ', '.join(differences(expected, again))
  print(
    f'undisturbed: {cold[-1]:.1f} s, without compiling {clock[-1]:.1f} s; '
    f'{len(expected)} files, the two differ in: {changed or "nothing"}'
  )
  print(f'{"":4} {"identical":10} what was done', flush=True)
  identical, kills = 0, []
  for index in range(number):
    processes = 2 if given.what == 'two' else 1
    planned = plan_kills(index, number, clock, rng, given.pause, processes)
    killed = job(f'kill{index}')
    came, code = run_disturbed(killed, planned)
    if code == ENDED and came:
      changes = differences(expected, killed.contents())
      failure = f'differs in {", ".join(changes)}' if changes else ''
    else:
      failure = f'ended with {code}: {killed.log.strip()[-LAST_WORDS:]}'
    identical += not failure
    kills.append(came)
    answer = 'no' if failure else 'yes'
    print(f'{index:4} {answer:10} {"; then ".join(came)} {failure}', flush=True)
    if not failure and not given.folder:
      shutil.rmtree(killed.folder)
  print(f'{identical} of {number} identical')
  if not given.folder and identical == number:
    shutil.rmtree(folder)
  values = {
    'what': given.what,
    'quick': given.quick,
    'seed': given.seed,
    'seconds': clock[-1],
    'undisturbed_runs_equal': not changed,
    'runs': number,
    'identical': identical,
    'kills': kills,
  }
  print_result('kill_and_resume', values)
  sys.exit(identical != number)


if __name__ == '__main__':
  main()
