"""What a command does with its terminal: help, colours, streams that fail, Ctrl-C.

Colours are where a person sees them: on a terminal, unless NO_COLOR (no-color.org) forbids it.
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NoReturn, TextIO

from absl import flags

from glora_jax.runs.mistakes import explain_os

Style = Literal['bold', 'red', 'yellow']
_CODES = {'bold': 1, 'red': 31, 'yellow': 33}


def painted(text: str, style: Style, stream: TextIO) -> str:
  """A text in a style where a stream shows styles, the bare text elsewhere.

  Example:
    >>> import io
    >>> painted('search', 'bold', io.StringIO())
    'search'
  """
  if not stream.isatty() or os.environ.get('NO_COLOR') or os.environ.get('TERM') == 'dumb':
    return text
  return f'\033[{_CODES[style]}m{text}\033[0m'


def run_program(program: Callable[[], None]) -> None:
  """Runs a command; what its streams refuse, and Ctrl-C, end it without a traceback.

  Args:
    program: what the command does, which says its own mistakes.
  """
  open_closed_streams()
  try:
    try:
      program()
    finally:
      sys.stdout.flush()  # here, not at the interpreter's end, which has no sentence
  except KeyboardInterrupt:
    sys.exit(130)
  except BrokenPipeError:  # `| head` has seen enough
    forget_output()
    sys.exit(1)
  except OSError as error:
    forget_output()
    sys.exit(f'error: {explain_os(error)}')


def open_closed_streams() -> None:
  """Opens the null device for each standard stream that is closed (`>&-`).

  The next files that are opened would get their numbers, and what libraries print would be written
  into those.
  """
  for number in range(3):
    try:
      os.fstat(number)
    except OSError:
      os.open(os.devnull, os.O_RDWR)  # the system takes the lowest number that is free
  for name in ('stdout', 'stderr'):
    if getattr(sys, name) is None:
      setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), 'w'))


def forget_output() -> None:
  """Lets what standard output could not write go, or the interpreter tries again at its end."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Painter(logging.Formatter):
  """Prints bare messages: warnings yellow, and where a stage begins bold.

  Args:
    stream: where the messages go.
  """

  def __init__(self, stream: TextIO):
    super().__init__('%(message)s')
    self._stream = stream

  def format(self, record: logging.LogRecord) -> str:
    """The text of a record."""
    text = super().format(record)
    if record.levelno >= logging.WARNING:
      return painted(text, 'yellow', self._stream)
    return painted(text, 'bold', self._stream) if ': begins' in text else text


_WIDTH, _COLUMN = 100, 32

GREETING = """Parameter-efficient fine-tuning for JAX and Flax by GLoRA. Five things to do:

  see it work, in two minutes     python -m glora_jax.main --config quickstart
  train on your own images        python -m glora_jax.main --config own:FOLDER
  ask what came out               python -m glora_jax.predict --model runs/quickstart/folded IMAGE
  see what else there is          python -m glora_jax.main --list
  adapt your own model            import glora_jax; help(glora_jax.adapt)

FOLDER has a subfolder of images for each class. --help shows all flags, --help_config every field
of a config."""

USAGE = '--config NAME_OR_FILE[:ARGUMENTS] [FLAG ...]'

# Flags by what they are for; those that no group has come last.
GROUPS: Mapping[str, Sequence[str]] = {
  'What is run': ('config', 'config.FIELD', 'workdir', 'open'),
  'A look at its data': ('check', 'show', 'output', 'overwrite'),
  'What it will take': ('plan', 'plan.topology', 'plan.compile'),
  'Where it runs': ('runner', 'runner.resources'),
  'What there is': ('list', 'help', 'help_config'),
}
OTHERS = 'More'
_SHAPES = {
  'config': 'NAME_OR_FILE[:ARGUMENTS]',
  'config.FIELD': 'VALUE',
  'workdir': 'FOLDER',
  'output': 'FILE',
  'plan.topology': 'SLICE',
  'runner': 'ray[:ADDRESS]',
  'runner.resources': 'GPU=1,CPU=8',
}
_WITHOUT_FLAG = {
  'config.FIELD': 'Another value of a field of the config, as --config.seed=1.',
  'help': 'Show this page, and end.',
}


def show(page: str) -> NoReturn:
  """Prints a page, and ends the process."""
  try:
    print(page, flush=True)
  except BrokenPipeError:  # `| head` has seen enough
    forget_output()
  sys.exit(0)


def help_page() -> str:
  """One page: all flags of this package's commands, by what they are for."""
  helps = {**_WITHOUT_FLAG, **{name: str(flags.FLAGS[name].help) for name in own_flags()}}
  grouped = {name for names in GROUPS.values() for name in names}
  groups = {**GROUPS, OTHERS: [name for name in helps if name not in grouped]}
  spec = sys.modules['__main__'].__spec__
  program = os.path.basename(sys.argv[0]) if spec is None else f'python -m {spec.name}'
  lines = [f'{program} {USAGE}']
  for title, names in groups.items():
    lines += ['', painted(title, 'bold', sys.stdout)]
    lines += itertools.chain.from_iterable(_rows(name, helps[name]) for name in names)
  lines += ['', 'The same command resumes a run. Exit codes: 0, done; 1, a mistake, in a sentence;']
  return '\n'.join([*lines, '75, stopped by a signal, and the same command goes on.'])


def own_flags() -> list[str]:
  """Names of the flags that this package defines."""
  return sorted(
    flag.name
    for module, defined in flags.FLAGS.flags_by_module_dict().items()
    for flag in defined
    if module.startswith('glora_jax.') and not flag.name.startswith('config.')
  )


def _rows(name: str, text: str) -> list[str]:
  """A flag with its meaning beside it, or below where it is long."""
  shape = _SHAPES.get(name)
  flag = (
    f'  --{name}{"=" if name.startswith("config.") else " "}{shape}' if shape else f'  --{name}'
  )
  lines = [' ' * _COLUMN + line for line in textwrap.wrap(text, _WIDTH - _COLUMN)]
  if len(flag) >= _COLUMN:
    return [flag, *lines]
  return [flag + lines[0][len(flag) :], *lines[1:]]
