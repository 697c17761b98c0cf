"""The commands that README, documentation and configs print are commands that the programs take."""

import copy
import importlib
import re
import shlex

import pytest
from absl import flags
from ml_collections import config_flags
from places import ROOT

from glora_jax.runs import command_line, config_files, schema, terminal
from glora_jax.runs.config import RunSettings

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
PAGES = [page for page in PAGES if not {'_build', 'notebooks'} & {*page.parts}]
PAGES += sorted((ROOT / 'configs').glob('*.py'))
PRINTED = re.compile(r'python -m (glora_jax[\w.]*) ([^`|\n]*)')
FILLED = {'HOST:PORT': 'localhost:1234', '=N': '=2', '=I': '=0', '=S': '=0'}
LEFT_OPEN = re.compile(r'\b(FILE|FOLDER|NAME|DIR|IN|NAME_OR_FILE)\b|--help|--list')
WITH_CONFIG = ('glora_jax.main',)
TEXTS = [page.read_text().replace('\\\n', ' ') for page in PAGES]  # commands of several lines
COMMANDS = sorted({found for text in TEXTS for found in PRINTED.findall(text)})
COMMANDS = [(module, rest) for module, rest in COMMANDS if not LEFT_OPEN.search(rest)]


def parsed_config(words, monkeypatch):
  """The config of a command line, read as the commands read it."""
  monkeypatch.setattr('sys.argv', ['main', *words])  # where ml_collections looks for overrides
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=values)
  for name in {*terminal.own_flags()} - {'config'}:
    values[name] = copy.deepcopy(flags.FLAGS[name])
  assert values(config_files.with_paths(['main', *words])) == ['main']
  return values.config


def test_commands_are_found():
  assert len(COMMANDS) > 25
  assert {module for module, _ in COMMANDS} >= {'glora_jax.convert', 'glora_jax.predict'}


@pytest.mark.parametrize('module, rest', COMMANDS, ids=' '.join)
def test_a_printed_command_is_taken(module, rest, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'photos').mkdir()
  (tmp_path / 'configs').symlink_to(ROOT / 'configs')
  for open_value, value in FILLED.items():
    rest = re.sub(rf'{re.escape(open_value)}\b', value, rest)  # not of =None
  words = shlex.split(rest, comments=True)
  if module not in WITH_CONFIG:
    importlib.import_module(module)._parser().parse_args(words)
    return
  config = parsed_config(words, monkeypatch)
  schema.build(RunSettings, config.to_dict())


def test_flags_are_those_of_the_program(monkeypatch):
  words = ['--config', 'quickstart', '--open', '--plan', '--plan.compile']
  assert parsed_config(words, monkeypatch).get('job') == 'adapt'
  own = {*terminal.own_flags()} - {command_line.OPEN.name}
  monkeypatch.setattr(terminal, 'own_flags', lambda: own)
  with pytest.raises(flags.UnrecognizedFlagError, match='open'):
    parsed_config(words, monkeypatch)


def test_a_misspelt_field_would_be_found(monkeypatch):
  with pytest.raises(Exception, match='buget'):
    parsed_config(['--config', 'quickstart', '--config.buget=1'], monkeypatch)
