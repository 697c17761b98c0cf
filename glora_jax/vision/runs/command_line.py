"""The command line: flags, configs by name ('own:photos/'), signals, errors, and `--list`.

JAX is not imported here, so that a wrong config name is reported at once.
"""

from __future__ import annotations

import ast
import difflib
import functools
import logging
import os
import pathlib
import runpy
import signal
import sys
import textwrap
import threading
import urllib.parse
import webbrowser
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import ml_collections
from absl import app, flags
from ml_collections import config_flags

import glora_jax
from glora_jax.checks import check_path
from glora_jax.vision.runs.terminal import (
  GREETING,
  blame,
  refuse,
  reported,
  run_program,
  show,
  user_errors,
)

_HELP = {'--help', '-help', '-h', '-?', '--helpshort'}
STOPPED = 75  # exit code EX_TEMPFAIL of sysexits.h: the same command resumes
_PACKAGE = os.path.dirname(os.path.abspath(glora_jax.__file__))
# A wheel has them in the package; a checkout, installed as it lies or not, at its top.
_PLACES = (os.path.join(_PACKAGE, 'configs'), os.path.join(os.path.dirname(_PACKAGE), 'configs'))
FOLDER = next(filter(os.path.isdir, _PLACES), _PLACES[0])


class _TextParser(flags.ArgumentParser):
  """Leaves the text of a field to `config.read`, which knows the field's type.

  So what it says of a wrong value is what it says of one in a config file. Of two texts for a tuple
  the last one counts, as for all other fields.
  """

  def parse(self, argument: Any) -> Any:
    """The text of a command line; defaults as they are."""
    from glora_jax.vision.runs.config import Text  # loaded by the config file, with JAX

    return Text(argument) if isinstance(argument, str) else argument


for _kind in (bool, int, float, str, tuple, type(None)):
  config_flags.register_flag_parser_for_type(_kind, _TextParser())


class _ConfigParser(flags.ArgumentParser):
  """Loads a config by name or file; an error exits with one sentence."""

  def parse(self, argument: str) -> ml_collections.ConfigDict:
    """The config of `NAME_OR_FILE[:ARGUMENTS]`."""
    try:
      return load_config(argument)
    except ValueError as error:
      refuse(str(error))


def define_config(values: flags.FlagValues) -> flags.FlagHolder:
  """Defines `--config`, and `--config.FIELD` for each field of the config."""
  holder = config_flags.DEFINE_config_file(
    'config',
    None,
    'Name of a config of the package, or a Python file with get_config(); override its fields '
    'with --config.FIELD=VALUE.',
    flag_values=values,
    allow_overwrite=False,
  )
  values['config'].parser = _ConfigParser()
  return holder


def load_config(value: str) -> ml_collections.ConfigDict:
  """Loads a config by name or file; arguments of its `get_config` follow a colon.

  Raises:
    ValueError: the file is missing, fails, or returns something else.

  Example:
    >>> load_config('vtab:clevr_count').task
    'vtab/clevr_count'
  """
  name, colon, arguments = value.partition(':')
  path = path_of(name)
  try:
    content = runpy.run_path(path)
    if 'get_config' not in content:
      raise ValueError(f'{path} has no get_config(); define one that returns the config.')
    config = content['get_config'](*([arguments] if colon else []))
  except (Exception, SystemExit) as error:  # a config file may raise anything
    raise ValueError(blame(error, path)) from error
  if type(config) is not ml_collections.ConfigDict:  # a frozen one cannot be changed
    raise ValueError(
      f'get_config() in {path} returned a {type(config).__name__}; return the config that '
      'glora_jax.vision.runs.config.default_config() makes, with your values.'
    )
  return config.lock()


CONFIG = define_config(flags.FLAGS)
WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder for all output; runs/NAME_OF_CONFIG by default.'
)
CHECK = flags.DEFINE_bool('check', False, 'Show which data is ready or missing, then exit.')
SHOW = flags.DEFINE_bool('show', False, 'Draw a batch of training images, then exit.')
OUTPUT = flags.DEFINE_string('output', 'batch.png', 'Picture written by --show.')
OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Let --show replace an existing file.')
RUNNER = flags.DEFINE_string(
  'runner',
  'process',
  "Where a suite's runs are computed: in this process, or on the nodes of a Ray cluster, "
  'ray[:ADDRESS].',
)
RESOURCES = flags.DEFINE_string(
  'runner.resources', None, 'What each takes of a node; a TPU chip, a GPU or all cores by default.'
)
OPEN = flags.DEFINE_bool('open', False, 'Open report.html in a browser at the end.')
DEBUG = flags.DEFINE_bool('debug', False, 'Show the traceback of an error.')


