"""A process that tries cases one after the other, and says of each in a line how it ended."""

import faulthandler
import json
import logging
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence

from benchmarks.fuzz.oracle import Verdict, judge
from benchmarks.fuzz.place import Place
from benchmarks.fuzz.strategies import STRATEGIES, choose

LONGEST = 600.0  # seconds of a case in code that heeds no signal
MOST_KIBIBYTES = 3 * 2**20  # of memory, for programs that were compiled; another process goes on


def work(root: str, seed: int, numbers: Sequence[int], names: Sequence[str]) -> None:
  """Tries cases.

  Args:
    root: folder for all files.
    seed: seed of all cases.
    numbers: numbers of the cases.
    names: names of the strategies that they are from.
  """
  warnings.simplefilter('ignore')
  logging.disable(logging.CRITICAL)
  place = Place(root)
  tempfile.tempdir = place.path('temporary')
  os.chdir(place.path('here'))
  answers, sys.stdout = sys.stdout, sys.stderr  # nothing else gets between the lines
  for number in numbers:
    name, rng = choose(number, seed, list(names))
    place.clear()
    os.chdir(place.path('here'))
    faulthandler.dump_traceback_later(LONGEST, exit=True)
    start = time.perf_counter()
    try:
      case = STRATEGIES[name].make(rng, place)
      shown, verdict = case.shown, judge(case, place)
    except Exception:  # a fault of the fuzzer's own is no reason to try nothing else
      shown, verdict = '', Verdict('traceback', f'the fuzzer failed: {traceback.format_exc()}')
    faulthandler.cancel_dump_traceback_later()
    seconds = time.perf_counter() - start
    line = {'case': number, 'strategy': name, 'shown': shown, 'seconds': seconds}
    print(json.dumps({**line, **verdict._asdict()}), file=answers, flush=True)
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > MOST_KIBIBYTES:
      break
  answers.flush()
  os._exit(0)  # threads that hang are not waited for


if __name__ == '__main__':
  work(**json.loads(sys.argv[1]))
