"""Forty mutants of the code that computes results, and which of them the fast tests kill.

  python -m benchmarks.mutants run [--rooms data nnx] [--ids data-1] [--folder runs/mutants]
  python -m benchmarks.mutants draw                          # tests/golden/mutants.json again

`run` copies the tree, runs `python -m pytest -x -q tests/ROOM` there without a mutant, which must
pass, and once for each of the room's five. A mutant goes where its lines `before` stand exactly
once in `glora_jax/`, in whatever file; else it is "not found", to be translated by hand. It is
killed where a test fails or the time is over. Answers are kept in `--folder`, where an interrupted
run goes on. A kill is lost where the list has one; `--record` writes the answers into the list.

`draw` takes five of the list's `files` in each room, an operator and a place in each, by
`random.Random(43)`: `<` to `<=`, `==` to `!=`, `+` to `-`, `*` to `+` and the like, integers and
indices and edges of slices plus one, True to False, `and` to `or`, `not` left out, two arguments
swapped, an argument by name left out. What nobody observes is no place: signatures, annotations,
decorators, f-strings, `raise` and an `if` of it alone, functions that check or show or will go
(`LEFT_OUT`), arguments of messages and speed (`SILENT`). The others were looked at by hand; those
that change nothing stand under `skipped` with the reason, and the next one was drawn.
"""

import ast
import hashlib
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tqdm import tqdm

from benchmarks.machinery.output import make_parser, print_result, print_table
from glora_jax.files import read_json, write_json

ROOT = pathlib.Path(__file__).parent.parent
LIST = ROOT / 'tests' / 'golden' / 'mutants.json'
NUMBER, SECONDS = 5, 600  # of mutants in a room, and of the tests of one
UNKNOWN = {'killed': None, 'by': None, 'seconds': None}
LEFT_OUT = re.compile(
  '_*(Guided|check|require|refuse|warn|info|show|describe|__(repr|str|hash|reduce)__|propose_guided|'
  '_changed|give_up|_offered|.*(absent|meaning|hardest))'
)
SILENT = re.compile(
  'chunk|batch_size|desc|disable|encoding|exist_ok|indent|maxsize|prevent_cse|progress|static_arg.*'
  '|strict|total|unit|unroll'
)
SIGNS = re.compile(r'\bnot\s+in\b|\bis\s+not\b|\b(in|is|and|or)\b|[-+*/%<>=!@]+')
_PAIRS = """< <=, <= <, > >=, >= >, == !=, != ==, in not_in, not_in in, is is_not, is_not is,
  and or, or and, + -, - +, * +, / *, // *, % *, ** *, @ +"""
SWAPS = {
  old.replace('_', ' '): new.replace('_', ' ') for old, new in map(str.split, _PAIRS.split(','))
}


def places(tree: ast.AST, function: str = '', role: str = 'constant') -> Iterator[tuple]:
  """(node, qualified name, what an integer there is) of all that counts in a file."""
  for child in ast.iter_child_nodes(tree):
    is_def = isinstance(child, ast.FunctionDef | ast.ClassDef)
    is_check = isinstance(child, ast.If) and isinstance(child.body[0], ast.Raise)
    is_unseen = isinstance(child, ast.arguments | ast.Raise | ast.JoinedStr | ast.Assert)
    is_silent = isinstance(child, ast.keyword) and SILENT.fullmatch(child.arg or '')
    asides = (getattr(tree, 'returns', 0), getattr(tree, 'annotation', 0))
    asides += tuple(getattr(tree, 'decorator_list', ()))
    if is_check or is_unseen or is_silent or child in asides:
      continue
    called = getattr(child, 'func', child)
    if LEFT_OUT.match(getattr(called, 'attr', None) or getattr(called, 'id', '')):
      continue
    if is_def and LEFT_OUT.match(child.name):
      continue
    name = f'{function}.{child.name}'.lstrip('.') if is_def else function
    at = 'constant' if isinstance(child, ast.Call) else role
    if isinstance(tree, ast.Subscript) and child is tree.slice:
      at = 'slice' if isinstance(child, ast.Slice) else 'index'
    if name and not isinstance(tree, ast.Module | ast.ClassDef):
      yield child, name, at
    yield from places(child, name, at)


