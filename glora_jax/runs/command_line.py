"""Flags, signals, errors in one sentence, and what a command line can name.

A config is found by its name: 'quickstart', 'own:photos/'.

It imports no JAX: a config file that does not exist should not wait for it.
"""

from __future__ import annotations

import ast
import difflib
import io
import logging
import os
import pathlib
import runpy
import signal
import sys
import threading
import urllib.parse
import webbrowser
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

import ml_collections
from absl import app, flags
from ml_collections import config_flags

import glora_jax
from glora_jax.limits import check_path
from glora_jax.runs.terminal import (
  MISTAKES,
  Painter,
  blame,
  entry,
  explain,
  help_page,
  is_mistake,
  painted,
  run_program,
  sentence,
  show,
)

_HELP = {'--help', '-help', '-h', '-?', '--helpshort'}
STOPPED = 75  # exit code EX_TEMPFAIL of sysexits.h: the same command goes on
_PACKAGE = os.path.dirname(os.path.abspath(glora_jax.__file__))
# A wheel has them in the package; a checkout, installed as it lies or not, at its top.
_PLACES = (os.path.join(_PACKAGE, 'configs'), os.path.join(os.path.dirname(_PACKAGE), 'configs'))
FOLDER = next(filter(os.path.isdir, _PLACES), _PLACES[0])


class _OrNone(flags.ArgumentParser):
  """Parses 'None' as None, which every field takes that may have no value, all else by its type."""

  def __init__(self, kind: type):
    self._kind = kind

  def parse(self, argument: Any) -> Any:
    """The value of a text."""
    return None if argument == 'None' else self._kind(argument)


for _kind in (int, float, str):
  config_flags.register_flag_parser_for_type(_kind, _OrNone(_kind))


class _Page(flags.BooleanFlag):
  """A flag that prints a page, the longer one with `=all`, and ends, as absl's `--help` does."""

  def __init__(self, name: str, text: Callable[[bool], str], help: str):
    super().__init__(name, False, help)
    self._text = text

  def parse(self, argument: Any) -> None:
    """Prints the page where the flag is given."""
    if argument == 'all' or self._parse(argument):
      own = logging.getLogger('glora_jax')
      level = own.level
      own.setLevel(logging.ERROR)  # which versions of data sets serve, for instance
      try:
        text = self._text(argument == 'all')
      finally:
        own.setLevel(level)
      show(text)


class _ConfigParser(flags.ArgumentParser):
  """Loads a config by name or file; a mistake ends in one sentence."""

  def parse(self, argument: str) -> ml_collections.ConfigDict:
    """The config of `NAME_OR_FILE[:ARGUMENTS]`."""
    try:
      return load_config(argument)
    except ValueError as error:
      _refuse(str(error))


def define_config(values: flags.FlagValues) -> flags.FlagHolder:
  """Defines `--config`, and `--config.FIELD` for each field of the config."""
  holder = config_flags.DEFINE_config_file(
    'config',
    None,
    'Name of a config that comes with the package, or a Python file with get_config(); override '
    'its fields with --config.FIELD=VALUE.',
    flag_values=values,
    allow_overwrite=False,
  )
  values['config'].parser = _ConfigParser()
  return holder


def load_config(value: str) -> ml_collections.ConfigDict:
  """The config of a name or a file, with the arguments of its `get_config` behind a colon.

  Raises:
    ValueError: there is no such file, it fails, or it returns something else.

  Example:
    >>> load_config('vtab:clevr_count').task
    'vtab/clevr_count'
  """
  name, colon, arguments = value.partition(':')
  path = path_of(name)
  try:
    config = runpy.run_path(path)['get_config'](*([arguments] if colon else []))
  except (Exception, SystemExit) as error:  # a config file may raise anything
    raise ValueError(blame(error, path)) from error
  if type(config) is not ml_collections.ConfigDict:  # a frozen one cannot be changed
    raise ValueError(
      f'get_config() of {path} returned a {type(config).__name__}; it must return the config that '
      'glora_jax.runs.config.default_config() made, with other values.'
    )
  return config.lock()


def fields_page(everything: bool) -> str:
  """Fields of a config, those that people need or all: name, default, type, range and meaning."""
  from glora_jax.runs import config, schema

  if everything:
    return schema.describe(config.RunSettings())
  page = schema.describe(config.RunSettings(), config.NEEDED)
  return f'{page}\n\n--help_config=all shows all fields.'


