"""How long a command takes until it trains, in several checkouts in turn.

  git worktree add /tmp/before COMMIT
  python -m benchmarks.start_up [--until trains] [--repeats 7] [--quick] /tmp/before .

Each start is the quickstart with no row beside its search, in a new workdir, with data prepared and
programs compiled by an earlier start of the same checkout. It is killed when its first stage
`begins`, which is when all is prepared and checked, or when it `trains`: the first steps are done.
Seconds of the wall, and seconds of all cores by the process (user and system), which other work
disturbs less. Differences are medians over the repeats of those to the first checkout within one
repeat. `--quick` makes one repeat. The last line is JSON.
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks.machinery.measuring import make_parser, print_result, print_table

MARKS = {'begins': rb': begins', 'trains': rb'images/s'}
_CHUNK = 65_536


def start(checkout: pathlib.Path, shared: pathlib.Path, mark: bytes) -> tuple[float, float]:
  """Starts the quickstart of a checkout in a new workdir, and kills it when its log has a mark.

  Args:
    checkout: folder with the package and its configs.
    shared: folder for data and compiled programs, kept from start to start.
    mark: regular expression.

  Returns:
    Seconds until it was killed, of the wall and of all cores.

  Raises:
    RuntimeError: it ended by itself.
  """
  with tempfile.TemporaryDirectory() as workdir:
    command = [sys.executable, '-m', 'glora_jax.main', '--config', 'configs/quickstart.py']
    command += ['--workdir', workdir, f'--config.data.dir={shared / "tfds"}', '--config.presets=()']
    environment = {
      **os.environ,
      'PYTHONPATH': os.pathsep.join([str(checkout), os.environ.get('PYTHONPATH', '')]),
      'JAX_COMPILATION_CACHE_DIR': str(shared / 'xla'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    }
    begin = time.perf_counter()
    process = subprocess.Popen(
      command, cwd=checkout, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    log = b''
    while not re.search(mark, log):
      chunk = os.read(process.stderr.fileno(), _CHUNK)
      if not chunk:
        process.wait()
        raise RuntimeError(f'{checkout} ended with {process.returncode}: {log.decode()}')
      log += chunk
    wall = time.perf_counter() - begin
    process.kill()
    process.stderr.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return wall, usage.ru_utime + usage.ru_stime


def main() -> None:
  """Starts all in turn, and prints."""
  parser = make_parser(__doc__, 'one repeat', repeats=7)
  parser.add_argument('--until', choices=MARKS, default='begins', help='when a start is killed')
  parser.add_argument('checkouts', nargs='+', type=pathlib.Path, help='folders')
  arguments = parser.parse_args()
  checkouts = [path.resolve() for path in arguments.checkouts]
  repeats = 1 if arguments.quick else arguments.repeats
  mark = MARKS[arguments.until]
  with tempfile.TemporaryDirectory() as temporary:
    folders = [pathlib.Path(temporary) / str(number) for number in range(len(checkouts))]
    pairs = list(zip(checkouts, folders, strict=True))
    for checkout, folder in pairs:
      start(checkout, folder, mark)
    starts = [[start(checkout, folder, mark) for checkout, folder in pairs] for _ in range(repeats)]
  found = np.array(starts)  # [repeat, checkout, wall or cores]
  medians = np.median(np.concatenate([found, found - found[:, :1]], axis=-1), axis=0)
  seconds = dict(zip(map(str, checkouts), medians.tolist(), strict=True))
  titles = dict.fromkeys(('', 'wall', 'cores', 'more wall', 'more cores'), '.2f')
  print_table(titles, [(name, *values) for name, values in seconds.items()])
  values = {'until': arguments.until, 'repeats': repeats, 'seconds': seconds}
  print_result('start_up', values)


if __name__ == '__main__':
  main()
