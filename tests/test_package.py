"""The package as a user meets it: what an import loads, which names it has, an example of each."""

import ast
import doctest
import pkgutil
import re
import subprocess
import sys
import tomllib

import flax.linen as nn
import jax.numpy as jnp
import pytest
from places import ROOT

import glora_jax

MODULES = {'nnx', 'peft', 'serve'}  # among the public names
# What adapting a model does not need.
LATER = ['orbax', 'scipy', 'tqdm', 'flax.nnx', 'huggingface_hub']

# They say so where these are missing.
OPTIONAL = {
  'hub.py': {'huggingface_hub'},
  'torch.py': {'torch', 'torchax'},
  'torch_environment.py': {'torch', 'torchax'},  # which torch.py imports
}
APPLICATION = ('glora_jax.vision', 'glora_jax.main', 'glora_jax.predict', 'glora_jax.convert')
LIBRARY = [
  path.relative_to(ROOT / 'glora_jax')
  for path in (ROOT / 'glora_jax').rglob('*.py')
  if not '.'.join(path.relative_to(ROOT).with_suffix('').parts).startswith(APPLICATION)
]


def imports(path):
  """The names of all modules that a file imports, and of what it imports from them."""
  for node in ast.walk(ast.parse((ROOT / 'glora_jax' / path).read_text())):
    if isinstance(node, ast.ImportFrom):
      yield from (f'{node.module}.{alias.name}' for alias in node.names)
    elif isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)


@pytest.mark.parametrize('path', LIBRARY, ids=str)
def test_the_library_imports_itself_and_its_requirements_alone(path):
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  required = {re.match(r'\w+', line)[0] for line in project['dependencies']}
  required |= {'glora_jax', 'numpy'} | OPTIONAL.get(path.name, set())  # numpy comes with jax
  names = [*imports(path)]
  assert {name.partition('.')[0] for name in names} <= required | sys.stdlib_module_names
  assert not [name for name in names if name.startswith(APPLICATION)]
  if path.name not in OPTIONAL:
    for name in names:  # in functions, too: `.ci/run` does this with the library alone installed
      pkgutil.resolve_name(name)


def run(code):
  """What a fresh process prints."""
  return subprocess.run(
    [sys.executable, '-c', code], check=True, capture_output=True, text=True
  ).stdout


def test_the_import_loads_nothing_and_adapting_what_it_needs():
  printed = run(
    'import sys, glora_jax; print(*sys.modules); glora_jax.adapt; print(*sys.modules);'
    'print(*dir(glora_jax))'
  )
  at_once, at_first_use, listed = map(str.split, printed.splitlines())
  assert not {'jax', 'flax', 'numpy'} & {*at_once}
  assert 'glora_jax.method.adapt' in at_first_use
  assert not {*LATER} & {*at_first_use}
  assert sorted(glora_jax.__all__) == listed


def test_a_name_that_is_not_there_is_an_attribute_error():
  with pytest.raises(AttributeError, match="module 'glora_jax' has no attribute 'adpat'"):
    glora_jax.adpat  # noqa: B018


def test_an_adapted_model_shows_what_users_call():
  adapted = glora_jax.adapt(nn.Dense(3), jnp.ones((1, 4)))
  settings = {'model', 'spec', 'places', 'mesh', 'genome'}
  methods = {'fix', 'init', 'apply', 'fold', 'split', 'join'}
  figures = {'summary', 'coverage', 'count_params', 'full_precision'}
  assert {name for name in dir(adapted) if name[0] != '_'} == settings | methods | figures


@pytest.mark.parametrize('name', sorted(set(glora_jax.__all__) - MODULES))
def test_every_public_name_has_an_example_that_runs(name):
  examples = doctest.DocTestFinder(recurse=False).find(getattr(glora_jax, name), name)
  lines = [example for found in examples for example in found.examples]
  assert lines
  assert not any(doctest.SKIP in example.options for example in lines)
