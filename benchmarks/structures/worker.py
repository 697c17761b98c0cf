"""A process that does jobs: reads one a line, and answers with a line of JSON for each."""

import contextlib
import json
import sys

from benchmarks.structures.jobs import Job
from benchmarks.structures.training import run


def main() -> None:
  """Answers until there are no more lines."""
  for line in sys.stdin:
    with contextlib.redirect_stdout(sys.stderr):
      result = run(Job(*json.loads(line)))
    print(json.dumps(result), flush=True)


if __name__ == '__main__':
  main()
