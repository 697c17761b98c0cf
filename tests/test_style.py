"""What no linter checks of the code: functions three deep, long files."""

import ast

import pytest
from places import ROOT

FOLDERS = ('glora_jax', 'benchmarks', 'configs', 'tests')
FILES = sorted(
  path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob('*.py')
)

MOST_LINES = 600
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@pytest.fixture(scope='module')
def modules():
  """The syntax tree of every file, by its path."""
  return {path: ast.parse((ROOT / path).read_text()) for path in FILES}


def deep_functions(node, depth=0):
  """(name, line) of functions that stand in a function that stands in a function."""
  for child in ast.iter_child_nodes(node):
    is_function = isinstance(child, _FUNCTIONS)
    if is_function and depth >= 2:
      yield child.name, child.lineno
    yield from deep_functions(child, depth + is_function)


def test_functions_nest_one_deep_at_most(modules):
  deep = [
    f'{path}:{line} {name}' for path, tree in modules.items() for name, line in deep_functions(tree)
  ]
  assert not deep


def test_a_file_of_the_library_holds_one_idea():
  library = [path for path in FILES if path.parts[0] != 'tests']
  lengths = {str(path): len((ROOT / path).read_text().splitlines()) for path in library}
  assert not {path: length for path, length in lengths.items() if length > MOST_LINES}