class Source(NamedTuple):
  """A file's bytes, and where its lines begin."""

  code: bytes
  begins: list[int]

  def span(self, node: Any) -> tuple[int, int]:
    """Where a node's bytes are."""
    start, end = self.begins[node.lineno - 1], self.begins[node.end_lineno - 1]
    return start + node.col_offset, end + node.end_col_offset

  def changes(self, node: Any, role: str) -> Iterator[tuple[str, int, int, bytes]]:
    """(operator, start, end, new bytes) of the mutants of a node."""
    if isinstance(node, ast.Compare | ast.BinOp | ast.BoolOp):
      parts = [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)]
      start, end = self.span(parts[0])[1], self.span(parts[1])[0]
      sign = SIGNS.search(self.code[start:end].decode())
      if sign and sign.group() in SWAPS:
        new = sign.string[: sign.start()] + SWAPS[sign.group()] + sign.string[sign.end() :]
        yield f'{sign.group()} to {SWAPS[sign.group()]}', start, end, new.encode()
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
      is_bool = isinstance(node.value, bool)
      new = str(not node.value if is_bool else node.value + 1)
      yield f'{"bool" if is_bool else role} {node.value} to {new}', *self.span(node), new.encode()
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
      yield 'not left out', *self.span(node), self.code[slice(*self.span(node.operand))]
    elif isinstance(node, ast.Slice) and isinstance(node.upper, ast.Name | ast.Attribute):
      yield 'slice one longer', *[self.span(node.upper)[1]] * 2, b' + 1'
    elif isinstance(node, ast.Call):
      yield from self._changed_arguments(node)

  def _changed_arguments(self, node: ast.Call) -> Iterator[tuple[str, int, int, bytes]]:
    if len(node.args) > 1 and not any(isinstance(part, ast.Starred) for part in node.args[:2]):
      (start, middle), (after, end) = map(self.span, node.args[:2])
      new = self.code[after:end] + self.code[middle:after] + self.code[start:middle]
      yield 'arguments swapped', start, end, new
    for keyword in node.keywords:
      if keyword.arg and not SILENT.fullmatch(keyword.arg):
        start, end = self.span(keyword)
        comma = re.compile(rb'(,\s*)?').match(self.code, end)
        yield f'argument {keyword.arg} left out', start, comma.end() if comma else end, b''


def draw(known: dict[str, Any]) -> Iterator[dict[str, Any]]:
  """New mutants for a list, but for what it skips; answers stay with those that it had."""
  texts, had = read_texts(ROOT), [*known['skipped'], *known['mutants']]
  for room, files in known['files'].items():
    rng, left, count = random.Random(known['seed']), list(files), 0
    while count < NUMBER:
      file = rng.choice(left)
      code = texts[file].encode()
      source = Source(code, [0, *(match.end() for match in re.finditer(b'\n', code))])
      found = [
        (name, *change)
        for node, name, role in places(ast.parse(code))
        for change in source.changes(node, role)
      ]
      kind = rng.choice(sorted({change.split()[0] for _, change, *_ in found}))
      name, change, *edit = rng.choice([edit for edit in found if edit[1].split()[0] == kind])
      before, after = lines_of(texts, code, *edit)
      mutant = {'file': file, 'function': name, 'change': change, 'before': before, 'after': after}
      same = next((old for old in had if mutant.items() <= old.items()), {})
      if 'why' not in same:
        count += 1
        left.remove(file)
        yield UNKNOWN | same | {'id': f'{room}-{count}', 'room': room} | mutant


def read_texts(tree: pathlib.Path, folder: str = 'glora_jax') -> dict[str, str]:
  """The modules of a folder, by their paths."""
  paths = sorted((tree / folder).rglob('*.py'))
  return {str(path.relative_to(tree)): path.read_text() for path in paths}


def lines_of(texts: dict[str, str], source: bytes, start: int, end: int, new: bytes) -> tuple:
  """The changed lines before and after, with as many above as make them the only ones."""
  begin, until = start, source.index(b'\n', end)
  while True:
    begin = source.rfind(b'\n', 0, max(begin - 1, 0)) + 1
    before = source[begin:until].decode().split('\n')
    if begin == 0 or sum(count(text, before) for text in texts.values()) == 1:
      return before, (source[begin:start] + new + source[end:until]).decode().split('\n')


