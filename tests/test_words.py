"""Public docstrings, messages and documentation use none of the patterns in `gone_words.txt`."""

import ast
import json
import re
from typing import NamedTuple

import pytest
from places import ROOT

PACKAGE = ROOT / 'glora_jax'
CODE = sorted(PACKAGE.rglob('*.py'))
PAGES = [ROOT / f'{name}.md' for name in ('README', 'CONTRIBUTING', 'SECURITY', 'CHANGELOG')]
BUILT = ('docs/reference/config.md', 'docs/notebooks/', 'docs/_build/')  # by docs/conf.py
PAGES += [
  page
  for page in sorted((ROOT / 'docs').rglob('*.md'))
  if not str(page.relative_to(ROOT)).startswith(BUILT)
]
NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))
LOGGERS = ('log', 'logging', 'logger', 'warnings')

# A pattern a line; a comment follows after two spaces and #.
LINES = (ROOT / 'tests' / 'gone_words.txt').read_text().splitlines()
PATTERNS = [line.split('  #')[0].strip() for line in LINES if line[:1] not in ('', '#')]
# A space may be the end of a line.
PATTERNS = {text: re.compile(text.replace(' ', r'\s+'), re.MULTILINE) for text in PATTERNS}


class Text(NamedTuple):
  """Words that a user reads, and the line of a file where they start."""

  line: int
  words: str


def underscores(match):
  """As many underscores as the code has letters; the lines stay."""
  return re.sub(r'[^\n]', '_', match[0])


def without_code(text):
  """The text with underscores for fenced and inline code, doctests, and addresses."""
  code = r'^[ ]*(`{3,}|~{3,}).*?^[ ]*\1[ ]*$|^[ ]*(?:>>>|\.\.\. ).*$|`[^`]+`|\]\([^)\s]*\)'
  return re.sub(code, underscores, text, flags=re.DOTALL | re.MULTILINE)


def public_names():
  """The names in `__init__.pyi` and in the `__all__` of public modules."""
  names = set(re.findall(r'import \w+ as (\w+)', (PACKAGE / '__init__.pyi').read_text()))
  for path in (PACKAGE / 'nnx' / '__init__.py', PACKAGE / 'peft' / '__init__.py', *CODE):
    for listed in re.findall(r'^__all__ = \[([^\]]*)\]$', path.read_text(), re.MULTILINE):
      names.update(re.findall(r"'(\w+)'", listed))
  reference = (ROOT / 'docs' / 'reference' / 'api.md').read_text()
  return names.union(re.findall(r'::.*\.(\w+)', reference))


def docstring(node):
  """The docstring of a module, class or function, or nothing."""
  if not ast.get_docstring(node):
    return
  constant = node.body[0].value
  yield Text(constant.lineno, without_code(constant.value))


def docstrings(tree, public):
  """Those of public classes, their public methods, and public functions of a module."""
  for node in tree.body:
    if getattr(node, 'name', None) in public:
      yield from docstring(node)
      for member in node.body if isinstance(node, ast.ClassDef) else ():
        name = getattr(member, 'name', '_')
        if isinstance(member, ast.FunctionDef) and (name[0] != '_' or name == '__call__'):
          yield from docstring(member)


def is_message(node):
  """Whether a node of the syntax tree raises, warns or logs."""
  if isinstance(node, ast.Raise):
    return True
  function = node.func if isinstance(node, ast.Call) else None
  return isinstance(function, ast.Attribute) and getattr(function.value, 'id', '') in LOGGERS


def messages(tree):
  """The sentences in what is raised, warned of and logged, with … for values."""
  for node in filter(is_message, ast.walk(tree)):
    inner = set()
    for part in ast.walk(node):
      if isinstance(part, ast.JoinedStr):
        inner.update(map(id, part.values))
        words = ''.join(
          getattr(value, 'value', '') if isinstance(value, ast.Constant) else '…'
          for value in part.values
        )
        yield Text(part.lineno, words)
      elif isinstance(part, ast.Constant) and isinstance(part.value, str):
        if id(part) not in inner:
          yield Text(part.lineno, part.value)


def code_texts(path):
  tree = ast.parse(path.read_text())
  yield from docstrings(tree, PUBLIC)
  yield from messages(tree)


def page_texts(path):
  yield Text(1, without_code(path.read_text()))


def notebook_texts(path):
  """The cells of Markdown; the line is that of the cell in the file."""
  text = path.read_text()
  for cell in json.loads(text)['cells']:
    if cell['cell_type'] == 'markdown':
      first = json.dumps(cell['source'][0], ensure_ascii=False) if cell['source'] else ''
      line = text[: max(text.find(first), 0)].count('\n') + 1
      yield Text(line, without_code(''.join(cell['source'])))


def sentence(words, match):
  """The sentence, or the paragraph or line of a table, that a match is in."""
  start = max(words.rfind(end, 0, match.start()) for end in ('. ', '.\n', '\n\n', '|\n'))
  ends = re.compile(r'[.:?!](?=\s)|\n\n|\|\n').search(words, match.end())
  return ' '.join(words[start + 1 : ends.end() if ends else None].split())


def findings(path, texts):
  """One line for each pattern that a file has: where, the sentence, the pattern."""
  for line, words in texts:
    for text, pattern in PATTERNS.items():
      for match in pattern.finditer(words):
        at = line + words[: match.start()].count('\n')
        where = f'{path.relative_to(ROOT)}:{at}'
        yield f'{where}: {sentence(words, match)}\n    {text}'


PUBLIC = public_names()


def check(path, texts):
  found = list(findings(path, texts))
  assert not found, '\n' + '\n'.join(found)


def name_of(path):
  return str(path.relative_to(ROOT))


@pytest.mark.parametrize('path', CODE, ids=name_of)
def test_public_docstrings_and_messages(path):
  check(path, code_texts(path))


@pytest.mark.parametrize('path', PAGES + NOTEBOOKS, ids=name_of)
def test_documentation(path):
  check(path, page_texts(path) if path.suffix == '.md' else notebook_texts(path))
