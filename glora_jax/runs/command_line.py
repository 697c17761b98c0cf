"""Flags, signals, and errors in one sentence: what all commands with a config share."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable

from absl import app, flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Python file with get_config(); override its fields with --config.FIELD=VALUE.'
)
WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Where everything is written; runs/NAME_OF_CONFIG by default.'
)
OUTPUT = flags.DEFINE_string('output', 'batch.png', 'Picture that glora_jax.data.show writes.')
STOPPED = 75  # exit code
DEBUG = flags.DEFINE_bool('debug', False, 'Show the traceback of an error.')


def catch_signals() -> Callable[[], bool]:
  """From now on the first SIGTERM or Ctrl-C only makes what this returns say True; another one of its kind ends the process at once."""
  asked = threading.Event()

  def handle(number, frame):
    signal.signal(number, signal.SIG_DFL)
    asked.set()
    os.write(2, b'\nStopping as soon as all is saved; once more, and it stops at once.\n')

  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, handle)
  return asked.is_set


def run_with_config(job: Callable) -> None:
  """Calls `job(config)` with the config of the command line; a user's mistake ends in one sentence."""
  flags.mark_flag_as_required('config')

  def parse(argv):
    # ml_collections prints a traceback of its own for a config file that is not there.
    given = [
      argument.removeprefix('--config=') for argument in argv if argument.startswith('--config=')
    ]
    given += [
      following for argument, following in itertools.pairwise(argv) if argument == '--config'
    ]
    for path in given:
      if not os.path.isfile(path.split(':')[0]):
        sys.exit(
          f'error: there is no config file {path.split(":")[0]}; the ones that come with the project are in configs/.'
        )
    try:
      return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
      said = str(error.args[0] if error.args else error).strip().splitlines()
      sys.exit(f'error: {said[-1]}')  # ml_collections puts a whole traceback into the text of some

  def guarded(argv):
    if len(argv) > 1:
      sys.exit(
        f'error: unknown arguments {argv[1:]}; fields of the config are given as --config.FIELD=VALUE.'
      )
    logging.basicConfig(format='%(message)s', level=logging.WARNING, stream=sys.stderr, force=True)
    logging.getLogger('glora_jax').setLevel(logging.INFO)
    if not DEBUG.value:
      # Of an error that orbax's threads have met, and that reaches us as an exception, its other threads print tracebacks.
      sys.unraisablehook = lambda _: None
      for library in ('absl', 'asyncio'):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    try:
      job(CONFIG.value)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
      if DEBUG.value:
        raise
      sys.exit(f'error: {error}\n(--debug shows where.)')

  app.run(guarded, flags_parser=parse)