def workdir_of_config() -> str:
  """`--workdir`, or a folder in `runs` named after the config and its arguments.

  Raises:
    UserError: it is not a path.
  """
  if WORKDIR.value:
    with user_errors():
      return os.path.expanduser(check_path(WORKDIR.value))
  filename = config_flags.get_config_filename(flags.FLAGS['config'])
  path, _, arguments = filename.partition(':')
  stem = os.path.splitext(os.path.basename(path))[0]
  parts = arguments.strip('/').replace('/', '_').split(',')
  return os.path.join('runs', '-'.join([stem, *filter(None, parts)]))


def given_fields() -> tuple[str, ...]:
  """Dotted names of the config fields that are set on the command line."""
  return tuple(config_flags.get_override_values(flags.FLAGS['config']))


def open_page(path: str) -> None:
  """Opens the page of a result in a browser if `--open` is given."""
  if OPEN.value and not webbrowser.open(pathlib.Path(path).resolve().as_uri()):
    print(f'No browser could be started; open {path} by hand.', file=sys.stderr)


def catch_signals() -> Callable[[], bool]:
  """Makes SIGTERM and Ctrl-C a request to stop.

  Returns:
    A function that says whether one has arrived. A second one ends the process at once.
  """
  asked = threading.Event()

  def handle(number, frame):
    signal.signal(number, signal.SIG_DFL)
    asked.set()
    # Not print: the signal may interrupt one.
    os.write(2, b'\nStopping once everything is saved; repeat the signal to stop at once.\n')

  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, handle)
  return asked.is_set


def run_with_config(command: Callable[[ml_collections.ConfigDict], None]) -> None:
  """Calls a command with the command line's config; a user's mistake exits with one sentence."""

  def guarded(argv: Sequence[str]) -> None:
    _configure_logging()
    with reported(debug=DEBUG.value):
      command(CONFIG.value)

  usage = sys.modules[command.__module__].__doc__ or ''
  run_program(lambda: app.run(guarded, flags_parser=lambda argv: parse_flags(argv, usage)))


def parse_flags(argv: Sequence[str], usage: str = '') -> list[str]:
  """Parses the flags; a page that is asked for ends the command, and so does a mistake."""
  if len(argv) == 1:
    show(GREETING)
  if not _HELP.isdisjoint(argv):
    show(usage + flags.FLAGS.module_help(sys.modules[__name__]))
  for page in filter(None, map(PAGES.get, argv)):
    logging.getLogger('glora_jax').setLevel(logging.ERROR)  # a page lists data, and warns of none
    show(page())
  try:
    unknown = flags.FLAGS(argv)[1:]
  except (flags.Error, AttributeError, KeyError, TypeError) as error:
    refuse(_explain(error))
  if unknown:
    refuse(
      f'unknown arguments {unknown}; give a config as --config NAME_OR_FILE, its fields as '
      '--config.FIELD=VALUE.'
    )
  if CONFIG.value is None:
    refuse('No config given; give --config NAME_OR_FILE, for example --config quickstart.')
  return [argv[0]]


def _explain(error: Exception) -> str:
  """A sentence about an error that parsing the flags raised."""
  if not isinstance(error, flags.Error):  # of ml_collections, with the closest name
    reason = error.__context__ or error
    text = '. '.join(str(reason.args[0]).splitlines())
    return f'The config has no such field: {text} (--help_config=all shows all fields.)'
  text = ' '.join(str(error).split())
  if text.startswith('flag --config='):
    return '--config is given twice; give it once.'
  is_unknown = isinstance(error, flags.UnrecognizedFlagError)
  return f'{text} (--help shows all flags.)' if is_unknown else text


def _fields(*, all_of_them: bool) -> str:
  """Config fields, or those that are needed most often: name, default, type, range, meaning."""
  from glora_jax.vision.runs.fields import NEEDED, describe
  from glora_jax.vision.runs.settings import RunSettings

  if all_of_them:
    return describe(RunSettings())
  return f'{describe(RunSettings(), NEEDED)}\n\n--help_config=all shows all fields.'


def _configure_logging() -> None:
  """Shows this package's log, and keeps libraries from adding tracebacks to a sentence."""
  logging.basicConfig(level=logging.WARNING, format='%(message)s', stream=sys.stderr, force=True)
  logging.getLogger('glora_jax').setLevel(logging.DEBUG if DEBUG.value else logging.INFO)
  if DEBUG.value:
    return
  # An error in one of orbax's threads, a full disk for instance, reaches us as an exception and
  # becomes the sentence. The other threads fail for the same reason, but nothing catches what they
  # raise: Python would print it through this hook, absl and asyncio through their loggers.
  sys.unraisablehook = lambda _: None
  for library in ('absl', 'asyncio'):
    logging.getLogger(library).setLevel(logging.CRITICAL)


