"""Forty mutants of the code that computes results, and which of them the fast tests kill.

  python -m benchmarks.mutants [--rooms data nnx] [--ids data-1] [--folder runs/mutants] [--record]

Copies the tree, runs `python -m pytest -x -q tests/ROOM` there without a mutant, which must pass,
and once for each of the room's five in `tests/golden/mutants.json`. A mutant goes where its lines
`before` stand exactly once in `glora_jax/`, in whatever file; else it is "not found", to be
translated by hand. It is killed where a test fails or the time is over. Answers are kept in
`--folder`, where an interrupted run goes on. A kill is lost where the list has one; `--record`
writes the answers into the list.

The list was drawn by `random.Random(43)`, five in each room, from the `files` that it names, by
this file as of commit 75a7c68. Each mutant was looked at by hand; those that change nothing stand
under `skipped` with the reason, and the next one was drawn.
"""

import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from benchmarks.machinery.measuring import make_parser, print_result, print_table
from glora_jax.files import read_json, write_json

ROOT = pathlib.Path(__file__).parent.parent
LIST = ROOT / 'tests' / 'golden' / 'mutants.json'
NUMBER, SECONDS = 5, 600  # of mutants in a room, and of the tests of one


def read_texts(tree: pathlib.Path, folder: str = 'glora_jax') -> dict[str, str]:
  """The modules of a folder, by their paths."""
  paths = sorted((tree / folder).rglob('*.py'))
  return {str(path.relative_to(tree)): path.read_text() for path in paths}


def mutate(texts: dict[str, str], mutant: dict[str, Any]) -> dict[str, str]:
  """The text of the changed file by its path; none where the lines do not stand exactly once."""
  old, new = ('\n'.join(['', *mutant[name], '']) for name in ('before', 'after'))
  found = {path: f'\n{text}' for path, text in texts.items() if old in f'\n{text}'}
  if sum(text.count(old) for text in found.values()) != 1:
    return {}
  return {path: text.replace(old, new)[1:] for path, text in found.items()}


class Tests:
  """The tests, in a copy of the tree; answers are kept in the same folder, for this very code."""

  def __init__(self, folder: pathlib.Path, workers: int):
    self.tree, self.file, self.workers = folder / 'tree', folder / 'answers.json', workers
    code = repr([read_texts(ROOT, name) for name in ('glora_jax', 'tests')])
    self.answers = {'code': hashlib.sha256(code.encode()).hexdigest()}
    if self.file.exists() and self.answers.items() <= (kept := read_json(self.file)).items():
      self.answers = kept
    shutil.rmtree(self.tree, ignore_errors=True)
    listed = ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard']
    for name in subprocess.check_output(listed, cwd=ROOT, text=True).split('\0'):
      if (ROOT / name).is_file():
        (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, self.tree / name)
    # Else an editable install would find the configs of the tree that was copied.
    (self.tree / 'glora_jax' / 'configs').symlink_to('../configs')

  def answer(self, name: str, room: str, changed: Mapping[str, str]) -> dict[str, Any]:
    """Whether tests of a room fail with changed files, the first that does, and the seconds."""
    if name not in self.answers:
      for path, text in changed.items():
        (self.tree / path).write_text(text)
        # A time of its own, by which Python knows that bytecode is of another mutant.
        os.utime(self.tree / path, (len(self.answers),) * 2)
      start = time.perf_counter()
      words = ['-s', 'KILL', str(SECONDS), sys.executable, '-m', 'pytest', '-x', '-q', '-rfE']
      ended = subprocess.run(
        ['timeout', *words, '-n', str(self.workers), f'tests/{room}'],  # all that they start, too
        cwd=self.tree,
        env={**os.environ, 'PYTHONPATH': str(self.tree)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
      )
      seconds, killed = round(time.perf_counter() - start, 1), ended.returncode != 0
      failed = re.search(r'^(?:FAILED|ERROR) (.+?)(?: - .*)?$', ended.stdout, re.MULTILINE)
      by = failed.group(1) if failed else f'exit code {ended.returncode} after {seconds} s'
      found = {'killed': killed, 'by': by if killed else None, 'seconds': seconds}
      self.answers[name] = found
      for path in changed:
        shutil.copy(ROOT / path, self.tree / path)
      write_json(self.file, self.answers)
    return self.answers[name]


def run(tests: Tests, mutant: dict[str, Any], texts: dict[str, str]) -> tuple[str, dict[str, Any]]:
  """What becomes of a mutant, in words, and the answer for the list."""
  changed = mutate(texts, mutant)
  if not changed:
    return 'not found', {}
  if tests.answer(mutant['room'], mutant['room'], {})['killed']:
    return 'its room fails', {}
  answer = tests.answer(mutant['id'], mutant['room'], changed)
  return 'killed' if answer['killed'] else 'LOST' if mutant['killed'] else 'survived', answer


def main() -> None:
  """Runs and prints."""
  listed = read_json(LIST)
  parser = make_parser(__doc__, 'the first mutant of each room')
  parser.add_argument('--rooms', nargs='+', choices=listed['files'], default=listed['files'])
  parser.add_argument('--ids', nargs='+', help='of single mutants, ROOM-NUMBER')
  parser.add_argument('--folder', default='runs/mutants', help='for the copy and the answers')
  parser.add_argument('--workers', type=int, default=0, help='of pytest')
  parser.add_argument('--record', action='store_true', help='write the answers into the list')
  arguments = parser.parse_args()
  tests = Tests(pathlib.Path(arguments.folder).resolve(), arguments.workers)
  ids = arguments.ids or [mutant['id'] for mutant in listed['mutants']]
  chosen = [m for m in listed['mutants'] if m['room'] in arguments.rooms and m['id'] in ids]
  texts, rows = read_texts(tests.tree), []
  for mutant in tqdm(chosen[:: NUMBER if arguments.quick else 1], desc='mutants'):
    says, answer = run(tests, mutant, texts)
    rows.append([mutant['id'], mutant['change'], says, answer.get('seconds'), answer.get('by')])
    if arguments.record:
      mutant |= answer
      write_json(LIST, listed)
  titles = ('mutant', 'change', 'answer', 'seconds', 'first test that fails')
  print_table(dict.fromkeys(titles, '.1f'), rows)
  found = {says: [row[0] for row in rows if row[2] == says] for _, _, says, *_ in rows}
  print_result('mutants', {**found, 'rooms': {x: tests.answers.get(x) for x in arguments.rooms}})


if __name__ == '__main__':
  main()
