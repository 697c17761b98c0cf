"""The mutants: each is in the tree once, and a run says which of them tests kill."""

import ast
import subprocess
import sys
from collections import Counter

import pytest

from benchmarks import mutants
from glora_jax.files import read_json, write_json

LIST = read_json(mutants.LIST)
MUTANTS = LIST['mutants']


@pytest.fixture(scope='module')
def texts():
  return mutants.read_texts(mutants.ROOT)


def test_there_are_five_mutants_in_each_room_and_each_has_an_id_of_its_own():
  assert Counter(mutant['room'] for mutant in MUTANTS) == dict.fromkeys(LIST['files'], 5)
  assert len({mutant['id'] for mutant in MUTANTS}) == 40


@pytest.mark.parametrize('mutant', MUTANTS, ids=lambda mutant: mutant['id'])
def test_a_mutant_is_found_once_and_changes_code(texts, mutant):
  [(path, changed)] = mutants.mutate(texts, mutant).items()
  assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(texts[path]))


@pytest.fixture
def project(tmp_path, monkeypatch):
  """A project with one function and one test, of which a list has three mutants."""
  tree = tmp_path / 'project'
  files = {
    'pyproject.toml': '[tool.pytest.ini_options]\n',
    'glora_jax/__init__.py': '',
    'glora_jax/data.py': 'def next_to(x):\n  return x + 1\n\ndef unused():\n  return 1\n',
    'tests/data/test_next.py': 'from glora_jax.data import next_to\n'
    'def test_next():\n  assert next_to(1) == 2\n',
    'configs/quickstart.json': '{}',
  }
  for name, text in files.items():
    (tree / name).parent.mkdir(parents=True, exist_ok=True)
    (tree / name).write_text(text)
  subprocess.run(['git', 'init', '-q'], cwd=tree, check=True)
  lines = {'x + 1': 'x - 1', '1': '2', 'x + 2': 'x - 2'}
  content = [
    {'id': f'data-{number}', 'room': 'data', 'change': '', 'killed': None}
    | {'before': [f'  return {before}'], 'after': [f'  return {after}']}
    for number, (before, after) in enumerate(lines.items(), 1)
  ]
  write_json(tree / 'list.json', {'files': {'data': []}, 'mutants': content})
  monkeypatch.setattr(mutants, 'ROOT', tree)
  monkeypatch.setattr(mutants, 'LIST', tree / 'list.json')
  monkeypatch.chdir(tmp_path)
  return tree


def test_a_run_says_what_is_killed_and_what_is_lost_and_goes_on(project, monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['mutants', '--record'])
  mutants.main()
  printed = capsys.readouterr().out
  assert '"killed": ["data-1"], "survived": ["data-2"], "not found": ["data-3"]' in printed
  recorded = read_json(project / 'list.json')['mutants']
  assert [mutant['killed'] for mutant in recorded] == [True, False, None]
  assert recorded[0]['by'] == 'tests/data/test_next.py::test_next'
  monkeypatch.setattr(mutants.Tests, '_run', None)  # answers are there already
  recorded[1]['killed'] = True
  write_json(project / 'list.json', {'files': {'data': []}, 'mutants': recorded})
  mutants.main()
  assert '"LOST": ["data-2"]' in capsys.readouterr().out
