"""Commands and config fields that README, documentation and configs print are accepted."""

import copy
import importlib
import re
import shlex

import pytest
from absl import flags
from places import CONFIGS, ROOT
from test_docs import PAGES, README
from tiny_runs import all_fields

from glora_jax import main
from glora_jax.vision.runs.config import check_config

FIELDS = {field.name for field in all_fields()}


@pytest.mark.parametrize(
  'page',
  [README, ROOT / 'benchmarks' / 'RESULTS.md', *PAGES],
  ids=lambda page: str(page.relative_to(ROOT)),
)
def test_a_printed_field_is_one_of_the_config(page):
  for field in re.findall(r'--config\.([a-z_.]*[a-z_])', page.read_text()):
    of_mapping = field.rpartition('.')[0]  # suite.rate, of suite.rate.lora
    assert not FIELDS.isdisjoint((field, of_mapping)), field


PRINTED = re.compile(r'python -m (glora_jax[\w.]*) ([^`|\n]*)')
FILLED = {'HOST:PORT': 'localhost:1234', '=N': '=2', '=I': '=0', '=S': '=0'}
FILLED['=$SLURM_ARRAY_TASK_ID'] = '=0'
FILLED['=wandb_log:log'] = '=json:dumps'  # a function that there is
LEFT_OPEN = re.compile(r'\b(FILE|FOLDER|NAME|DIR|IN|NAME_OR_FILE)\b|--help|--list')
PRINTING = [README, *PAGES, *CONFIGS.glob('*.py')]
TEXTS = [page.read_text().replace('\\\n', ' ') for page in PRINTING]  # commands of several lines
COMMANDS = sorted({found for text in TEXTS for found in PRINTED.findall(text)})
COMMANDS = [(module, rest) for module, rest in COMMANDS if not LEFT_OPEN.search(rest)]


@pytest.mark.parametrize('module, rest', COMMANDS, ids=' '.join)
def test_a_printed_command_is_taken(module, rest, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'photos').mkdir()
  (tmp_path / 'configs').symlink_to(ROOT / 'configs')
  for open_value, value in FILLED.items():
    rest = re.sub(rf'{re.escape(open_value)}\b', value, rest)  # not of =None
  words = shlex.split(rest, comments=True)
  if module != 'glora_jax.main':
    importlib.import_module(module)._parser().parse_args(words)
    return
  monkeypatch.setattr('sys.argv', ['main', *words])  # where ml_collections looks for overrides
  values = flags.FlagValues()
  main.define_config(values)
  for flag in vars(main).values():
    if isinstance(flag, flags.FlagHolder) and flag.name != 'config':
      values[flag.name] = copy.deepcopy(flags.FLAGS[flag.name])
  assert values(['main', *words]) == ['main']
  check_config(values.config)