CONFIG = define_config(flags.FLAGS)
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
  _Page(
    'list',
    lambda _: inventory(),
    'Show all configs, structures, presets, tasks and weights, which are ready, and end.',
  )
)
HELP_CONFIG = flags.DEFINE_flag(
  _Page(
    'help_config', fields_page, 'Show the fields of a config that people need, =all all, and end.'
  )
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
  """The config of the command line; raises ValueError where there is none."""
  if CONFIG.value is None:
    raise ValueError(
      'A config is needed; give --config NAME_OR_FILE, --config quickstart for instance. '
      '--help_config shows its fields.'
    )
  return CONFIG.value


def _parse_flags(argv: Sequence[str]) -> list[str]:
  """Parses the flags; a mistake ends in one sentence, where absl shows the whole usage."""
  if not _HELP.isdisjoint(argv):
    show(help_page())
  try:
    return flags.FLAGS(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
    if (text := explain(error)) is None:
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
  sys.unraisablehook = lambda _: None
  for library in ('absl', 'asyncio'):
    logging.getLogger(library).setLevel(logging.CRITICAL)


def names() -> list[str]:
  """The names of all configs that come with the package.

  Example:
    >>> 'quickstart' in names()
    True
  """
  files = os.listdir(FOLDER) if os.path.isdir(FOLDER) else ()
  return sorted(name.removesuffix('.py') for name in files if name.endswith('.py'))


def path_of(name: str) -> str:
  """The path of the config file that `--config` asks for.

  Args:
    name: the name of a config that comes with the package, also where a file in the current folder
      is called the same; else the path of a Python file.

  Raises:
    ValueError: there is no such file, and no config of this name.

  Example:
    >>> os.path.basename(path_of('quickstart'))
    'quickstart.py'
  """
  if name in names():
    return os.path.join(FOLDER, f'{name}.py')
  if name.endswith('.py') and os.path.isfile(name):
    return name
  near = difflib.get_close_matches(name, names(), 1)
  raise ValueError(
    f'There is no config file {name or "without a name"}'
    f'{f" (is it {near[0]}?)" if near else ""}; give the path of one, which ends in .py, or a name '
    f'of those that come with the package: {", ".join(names())}.'
  )


def inventory() -> str:
  """What there is, and what of it is ready on this machine; nothing is fetched or prepared."""
  from glora_jax.data.task import Source  # it imports JAX, for which a command line does not wait
  from glora_jax.method.presets import GENOME_ENDING, GRADIENT, KNOWN, PLACES, PRESETS
  from glora_jax.runs.sections import SEARCH

  structures = (
    (SEARCH, 'a supernet of all forms is trained and searched'),
    (GRADIENT, 'what to train is read off one gradient'),
    (KNOWN, 'what pays on the backbone by other tasks, as far as the budget goes'),
    ('a preset', 'see below'),
    (f'PATH{GENOME_ENDING}', 'what an earlier run found'),
  )
  return '\n'.join(
    [
      'Configs: --config NAME[:ARGUMENTS]',
      *_rows(_configs()),
      '',
      'Structures: --config.structure=NAME',
      *_rows(structures),
      '',
      'Presets: --config.structure=NAME, or as rows beside it --config.presets="(\'NAME\',)"',
      f'  {", ".join(PRESETS)}',
      f'  with a rank, as lora:2, and a place, as lora:2@qkv: {", ".join(PLACES)}, or a regular',
      "  expression on the layers' names",
      '',
      'Tasks: --config.task=NAME',
      *_rows(_tasks(Source())),
      '',
      'Weights: --config.model.weights=NAME',
      *_rows(_weights()),
    ]
  )


def _rows(rows: Iterable[tuple[str, str]]) -> list[str]:
  return [line for name, meaning in rows for line in entry(f'  {name}', meaning, 28)]


def _configs() -> Iterator[tuple[str, str]]:
  for name in names():
    with open(path_of(name), encoding='utf-8') as file:
      docstring = ast.get_docstring(ast.parse(file.read())) or ''
    yield name, docstring.partition('\n')[0]


def _tasks(source: Any) -> Iterator[tuple[str, str]]:
  from glora_jax.data import catalog

  yield 'digits', "scikit-learn's; no download"
  for kind, family in catalog.FAMILIES.items():
    ready = [name for name in catalog.data_sets(kind) if catalog.is_ready(name, source)]
    names = ', '.join(map(str, family.parts.get('NAME', ())))
    which = f' ({", ".join(name.split("/")[1] for name in ready)})' if ready and names else ''
    title = f'{family.title}: {names}' if names else family.title
    yield '/'.join((kind, *family.parts)), f'{title}; ready: {len(ready)}{which}'
  yield 'folder:PATH', 'your own: a folder with a subfolder for each class'
  yield 'csv:PATH', 'your own: paths and labels'
  yield 'tfds:NAME', 'any image classification of TFDS'


def _weights() -> Iterator[tuple[str, str]]:
  from glora_jax.models import fetch
  from glora_jax.models.weights import EMBEDDED

  yield EMBEDDED, 'comes with the package: a small ViT of Fashion-MNIST'
  for name, published in fetch.SHORTCUTS.items():
    is_here = os.path.exists(fetch.path_in_cache(published.url))
    host = urllib.parse.urlsplit(published.url).hostname
    yield name, f'{"here, downloaded" if is_here else "not here yet, is downloaded"} from {host}'
  yield 'PATH', 'a file or folder of timm, transformers, big_vision, ...'
  yield 'hf:OWNER/NAME', "from the Hugging Face hub; needs the package 'huggingface_hub'"