def count(text: str, lines: list[str]) -> int:
  """How often whole lines stand in a text."""
  return f'\n{text}'.count('\n'.join(['', *lines, '']))


def mutate(texts: dict[str, str], mutant: dict[str, Any]) -> dict[str, str]:
  """The text of the changed file by its path; none where the lines do not stand exactly once."""
  counts = {path: count(text, mutant['before']) for path, text in texts.items()}
  if sum(counts.values()) != 1:
    return {}
  path = max(counts, key=counts.__getitem__)
  old, new = ('\n'.join(['', *mutant[name], '']) for name in ('before', 'after'))
  return {path: f'\n{texts[path]}'.replace(old, new)[1:]}


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
      self.answers[name] = self._run(room)
      for path in changed:
        shutil.copy(ROOT / path, self.tree / path)
      write_json(self.file, self.answers)
    return self.answers[name]

  def _run(self, room: str) -> dict[str, Any]:
    command = f'-m pytest -x -q -rfE -n {self.workers} tests/{room}'.split()
    limit = ['timeout', '-s', 'KILL', str(SECONDS)]  # of all that the tests start, too
    start = time.perf_counter()
    ended = subprocess.run(
      [*limit, sys.executable, *command],
      cwd=self.tree,
      env={**os.environ, 'PYTHONPATH': str(self.tree)},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    seconds, killed = round(time.perf_counter() - start, 1), ended.returncode != 0
    failed = re.search(r'^(?:FAILED|ERROR) (.+?)(?: - .*)?$', ended.stdout, re.MULTILINE)
    by = failed.group(1) if failed else f'exit code {ended.returncode} after {seconds} s'
    return {'killed': killed, 'by': by if killed else None, 'seconds': seconds}


def run(tests: Tests, mutant: dict[str, Any], texts: dict[str, str]) -> tuple[str, dict[str, Any]]:
  """What becomes of a mutant, in words, and the answer for the list."""
  changed = mutate(texts, mutant)
  if not changed:
    return 'not found', {}
  if tests.answer(mutant['room'], mutant['room'], {})['killed']:
    return 'its room fails', {}
  answer = tests.answer(mutant['id'], mutant['room'], changed)
  says = 'killed' if answer['killed'] else 'LOST' if mutant['killed'] else 'survived'
  return says, answer


def main() -> None:
  """Draws, or runs and prints."""
  listed = read_json(LIST)
  parser = make_parser(__doc__, 'the first mutant of each room')
  parser.add_argument('what', choices=('draw', 'run'))
  parser.add_argument('--rooms', nargs='+', choices=listed['files'], default=listed['files'])
  parser.add_argument('--ids', nargs='+', help='of single mutants, ROOM-NUMBER')
  parser.add_argument('--folder', default='runs/mutants', help='for the copy and the answers')
  parser.add_argument('--workers', type=int, default=0, help='of pytest')
  parser.add_argument('--record', action='store_true', help='write the answers into the list')
  arguments = parser.parse_args()
  if arguments.what == 'draw':
    return write_json(LIST, listed | {'mutants': list(draw(listed))})
  tests = Tests(pathlib.Path(arguments.folder).resolve(), arguments.workers)
  ids = arguments.ids or [mutant['id'] for mutant in listed['mutants']]
  chosen = [m for m in listed['mutants'] if m['room'] in arguments.rooms and m['id'] in ids]
  texts, rows = read_texts(tests.tree), []
  for mutant in tqdm(chosen[:: NUMBER if arguments.quick else 1], desc='mutants'):
    says, answer = run(tests, mutant, texts)
    ending = [str(answer.get(name) or '') for name in ('seconds', 'by')]
    rows.append([mutant['id'], mutant['change'], says, *ending])
    if arguments.record:
      mutant |= answer
      write_json(LIST, listed)
  print_table(('mutant', 'change', 'answer', 'seconds', 'first test that fails'), rows)
  found = {says: [row[0] for row in rows if row[2] == says] for _, _, says, *_ in rows}
  print_result('mutants', {**found, 'rooms': {x: tests.answers.get(x) for x in arguments.rooms}})


if __name__ == '__main__':
  main()
