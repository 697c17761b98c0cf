"""The command that runs a config.

  python -m glora_jax.main --config configs/quickstart.py
  python -m glora_jax.main --config configs/quickstart.py --workdir DIR --config.FIELD=VALUE
  python -m glora_jax.main --config vtab:all --check
  python -m glora_jax.main --config own:photos/ --show [--output batch.png] [--overwrite]
  python -m glora_jax.main --config vtab:all --runner ray[:ADDRESS]
  python -m glora_jax.main --config configs/quickstart.py --open
  python -m glora_jax.main --list (configs, structures, presets, tasks, weights)
  python -m glora_jax.main --help_config (the common config fields) or --help_config=all

From Python, call `experiment.run(config, workdir)` for a run, and `suite.run` for many: several
tasks, such as 'vtab/all', structures, rates or seeds. Each writes `report.html` in its workdir, and
`--open` opens it in a browser.

SIGTERM and Ctrl-C save everything and exit with 75 (EX_TEMPFAIL of sysexits.h); the same command
resumes. A suite exits with 0 if all runs that were ready have results, and with 1 if a run failed
or none was ready. `--check` exits with 1 unless all are ready.
"""

from __future__ import annotations

import ast
import difflib
import logging
import os
import pathlib
import re
import runpy
import signal
import sys
import threading
import traceback
import webbrowser
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from glora_jax.checks import check_path, listed
from glora_jax.errors import MissingPackageError, UserError

try:
  from glora_jax.vision.runs.terminal import (
    is_mistake,
    refuse,
    reported,
    run_program,
    sentence,
    user_errors,
  )
except MissingPackageError as error:
  sys.exit(f'error: {error}')

import ml_collections
from absl import app, flags
from ml_collections import config_flags
from tqdm.contrib.logging import logging_redirect_tqdm

# Modules with JAX are imported in functions, so that a wrong command line is reported at once.
if TYPE_CHECKING:
  from glora_jax.vision.runs.settings import RunSettings
  from glora_jax.vision.runs.workdir import Stop

STOPPED = 75  # exit code EX_TEMPFAIL of sysexits.h: the same command resumes
# A wheel has configs in the package, a checkout in its root.
_PLACES = [folder / 'configs' for folder in pathlib.Path(__file__).absolute().parents[:2]]
FOLDER = next(filter(pathlib.Path.is_dir, _PLACES), _PLACES[0])
GREETING = """GLoRA: parameter-efficient fine-tuning for JAX and Flax. Five things to do:

  see it work, in two minutes     python -m glora_jax.main --config quickstart
  train on your own images        python -m glora_jax.main --config own:FOLDER
  predict with the result         python -m glora_jax.predict --model runs/quickstart/folded IMAGE
  list everything available       python -m glora_jax.main --list
  adapt your own model            import glora_jax; help(glora_jax.adapt)

FOLDER has one subfolder of images per class. --help shows all flags, --help_config the config
fields."""


class _TextParser(flags.ArgumentParser):
  """Leaves the text of a field to `config.read`, which knows the field's type.

  So the message about a wrong value is the same as for a config file. If a tuple is given twice,
  the last one counts, as for all other fields.
  """

  def parse(self, argument: Any) -> Any:
    """The text from the command line; defaults unchanged."""
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


CONFIG = define_config(flags.FLAGS)
WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder for all output; runs/NAME_OF_CONFIG by default.'
)
CHECK = flags.DEFINE_bool('check', False, 'Show which data and weights are ready, then exit.')
SHOW = flags.DEFINE_bool('show', False, 'Draw a batch of training images, then exit.')
OUTPUT = flags.DEFINE_string('output', 'batch.png', 'Picture written by --show.')
OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Let --show replace an existing file.')
RUNNER = flags.DEFINE_string(
  'runner',
  'process',
  'Runs a suite in this process, or on the nodes of a Ray cluster, ray[:ADDRESS].',
)
RESOURCES = flags.DEFINE_string(
  'runner.resources', None, 'Resources of a run; a TPU chip, a GPU or all cores by default.'
)
OPEN = flags.DEFINE_bool('open', False, 'Open report.html in a browser at the end.')
DEBUG = flags.DEFINE_bool('debug', False, 'Show the traceback of an error.')


def command() -> None:
  """Runs the command: `glora` or `python -m glora_jax.main`."""
  run_program(lambda: app.run(_main_with_flags, flags_parser=parse_flags))


def _main_with_flags(argv: Sequence[str]) -> None:
  del argv
  _configure_logging()
  with reported(debug=DEBUG.value), logging_redirect_tqdm():  # or lines would end in a bar
    main(CONFIG.value)


