"""Flags, signals, and errors in one sentence: what all commands with a config share.

It imports no JAX: a config file that does not exist should not wait for it.
"""

from __future__ import annotations

import io
import logging
import os
import pathlib
import signal
import sys
import threading
import webbrowser
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import ml_collections
from absl import app, flags
from ml_collections import config_flags

from glora_jax.limits import check_path
from glora_jax.runs import config_files, terminal
from glora_jax.runs.mistakes import MISTAKES, explain, is_mistake, sentence
from glora_jax.runs.terminal import Painter, painted, run_program

_HELP = {'--help', '-help', '-h', '-?', '--helpshort'}
STOPPED = 75  # exit code EX_TEMPFAIL of sysexits.h: the same command goes on


class OrNone(flags.ArgumentParser):
  """Parses 'None' as None, which every field takes that may have no value, and all else as before.

  Args:
    parser: parser of all else.
  """

  def __init__(self, parser: flags.ArgumentParser):
    self._parser = parser
    self.syntactic_help = parser.syntactic_help

  def parse(self, argument: Any) -> Any:
    """The value of a text."""
    return None if argument == 'None' else self._parser.parse(argument)

  def flag_type(self) -> str:
    """What absl's help calls the type."""
    return self._parser.flag_type()


for _kind, _parser in (
  (int, flags.IntegerParser()),
  (float, flags.FloatParser()),
  (str, flags.ArgumentParser()),
):
  config_flags.register_flag_parser_for_type(_kind, OrNone(_parser))


class PageFlag(flags.BooleanFlag):
  """A flag that prints a page and ends, as absl's `--help` does.

  Args:
    name: name of the flag.
    text: makes the page.
    help: what the flag does.
  """

  def __init__(self, name: str, text: Callable[[], str], help: str):
    super().__init__(name, False, help)
    self._text = text

  def parse(self, argument: Any) -> None:
    """Prints the page where the flag is given."""
    if self._parse(argument):
      terminal.show(self._text())


def fields_page() -> str:
  """Every field of a config: name, default, type, range and meaning."""
  from glora_jax.runs import config, schema

  return schema.describe(config.RunSettings())


def inventory_page() -> str:
  """All that a command line can name."""
  logging.getLogger('glora_jax').setLevel(logging.ERROR)  # which versions of data sets serve
  return config_files.inventory()


CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'Name of a config that comes with the package, or a Python file with get_config(); override its '
  'fields with --config.FIELD=VALUE.',
)
WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Where everything is written; runs/NAME_OF_CONFIG by default.'
)
CHECK = flags.DEFINE_bool('check', False, 'Show which data is ready and what is missing, and end.')
SHOW = flags.DEFINE_bool('show', False, 'Draw a batch of training images, and end.')
OUTPUT = flags.DEFINE_string('output', 'batch.png', 'Picture that --show writes.')
OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Let --show replace a file.')
PLAN = flags.DEFINE_bool('plan', False, 'Show what the run will take, and end.')
TOPOLOGY = flags.DEFINE_string(
  'plan.topology', None, 'TPU slice to plan for, v5e:2x4 for instance; the machine at hand if none.'
)
COMPILE = flags.DEFINE_bool(
  'plan.compile', False, 'Ask the TPU compiler (libtpu) for memory, which takes minutes.'
)
RUNNER = flags.DEFINE_string(
  'runner',
  'process',
  'Who does the runs of a suite and the methods of a comparison: this process, or ray[:ADDRESS], '
  'the nodes of a Ray cluster.',
)
RESOURCES = flags.DEFINE_string(
  'runner.resources', None, 'What each takes of a node; by default a TPU chip, a GPU, or its cores.'
)
OPEN = flags.DEFINE_bool('open', False, 'Open report.html in a browser at the end.')
DEBUG = flags.DEFINE_bool('debug', False, 'Show the traceback of an error.')
LIST = flags.DEFINE_flag(
  PageFlag(
    'list',
    inventory_page,
    'Show all configs, structures, presets, tasks and weights, which are ready, and end.',
  )
)
HELP_CONFIG = flags.DEFINE_flag(
  PageFlag('help_config', fields_page, 'Show every field of a config, and end.')
)


def workdir_of_config() -> str:
  """`--workdir`, or a folder in `runs` with the name and the arguments of the config file.

  Raises:
    ValueError: it is no path.
  """
  if WORKDIR.value:
    return os.path.expanduser(check_path(WORKDIR.value))
  filename = config_flags.get_config_filename(flags.FLAGS['config'])
  path, _, arguments = filename.partition(':')
  stem = os.path.splitext(os.path.basename(path))[0]
  parts = arguments.strip('/').replace('/', '_').split(',')
  return os.path.join('runs', '-'.join([stem, *filter(None, parts)]))


