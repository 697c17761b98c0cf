"""Wrong command lines and config files: one sentence with the value, what was expected, what to do.

In this process; `test_unkillable` and others start the command itself.
"""

import dataclasses
import re
import sys

import numpy as np
import pytest
from absl import flags
from comparing import assert_refused
from flax.traverse_util import flatten_dict
from places import ROOT

from glora_jax import main
from glora_jax.checks import validate
from glora_jax.errors import UserError
from glora_jax.training.recipe import Recipe
from glora_jax.vision.runs.config import check_config, parse_arguments
from glora_jax.vision.runs.terminal import reported, user_errors

QUICKSTART = f'--config={ROOT / "configs/quickstart.py"}'


@pytest.fixture
def parse(monkeypatch):
  """A function that gives the config of a command line."""

  def forget():
    for name in [name for name in flags.FLAGS if name.startswith('config.')]:
      delattr(flags.FLAGS, name)
    flags.FLAGS['config'].value = None
    flags.FLAGS['config'].present = 0
    flags.FLAGS.unparse_flags()

  def parse_anew(*words):
    forget()
    monkeypatch.setattr(sys, 'argv', ['main', *words])
    main.parse_flags(sys.argv)
    return check_config(main.CONFIG.value)

  yield parse_anew
  forget()


@pytest.mark.parametrize(
  'fields, expected',
  [
    (('budget=None', 'model.image_size=32'), (None, 32)),
    (('budget=1e4', 'data.root=2024', 'data.cache=None/'), (10_000, '2024', 'None/')),
    (('suite.rate.lora=1e-3', 'presets=ssf', 'space.ranks=(1,2)'), (1e-3, ('ssf',), (1, 2))),
    (('presets=("ssf",)', 'presets=("hira", "full")', 'presets=("lora",)'), (('lora',),) * 3),
  ],
)
def test_a_text_is_read_as_the_type_of_its_field_and_the_last_one_counts(fields, expected, parse):
  config = parse(QUICKSTART, *(f'--config.{field}' for field in fields), '--noconfig.test')
  values = flatten_dict(dataclasses.asdict(config), sep='.')
  assert tuple(values[field.partition('=')[0]] for field in fields) == expected
  assert config.test is False


FILES = {
  'def f(:': ', line 1, fails: SyntaxError: invalid syntax.',
  '\n\nimport no_such_package': 'wrong.py, line 3, fails: ModuleNotFoundError',
  'def get_config():\n  raise ValueError("no luck")': 'error: no luck',
  'get_config = 3': "wrong.py fails: TypeError: 'int' object is not callable.",
  'import sys\nsys.exit(0)': 'wrong.py, line 2, fails: SystemExit: 0.',
  'from ml_collections import FrozenConfigDict as get_config': 'a FrozenConfigDict',
}


@pytest.mark.parametrize(
  'words, named',
  [
    (['--check'], '--config NAME_OR_FILE'),
    ([QUICKSTART, 'own'], "unknown arguments ['own']"),
    (['--config=configs'], "no config 'configs'"),
    ([QUICKSTART, '--config.bugdet=1'], "no such field: 'bugdet'. Did you mean"),
    (
      [QUICKSTART, '--config.learning_rate=1'],
      "'learning_rate'; fields of this name: training.learning_rate, fin",
    ),
    ([QUICKSTART, '--config.budget=10k'], "budget='10k' must be an integer or None, at least 0"),
    ([QUICKSTART, '--config.budget={[]: 1}'], "budget='{[]: 1}' must be an integer or None"),
    ([QUICKSTART, '--config.test=maybe'], "test='maybe' must be True or False"),
    ([QUICKSTART, '--config.presets=("a",'], """presets='("a",' must be a tuple"""),
    ([QUICKSTART, '--config.training=3'], '--config.training=3: Failed to parse'),
    ([QUICKSTART, '--zzzz=1'], "'zzzz' (--help shows all flags"),
    ([f'{QUICKSTART}:tiny=maybe'], "In the config's arguments, tiny='maybe' must be True or False"),
    (['--config=own:no/', '--config.seed=1'], "no folder 'no/'"),
    ([f'--config=own:{__file__}'], "test_flag_errors.py' is a file; after own: give a folder"),
    ([QUICKSTART, QUICKSTART], '--config is given twice'),
    *((['--config=wrong.py', text], named) for text, named in FILES.items()),
  ],
)
def test_a_wrong_command_line_or_config_file_is_one_sentence(
  words, named, parse, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  if words[0] == '--config=wrong.py':
    (tmp_path / 'wrong.py').write_text(words.pop())
  assert_refused(named, parse, *words, kind=(SystemExit, ValueError, OSError))


def test_a_field_that_a_config_file_has_unset_can_be_given(parse, tmp_path):
  path = tmp_path / 'other.py'
  lines = ('def get_config():', 'config = default_config()', 'config.presets = None')
  head = 'from glora_jax.vision.runs.config import default_config\n'
  path.write_text(head + '\n  '.join([*lines, 'return config']))
  assert parse(f'--config={path}', "--config.presets=('lora',)").presets == ('lora',)


@pytest.mark.parametrize(
  'text, expected',
  [
    ('photos, 2026, best,rank=3', ('photos, 2026, best', {'rank': 3})),
    ('rank=5', ('', {'rank': 5})),
    ('photos', ('photos', {'rank': None})),
  ],
)
def test_a_path_with_a_comma_is_an_argument(text, expected):
  assert parse_arguments(text, {'rank': int}) == expected


class JaxRuntimeError(RuntimeError):
  """As JAX calls its own."""


OUT_OF_MEMORY = JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory.\nA page of details')


LOST = 'UNKNOWN: Gloo all-reduce failed: [pair.cc:5] Connection closed by peer'


@pytest.mark.parametrize('debug', [False, True])
def test_a_mistake_is_one_line_and_a_bug_keeps_its_traceback(debug, capsys):
  for mistake, told in (
    (UserError('It is wrong.'), 'It is wrong.'),
    (OSError('It is not there.'), 'It is not there.'),
    (OUT_OF_MEMORY, 'Out of memory'),
    (MemoryError('Unable to allocate 7 TiB'), 'Out of memory'),
    (JaxRuntimeError(LOST), 'Another process'),
  ):
    with pytest.raises(SystemExit) as exited, reported(debug=debug):
      raise mistake
    assert ('Traceback' in capsys.readouterr().err) == debug
    assert debug or re.match(rf'error: {told}.* \(--debug shows where\.\)$', exited.value.code)
  bugs = ValueError('x'), KeyError('y'), ModuleNotFoundError(name='z')
  for bug in (*bugs, JaxRuntimeError('INTERNAL: a fault')):
    with pytest.raises(type(bug)) as raised, reported(debug=debug):
      raise bug
    assert 'This is a bug' in raised.value.__notes__[0]
  with pytest.raises(BrokenPipeError), reported(debug=debug):
    raise BrokenPipeError  # a reader that has seen enough


def test_a_wrong_type_that_a_check_finds_is_a_mistake_and_any_other_is_a_bug():
  with pytest.raises(UserError, match=r"^chunk='x' must be an integer\.$"), user_errors():
    validate('x', int, 'chunk')
  bugs = lambda: Recipe(batches=3), lambda: Recipe().steps_per_epoch(None)
  for bug in (*bugs, lambda: np.zeros(2).reshape(3)):
    with pytest.raises((TypeError, ValueError)) as raised, user_errors():
      bug()
    assert not isinstance(raised.value, UserError)
