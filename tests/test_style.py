"""What no linter checks of the code's form: names that say nothing, functions within functions within functions, long files."""

import ast

import pytest
from conftest import ROOT

FOLDERS = ('glora_jax', 'benchmarks', 'configs', 'tests')
FILES = sorted(
  path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob('*.py')
)
LIBRARY = [path for path in FILES if path.parts[0] != 'tests']

# Words that stand for a thing without naming it. A field's term, or what the thing is, goes in their place.
BANNED = frozenset(
  'said of there this entry here fine some one both mine them takes begun such what it that those several'.split()
)
MOST_LINES = 400


def bound_names(tree):
  """(name, line) of everything that the code itself names: variables, arguments, functions, classes."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
      yield node.id, node.lineno
    elif isinstance(node, ast.arg):
      yield node.arg, node.lineno
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
      yield node.name, node.lineno
    elif isinstance(node, ast.alias) and node.asname:
      yield node.asname, node.lineno


def nested_functions(node, depth=0):
  """(name, line) of functions that stand in a function that stands in a function."""
  for child in ast.iter_child_nodes(node):
    is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
    if is_function and depth >= 2:
      yield child.name, child.lineno
    yield from nested_functions(child, depth + is_function)


def parse(path):
  return ast.parse((ROOT / path).read_text())


@pytest.mark.parametrize('path', FILES, ids=str)
def test_names_name_something(path):
  wrong = [f'{path}:{line} {name}' for name, line in bound_names(parse(path)) if name in BANNED]
  assert not wrong


@pytest.mark.parametrize('path', FILES, ids=str)
def test_functions_nest_one_deep_at_most(path):
  assert not [f'{path}:{line} {name}' for name, line in nested_functions(parse(path))]


@pytest.mark.parametrize('path', LIBRARY, ids=str)
def test_a_file_holds_one_idea(path):
  lines = len((ROOT / path).read_text().splitlines())
  assert lines <= MOST_LINES, f'{path} has {lines} lines; where is its second idea?'