def given_fields() -> tuple[str, ...]:
  """The fields of the config that the command line gives, by dotted name."""
  return tuple(config_flags.get_override_values(flags.FLAGS['config']))


def open_page(path: str) -> None:
  """Opens the page of a result in a browser where `--open` asks for it."""
  if not OPEN.value:
    return
  if not os.path.isfile(path):
    print(
      f'There is no {path} to open; without its result.json the same command writes it.',
      file=sys.stderr,
    )
  elif not webbrowser.open(pathlib.Path(path).resolve().as_uri()):
    print('No browser could be opened; open it by hand.', file=sys.stderr)


def catch_signals() -> Callable[[], bool]:
  """Makes SIGTERM and Ctrl-C a request to stop.

  Returns:
    Whether one of them has come. Another one of its kind ends the process at once.
  """
  asked = threading.Event()

  def handle(number, frame):
    signal.signal(number, signal.SIG_DFL)
    asked.set()
    # Not print: a signal may come amid one.
    os.write(2, b'\nStopping as soon as all is saved; once more, and it stops at once.\n')

  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, handle)
  return asked.is_set


def run_with_config(command: Callable[[ml_collections.ConfigDict], None]) -> None:
  """Calls a command with the config of the command line; a user's mistake ends in one sentence."""

  def guarded(argv: Sequence[str]) -> None:
    if len(argv) > 1:
      _refuse(
        f'unknown arguments {argv[1:]}; a config is given as --config NAME_OR_FILE, its '
        'fields as --config.FIELD=VALUE.'
      )
    _configure_logging()
    try:
      command(_given_config())
    except BrokenPipeError:  # of standard output; nobody writes into other pipes
      raise
    except MISTAKES as error:
      if DEBUG.value or not is_mistake(error):
        raise
      _refuse(f'{sentence(error)}\n(--debug shows where.)')

  run_program(lambda: app.run(guarded, flags_parser=_parse_flags))


def _refuse(sentence: str) -> NoReturn:
  """Ends with a sentence on what is wrong."""
  sys.exit(f'{painted("error:", "red", sys.stderr)} {sentence}')


def _given_config() -> ml_collections.ConfigDict:
  """The config of the command line.

  Raises:
    ValueError: there is none, or its file returned something else.
  """
  paths = config_files.given(sys.argv)
  if CONFIG.value is None and not paths:
    raise ValueError(
      'A config is needed; give --config NAME_OR_FILE, --config quickstart for instance. '
      '--help_config lists its fields.'
    )
  # ml_collections keeps an OSError that the file raised until a field is asked for.
  if isinstance(error := getattr(CONFIG.value, '_error', None), OSError):
    raise error
  if not isinstance(CONFIG.value, ml_collections.ConfigDict):
    raise ValueError(
      f'get_config() of {paths[-1]} returned a {type(CONFIG.value).__name__}; it must return the '
      'config that glora_jax.runs.config.default_config() made, with other values.'
    )
  return CONFIG.value


def _parse_flags(argv: Sequence[str]) -> list[str]:
  """Parses the flags; a mistake ends in one sentence, where absl shows the whole usage."""
  if not _HELP.isdisjoint(argv):
    terminal.show(terminal.help_page())
  try:
    # ml_collections prints a traceback of its own for a config file that does not exist.
    words = config_files.with_paths(argv)
  except ValueError as error:
    _refuse(str(error))
  try:
    return flags.FLAGS(words)
  except (Exception, SystemExit) as error:  # a config file may raise anything
    text = explain(error, config_files.given(words))
    if text is None:
      raise
    _refuse(text)


def _configure_logging() -> None:
  """Shows this project's log, and keeps libraries from adding tracebacks to a sentence."""
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors='backslashreplace')  # names that the terminal cannot show
  handler = logging.StreamHandler(sys.stderr)
  handler.setFormatter(Painter(sys.stderr))
  logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
  logging.getLogger('glora_jax').setLevel(logging.INFO)
  if DEBUG.value:
    return
  # An error in one of orbax's threads, a full disk for instance, reaches us as an exception, and
  # becomes the sentence. Its other threads, which fail for the same reason, end without anybody to
  # catch what they raise: Python would print their tracebacks through this hook, absl's and
  # asyncio's loggers likewise.
  sys.unraisablehook = _ignore
  for library in ('absl', 'asyncio'):
    logging.getLogger(library).setLevel(logging.CRITICAL)


def _ignore(_: Any) -> None:
  """A hook that does nothing."""