def main(config: ml_collections.ConfigDict) -> None:
  """Runs the config, and prints a summary."""
  from glora_jax.vision.runs.config import check_config

  settings = check_config(config)
  if CHECK.value or SHOW.value:
    from glora_jax.vision.runs import look

    if CHECK.value:
      sys.exit(0 if look.check(settings) else 1)
    look.show(settings, OUTPUT.value, overwrite=OVERWRITE.value)
    return
  workdir = workdir_of_config()
  stop = catch_signals()  # first, to catch an early signal as well
  from glora_jax import mesh
  from glora_jax.vision.reports import page
  from glora_jax.vision.runs import suite
  from glora_jax.vision.runs.fields import warn_of_unread
  from glora_jax.vision.runs.workdir import Stopped

  given = config_flags.get_override_values(flags.FLAGS['config'])
  warn_of_unread(settings, suite.fields_read(settings), given)
  try:
    summary, code = run(settings, workdir, stop, RUNNER.value, RESOURCES.value)
  except Stopped as stopped:
    print(stopped, file=sys.stderr)
    sys.exit(STOPPED)
  if mesh.primary():
    print(summary)
    open_page(page.path(workdir))
  sys.exit(code)


def run(
  settings: RunSettings,
  workdir: str,
  stop: Stop,
  runner: str = RUNNER.default,
  resources: str | None = None,
) -> tuple[str, int]:
  """Runs a suite or a single run; returns its summary and exit code."""
  from glora_jax.vision.reports import report
  from glora_jax.vision.runs import experiment, runners, suite
  from glora_jax.vision.runs.settings import DistributedSettings

  if runner != RUNNER.default and not settings.is_suite:
    raise UserError(f'--runner={runner} is for suites, but this is a single run; leave it out.')
  if runner != RUNNER.default and settings.distributed != DistributedSettings():
    raise UserError(
      f'config.distributed makes one run of several processes, but --runner={runner} gives each '
      'process its own run; leave one of them out.'
    )
  chosen = runners.named(runner, resources)
  if not settings.is_suite:
    result = experiment.run(settings, workdir, stop)
    return report.summary_of_run(result, workdir), 0
  runners.keep_compiled(workdir)
  board = suite.run(settings, workdir, stop, chosen)
  failed = board.failed.keys() & board.tested
  return report.summary_of_suite(board, workdir), 1 if failed else 0


def workdir_of_config() -> str:
  """The folder of `--workdir`, or else `workdir_named_after` the config.

  Raises:
    UserError: it is not a path.
  """
  if WORKDIR.value:
    with user_errors():
      return os.path.expanduser(check_path(WORKDIR.value))
  return workdir_named_after(config_flags.get_config_filename(flags.FLAGS['config']))


def workdir_named_after(config: str) -> str:
  """A folder in `runs`, named after a config and its arguments in words.

  Paths among them are relative to the current folder, which keeps names short.

  Example:
    >>> workdir_named_after('configs/own.py:../data/photos/,structure=lora:4')
    'runs/own-data-photos-structure-lora-4'
  """
  path, _, arguments = config.partition(':')
  arguments = re.sub('[^=,]+', lambda found: os.path.relpath(found[0]), arguments)
  words = re.findall(r'\w[\w.]*', f'{pathlib.Path(path).stem} {arguments}')
  return os.path.join('runs', '-'.join(words))


def open_page(path: str) -> None:
  """Opens the page of a result in a browser, with `--open`."""
  if OPEN.value and not webbrowser.open(pathlib.Path(path).resolve().as_uri()):
    print(f'No browser could be started; open {path} by hand.', file=sys.stderr)


def catch_signals() -> Stop:
  """Makes SIGTERM and Ctrl-C a request to stop.

  Returns:
    A function that returns whether one has arrived. A second one ends the process at once.
  """
  asked = threading.Event()

  def handle(number, frame):
    signal.signal(number, signal.SIG_DFL)
    asked.set()
    # Not print: the signal may interrupt one.
    os.write(
      2,
      b'\nStopping after this step, once everything is saved (a compilation ends first); '
      b'repeat the signal to stop at once.\n',
    )

  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, handle)
  return asked.is_set


