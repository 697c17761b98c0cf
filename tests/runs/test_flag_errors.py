"""Wrong command lines and config files: one sentence with the value, what was expected, what to do.

In this process: `test_command_line` starts the command itself.
"""

import sys

import pytest
from absl import flags
from places import ROOT

from glora_jax.runs import command_line
from glora_jax.runs.terminal import is_mistake, sentence

QUICKSTART = f'--config={ROOT / "configs/quickstart.py"}'


def read_config(words):
  command_line._parse_flags(words)
  return command_line._given_config()


@pytest.fixture
def parse(monkeypatch):
  """A function that gives the config of a command line."""

  def forget():
    for name in [name for name in flags.FLAGS if name.startswith('config.')]:
      delattr(flags.FLAGS, name)
    flags.FLAGS['config'].value = None
    flags.FLAGS.unparse_flags()
    sys.modules.pop('config_config', None)

  def parse_anew(*words):
    forget()
    monkeypatch.setattr(sys, 'argv', ['main', *words])
    return read_config(sys.argv)

  yield parse_anew
  forget()


@pytest.fixture
def refusal(parse):
  """A function that parses a command line, and returns the sentence with which that ends."""

  def refuse(*words):
    with pytest.raises((SystemExit, ValueError, OSError)) as caught:
      parse(*words)
    return str(caught.value)

  return refuse


def test_none_unsets_a_field_and_other_values_are_read_as_before(parse):
  names = ('budget', 'data.cache', 'model.image_size')
  config = parse(QUICKSTART, *(f'--config.{name}=None' for name in names))
  assert (config.budget, config.data.cache, config.model.image_size) == (None, None, None)
  values = ('1000', 'None/', '32')
  pairs = zip(names, values, strict=True)
  config = parse(QUICKSTART, *(f'--config.{name}={value}' for name, value in pairs))
  assert (config.budget, config.data.cache, config.model.image_size) == (1000, 'None/', 32)


@pytest.mark.parametrize(
  'words, expected',
  [
    (
      [],
      'A config is needed; give --config NAME_OR_FILE, --config quickstart for instance.',
    ),
    (['--config'], 'error: Missing value for flag --config'),
    (['--config='], 'error: There is no config file without a name'),
    (
      ['--config=configs'],
      'error: There is no config file configs; give the path of one, or a name',
    ),
    (
      [QUICKSTART, '--config.bugdet=1'],
      "error: The config has no field 'bugdet'. --help_config lists all of them.",
    ),
    ([QUICKSTART, '--config.zzzz=1'], "error: The config has no field 'zzzz'. --help_config lists"),
    (
      [QUICKSTART, '--config.budget=10k'],
      'error: --config.budget=10k must be a number, or None: most trained parameters, head not cou',
    ),
    (
      [QUICKSTART, '--config.seed=1.5'],
      'error: --config.seed=1.5 must be a whole number, at least -2147483648 and at most 4294967',
    ),
    (
      [QUICKSTART, '--config.presets=("a",'],
      'error: --config.presets=("a", must be a tuple of texts: baselines beside the linear probe',
    ),
    (
      [QUICKSTART, '--config.supernet=3'],
      'error: --config.supernet=3: supernet is a section; give its fields, --config.supernet.FIEL',
    ),
    ([QUICKSTART, '--zzzz=1'], "error: Unknown command line flag 'zzzz' (--help shows all flags,"),
    (['--wrkdir=x', QUICKSTART], "error: Unknown command line flag 'wrkdir'"),
    ([f'{QUICKSTART}:x'], "error: 'x' behind the config's name is unknown; it takes tiny=VALUE."),
    ([f'{QUICKSTART}:tiny=1'], "error: 'tiny=1' in the config's arguments: tiny is True or False."),
    ([f'--config={ROOT}/configs/own.py:a,b'], "error: 'b' in the config's arguments is unknown; N"),
    (
      [f'--config={ROOT}/configs/own.py:beans,rank=two'],
      "error: 'rank=two' in the config's arguments: rank is of type int.",
    ),
    ([f'--config={ROOT}/configs/own.py:beans,rank=1000000000'], 'error: rank=1000000000 must be'),
    ([f'--config={ROOT}/configs/own.py:a,rank=1,rank=2'], ': rank is there twice; give it once.'),
    ([f'--config={ROOT}/configs/own.py:no/'], "There is no folder 'no/'; configs/own.py:WHAT ta"),
    ([f'--config={ROOT}/configs/own.py:no/', '--config.seed=1'], "There is no folder 'no/'"),
    ([QUICKSTART, QUICKSTART], 'error: --config is there 2 times'),
  ],
)
def test_a_wrong_command_line_is_one_sentence(words, expected, refusal):
  text = refusal(*words)
  assert expected in text
  assert '\n' not in text
  assert '\\n' not in text


