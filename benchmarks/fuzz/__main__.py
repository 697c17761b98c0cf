"""Tries wrong and hostile inputs on the library and its commands, and judges what comes of it.

  python -m benchmarks.fuzz [--cases 1000] [--seed 0] [--quick] [--case K] [--only STRATEGY ...]

Case K of a seed is the same wherever it runs; `--case K` tries it alone and prints all of it. A
case is good where it is `accepted`, with a finite result that is the same when it is done again,
survives its file and is what the documentation says, or where it is `refused` in one sentence that
this package raises, with the workdir as it was. All else fails: `traceback`, `hang`, `wrong`, and
`touched` where anything outside of the workdir has changed. What is given in place of an object of
this package (a Spec, an Adapted) is one; values, texts, arrays and files may be anything.

Every failure is printed, with how to try it again. `--quick` tries 200 cases that take
milliseconds each. Ctrl-C ends it with the counts so far. The last line is JSON; the exit code is 1
where a case failed.
"""

import argparse
import contextlib
import sys
import tempfile

from benchmarks.fuzz.oracle import GOOD, OUTCOMES
from benchmarks.fuzz.strategies import STRATEGIES
from benchmarks.fuzz.supervisor import Result, supervise
from benchmarks.machinery.output import make_parser, print_result, print_table

CASES, QUICK_CASES = 1000, 200


def parse_arguments() -> argparse.Namespace:
  """The command line."""
  parser = make_parser(__doc__ or '', f'{QUICK_CASES} cases that take milliseconds each')
  parser.add_argument('--cases', type=int, help=f'{CASES}, or {QUICK_CASES} with --quick')
  parser.add_argument('--first', type=int, default=0, help='number of the first case')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--case', type=int, metavar='K', help='try case K alone, and print it')
  parser.add_argument(
    '--only', nargs='+', choices=sorted(STRATEGIES), metavar='STRATEGY', help='some strategies'
  )
  return parser.parse_args()


def main() -> None:
  """Tries the cases, prints the counts, and ends with 1 where a case failed."""
  arguments = parse_arguments()
  number = arguments.cases or (QUICK_CASES if arguments.quick else CASES)
  numbers = range(arguments.first, arguments.first + number)
  if arguments.case is not None:
    numbers = range(arguments.case, arguments.case + 1)
  names = arguments.only or [
    name for name, strategy in STRATEGIES.items() if not (arguments.quick and strategy.is_slow)
  ]
  results = []
  temporary = tempfile.TemporaryDirectory(prefix='fuzz_', ignore_cleanup_errors=True)
  with temporary as root, contextlib.suppress(KeyboardInterrupt):
    for result in supervise(root, arguments.seed, numbers, names):
      results.append(result)
      if arguments.case is not None or result.outcome not in GOOD:
        print(_report(result, arguments), flush=True)
  counts = {name: dict.fromkeys(OUTCOMES, 0) for name in STRATEGIES if name in names}
  seconds = dict.fromkeys(counts, 0.0)
  for result in results:
    counts[result.strategy][result.outcome] += 1
    seconds[result.strategy] += result.seconds
  print_table(['strategy', *OUTCOMES, 'ms per case'], _rows(counts, seconds))
  values = {'cases': len(results), 'seed': arguments.seed, 'quick': arguments.quick}
  print_result('fuzz', {**values, 'outcomes': counts})
  sys.exit(any(result.outcome not in GOOD for result in results))


def _rows(counts: dict[str, dict[str, int]], seconds: dict[str, float]) -> list[list[str]]:
  total = {outcome: sum(row[outcome] for row in counts.values()) for outcome in OUTCOMES}
  rows = {**counts, 'all': total}
  seconds = {**seconds, 'all': sum(seconds.values())}
  return [
    [name, *map(str, row.values()), f'{1000 * seconds[name] / max(1, sum(row.values())):.0f}']
    for name, row in rows.items()
  ]


def _report(result: Result, arguments: argparse.Namespace) -> str:
  """A result with all that is known of it, and the command that tries it again."""
  options = ' --quick' if arguments.quick else ''
  options += f' --only {" ".join(arguments.only)}' if arguments.only else ''
  return (
    f'case {result.case} ({result.strategy}): {result.outcome}\n'
    f'  tried: {result.shown}\n'
    f'  {result.reason}\n'
    f'  again: python -m benchmarks.fuzz --seed {arguments.seed} --case {result.case}{options}'
  )


if __name__ == '__main__':
  main()