def load_config(value: str) -> ml_collections.ConfigDict:
  """Loads a config by name or file; arguments of its `get_config` follow a colon.

  Raises:
    ValueError: the file is missing, fails, or does not return a config.

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
    raise ValueError(_blame(error, path)) from error
  if type(config) is not ml_collections.ConfigDict:  # a frozen one cannot be changed
    raise ValueError(
      f'get_config() in {path} returned a {type(config).__name__}; return the config that '
      'glora_jax.vision.runs.config.default_config() makes, with your values.'
    )
  return config.lock()


def _blame(error: BaseException, path: str) -> str:
  """The message for an error in a config file, its author's mistake, with the line."""
  frames = traceback.extract_tb(error.__traceback__)
  lines = [frame.lineno for frame in frames if frame.filename == path]
  if lines and (isinstance(error, ValueError) or is_mistake(error)):
    return sentence(error)  # from one of our functions
  line = lines[-1] if lines else getattr(error, 'lineno', None)  # of a SyntaxError
  place = f', line {line},' if line else ''
  return f'{path}{place} fails: {traceback.format_exception_only(error)[-1].strip()}.'


def configs() -> dict[str, str]:
  """The paths of all configs of the package by name.

  Example:
    >>> 'quickstart' in configs()
    True
  """
  return {path.stem: str(path) for path in sorted(FOLDER.glob('*.py'))}


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
  known = configs()
  if name in known:
    return known[name]
  if name.endswith('.py') and os.path.isfile(name):
    return name
  near = difflib.get_close_matches(name, known, 1)
  raise ValueError(
    f"There is no config '{name}'{f' (did you mean {near[0]}?)' if near else ''}; give the path of "
    f'a .py file, or one of {", ".join(known)}.'
  )


def parse_flags(argv: Sequence[str]) -> list[str]:
  """Parses the flags; a flag for a page ends the command, and so does a mistake."""
  if len(argv) == 1:
    _show(GREETING)
  for page in filter(None, map(PAGES.get, argv)):
    logging.getLogger('glora_jax').setLevel(logging.ERROR)  # a page lists data without warnings
    _show(page())
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


def _show(page: str) -> NoReturn:
  """Prints a page and exits."""
  print(page)
  sys.exit(0)


def _explain(error: Exception) -> str:
  """A sentence about an error that parsing the flags raised."""
  if not isinstance(error, flags.Error):  # of ml_collections, with the closest name
    reason = error.__context__ or error
    text = '. '.join(str(reason.args[0]).splitlines())
    from glora_jax.vision.runs.fields import fields_called

    if full := fields_called(text.strip("'")):
      text += f'; fields of this name: {listed(full)}.'
    return f'The config has no such field: {text} (--help_config=all shows all fields.)'
  text = ' '.join(str(error).split())
  if text.startswith('flag --config='):
    return '--config is given twice; give it once.'
  is_unknown = isinstance(error, flags.UnrecognizedFlagError)
  return f'{text} (--help shows all flags.)' if is_unknown else text


def _configure_logging() -> None:
  """Shows this package's log, and keeps libraries from adding tracebacks to a sentence."""
  logging.basicConfig(level=logging.WARNING, format='%(message)s', stream=sys.stderr, force=True)
  logging.getLogger('glora_jax').setLevel(logging.DEBUG if DEBUG.value else logging.INFO)
  if DEBUG.value:
    return
  # An error in one of orbax's threads, a full disk for instance, reaches us as an exception and
  # becomes the message. The other threads fail for the same reason, but nothing catches their
  # errors: Python would print them through this hook, absl and asyncio through their loggers.
  sys.unraisablehook = lambda _: None
  for library in ('absl', 'asyncio'):
    logging.getLogger(library).setLevel(logging.CRITICAL)


def _help() -> str:
  """The description of the command, and its flags."""
  return (__doc__ or '') + flags.FLAGS.module_help(sys.modules[__name__])


def _help_needed() -> str:
  """The most common config fields: name, default, type, range, meaning."""
  from glora_jax.vision.runs.fields import NEEDED, describe

  return f'{describe(NEEDED)}\n\n--help_config=all shows all fields.'


def _help_all() -> str:
  """All config fields."""
  from glora_jax.vision.runs.fields import describe

  return describe()


def _list() -> str:
  """Everything that is available on this machine."""
  from glora_jax.vision.runs.look import inventory

  first_lines = {}
  for name, path in configs().items():
    docstring = ast.get_docstring(ast.parse(pathlib.Path(path).read_text('utf-8'))) or ''
    first_lines[name] = docstring.partition('\n')[0]
  return inventory(first_lines)


# Arguments that show a page and exit.
PAGES = {
  **dict.fromkeys(('--help', '-help', '-h', '-?', '--helpshort'), _help),
  '--help_config': _help_needed,
  '--help_config=all': _help_all,
  '--list': _list,
}


if __name__ == '__main__':
  command()