@pytest.mark.parametrize(
  'program, expected',
  [
    ('def f(:', ', line 1, is no Python (invalid syntax).'),
    (
      '\n\nimport no_such_package',
      "wrong.py, line 3, fails with ModuleNotFoundError (No module named 'no_such_package').",
    ),
    ('def get_config():\n  return undefined', ', line 2, fails with NameError (name '),
    ('def get_config():\n  raise ValueError("no luck")', 'error: no luck'),
    ('x = 1', 'has no function get_config, which returns the config.'),
    ('get_config = 3', 'has no function get_config, which returns the config.'),
    ('def get_config():\n  return {"a": 1}', 'returned a dict; it must return the config that'),
    ('def get_config():\n  pass', 'returned a NoneType; it must return the config that'),
    ('import sys\nsys.exit(0)', 'wrong.py, line 2, fails with SystemExit (0).'),
    (
      'from ml_collections import FrozenConfigDict as F\ndef get_config():\n  return F({})',
      'wrong.py returned a FrozenConfigDict; it must return the config that',
    ),
    ('\x00', 'wrong.py is no Python (source code string cannot contain null bytes).'),
  ],
)
def test_a_wrong_config_file_is_one_sentence(program, expected, refusal, tmp_path):
  path = tmp_path / 'wrong.py'
  path.write_text(program)
  text = refusal(f'--config={path}')
  assert expected in text
  assert '\n' not in text
  assert 'Traceback' not in text


@pytest.mark.parametrize('returned', ['{}', 'None', '3'])
def test_a_field_of_what_is_no_config_is_one_sentence(returned, refusal, tmp_path):
  path = tmp_path / 'wrong.py'
  path.write_text(f'def get_config():\n  return {returned}')
  assert 'wrong.py returned ' in refusal(f'--config={path}', '--config.model.weights=x')


def test_arguments_for_a_config_without_are_one_sentence(refusal, tmp_path):
  path = tmp_path / 'plain.py'
  path.write_text('def get_config():\n  pass')
  assert 'takes no such arguments behind its name (get_config() takes' in refusal(
    f'--config={path}:x'
  )


def test_a_fault_of_this_package_keeps_its_traceback(refusal, tmp_path, monkeypatch):
  def fail(argv):
    raise ZeroDivisionError

  with monkeypatch.context() as broken:
    broken.setattr(flags.FlagValues, '__call__', lambda self, argv: fail(argv))
    with pytest.raises(ZeroDivisionError):
      command_line._parse_flags(['main'])


def test_a_path_with_a_comma_is_an_argument(monkeypatch, tmp_path):
  from glora_jax.runs.config import parse_arguments

  monkeypatch.chdir(tmp_path)
  (tmp_path / 'photos, 2026, best').mkdir()
  assert parse_arguments('photos, 2026, best,rank=3', {'rank': int}) == (
    'photos, 2026, best',
    {'rank': 3},
  )
  (tmp_path / 'rank=3').mkdir()
  assert parse_arguments('rank=3,rank=4', {'rank': int}) == ('rank=3', {'rank': 4})
  assert parse_arguments('rank=5', {'rank': int}) == ('', {'rank': 5})
  assert parse_arguments('photos', {'rank': int, 'budget': 4}) == (
    'photos',
    {'rank': None, 'budget': 4},
  )


def test_mistakes_have_a_sentence_without_a_number_or_a_page():
  class JaxRuntimeError(RuntimeError):
    """As JAX calls its own."""

  short = JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory.\nA page of details')
  assert is_mistake(short)
  assert not is_mistake(JaxRuntimeError('INTERNAL: a fault'))
  assert sentence(short).startswith('There is too little memory (RESOURCE_EXHAUSTED: Out of memory')
  lost = JaxRuntimeError(
    'UNKNOWN: Gloo all-reduce failed: [pair.cc:5] Connection closed by peer [::1]'
  )
  assert is_mistake(lost)
  assert sentence(lost).startswith('Another process of this run has ended (UNKNOWN: Gloo all-reduc')
  assert '\n' not in sentence(short)
  assert 'too little memory' in sentence(MemoryError('Unable to allocate 7 TiB'))
  refused = PermissionError(13, 'Permission denied', '/data/x')
  assert sentence(refused) == '/data/x cannot be read or written (Permission denied).'