def names() -> list[str]:
  """The names of all configs of the package.

  Example:
    >>> 'quickstart' in names()
    True
  """
  files = os.listdir(FOLDER) if os.path.isdir(FOLDER) else ()
  return sorted(name.removesuffix('.py') for name in files if name.endswith('.py'))


def path_of(name: str) -> str:
  """The path of the config file that `--config` names.

  Args:
    name: a config of the package, which comes before a file of the same name in the current folder;
      or the path of a Python file.

  Raises:
    ValueError: neither a config nor a file has this name.

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
    f"There is no config '{name}'{f' (did you mean {near[0]}?)' if near else ''}; give the path of "
    f'a .py file, or one of {", ".join(names())}.'
  )


def inventory() -> str:
  """What is available, and what is ready on this machine; nothing is downloaded or prepared."""
  # These import JAX, which other commands need not wait for.
  from glora_jax.method.presets import PLACES, PRESETS
  from glora_jax.vision.data.task import Source
  from glora_jax.vision.runs.fields import meanings_of
  from glora_jax.vision.runs.settings import RunSettings

  structure = meanings_of(RunSettings)['structure']
  return '\n'.join(
    [
      'Configs: --config NAME[:ARGUMENTS]',
      *_rows(_configs()),
      '',
      'Structures: --config.structure=NAME',
      textwrap.fill(structure, 100, initial_indent='  ', subsequent_indent='  '),
      '',
      'Presets: --config.structure=NAME, or as baselines --config.presets="(\'NAME\',)"',
      f'  {", ".join(PRESETS)}',
      f'  with a rank (lora:2) and a place (lora:2@qkv): {", ".join(PLACES)}, or a regular',
      '  expression for layer names',
      '',
      'Tasks: --config.task=NAME',
      *_rows(_tasks(Source())),
      '',
      'Weights: --config.model.weights=NAME',
      *_rows(_weights()),
    ]
  )


def _rows(rows: Iterable[tuple[str, str]]) -> list[str]:
  """Lines of names and their meanings."""
  return [
    textwrap.fill(meaning, 100, initial_indent=f'  {name:25} ', subsequent_indent=' ' * 28)
    for name, meaning in rows
  ]


def _configs() -> Iterator[tuple[str, str]]:
  for name in names():
    with open(path_of(name), encoding='utf-8') as file:
      docstring = ast.get_docstring(ast.parse(file.read())) or ''
    yield name, docstring.partition('\n')[0]


def _tasks(source: Any) -> Iterator[tuple[str, str]]:
  from glora_jax.vision.data import catalog

  yield 'digits', 'from scikit-learn; no download'
  for kind, family in catalog.FAMILIES.items():
    ready = [name for name in catalog.data_sets(kind) if catalog.is_ready(name, source)]
    names = ', '.join(map(str, family.parts.get('NAME', ())))
    which = f' ({", ".join(name.split("/")[1] for name in ready)})' if ready and names else ''
    title = f'{family.title}: {names}' if names else family.title
    yield '/'.join((kind, *family.parts)), f'{title}; ready: {len(ready)}{which}'
  yield 'folder:PATH', 'your images: a folder with one subfolder per class'
  yield 'csv:PATH', 'your images: a table of paths and labels'
  yield 'tfds:NAME', 'any image classification data set of TFDS'


def _weights() -> Iterator[tuple[str, str]]:
  from glora_jax.vision.models import fetch
  from glora_jax.vision.models.weights import EMBEDDED

  yield EMBEDDED, 'in the package: a small ViT trained on Fashion-MNIST'
  for name, published in fetch.SHORTCUTS.items():
    is_here = os.path.exists(fetch.path_in_cache(published.url))
    host = urllib.parse.urlsplit(published.url).hostname
    yield name, f'{"downloaded" if is_here else "not downloaded yet,"} from {host}'
  yield 'PATH', 'a file or folder of timm, transformers, big_vision, ...'
  yield 'hf:OWNER/NAME', "from the Hugging Face hub; needs the package 'huggingface_hub'"


# Arguments that show a page and exit.
PAGES = {
  '--list': inventory,
  '--help_config': functools.partial(_fields, all_of_them=False),
  '--help_config=all': functools.partial(_fields, all_of_them=True),
}
