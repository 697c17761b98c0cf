"""Which errors are a user's mistakes, and the sentence about each."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Sequence

from absl import flags

from glora_jax.files import first_line
from glora_jax.limits import printable

# Whose text is a sentence for the user, where `is_mistake` says so.
MISTAKES = (ValueError, OSError, ImportError, RuntimeError, MemoryError)
_MEMORY = 'RESOURCE_EXHAUSTED'  # as XLA says it
_LOST = re.compile(r'Gloo .*(closed|reset) by peer', re.DOTALL)  # of several processes one is gone
_OF_JAX = ('JaxRuntimeError', 'XlaRuntimeError')


def is_mistake(error: BaseException) -> bool:
  """Whether an error is a user's mistake, or the machine's, and not a fault of this package.

  JAX's own errors are faults, unless memory is short or another process is gone.
  """
  if not isinstance(error, MISTAKES):
    return False
  if type(error).__name__ not in _OF_JAX:
    return True
  return _MEMORY in str(error) or _LOST.search(str(error)) is not None


def sentence(error: BaseException) -> str:
  """What a user is told of a mistake, in one line.

  Example:
    >>> sentence(PermissionError(13, 'Permission denied', '/data'))
    '/data cannot be read or written (Permission denied).'
  """
  text = str(error).strip() or type(error).__name__
  if isinstance(error, MemoryError) or _MEMORY in text:
    return f'There is too little memory ({first_line(text)}); take less at once, or more memory.'
  if _LOST.search(text):
    return (
      f'Another process of this run has ended ({first_line(text)}); start all of them again with '
      'the same command, and the run goes on.'
    )
  return explain_os(error) if isinstance(error, OSError) else text


def explain_os(error: OSError) -> str:
  """A sentence about what the system refused: the file and the reason, without a number."""
  if error.strerror is None:
    return str(error)
  if error.filename is None:
    return f'A file or a stream cannot be read or written ({error.strerror}).'
  return f'{printable(str(error.filename))} cannot be read or written ({error.strerror}).'


def explain(error: BaseException, config_files: Sequence[str]) -> str | None:
  """What to tell the user of an error that parsing the flags has raised.

  A config file is a program, so whatever it raises is its author's mistake and is told with its
  line. What comes from elsewhere is a fault of this package.

  Args:
    error: the error.
    config_files: paths of the config files of the command line.

  Returns:
    A sentence; None where neither the command line nor a config file is to blame.
  """
  cause: BaseException = error
  # ml_collections puts the traceback of what a config file raises into the text of its own error.
  while 'parsing config file' in str(cause) and cause.__context__ is not None:
    cause = cause.__context__
  for path in config_files:
    if (text := _blame_config_file(cause, path)) is not None:
      return text
  if isinstance(error, flags.IllegalFlagValueError):
    return _wrong_value(str(error))
  if isinstance(error, AttributeError | KeyError):
    name = re.match(r"\W*'(\w+)\W*'", str(error))
    return name and f"The config has no field '{name[1]}'. --help_config lists all of them."
  if isinstance(error, flags.UnrecognizedFlagError):
    return f'{_last_line(error)} (--help shows all flags, --help_config all fields).'
  if isinstance(error, OSError):
    return explain_os(error)
  return _last_line(error) if isinstance(error, flags.Error | TypeError | ValueError) else None


def _blame_config_file(error: BaseException, path: str) -> str | None:
  """The sentence where a config file is to blame."""
  if isinstance(error, SyntaxError) and error.filename in (path, None):
    place = '' if error.lineno is None else f', line {error.lineno},'
    return f'{path}{place} is no Python ({error.msg}).'
  frames = traceback.extract_tb(error.__traceback__)
  lines = [frame.lineno for frame in frames if frame.filename == path]
  is_pythons_own = isinstance(error, ImportError) and error.name is not None
  if lines and isinstance(error, ValueError | OSError | ImportError) and not is_pythons_own:
    return str(error)  # a sentence of our own functions
  if lines:
    return f'{path}, line {lines[-1]}, fails with {type(error).__name__} ({_last_line(error)}).'
  is_missing = isinstance(error, AttributeError) and "no attribute 'get_config'" in str(error)
  if is_missing or (isinstance(error, TypeError) and 'is not callable' in str(error)):
    return f'{path} has no function get_config, which returns the config.'
  if isinstance(error, TypeError) and 'get_config()' in str(error):
    return f'{path} takes no such arguments behind its name ({_last_line(error)}).'
  # What the file returned has no fields for ml_collections, or none that can be changed.
  raised_in = os.path.basename(frames[-1].filename) if frames else ''
  returned = None
  if raised_in == 'config_path.py' and isinstance(error, KeyError | TypeError | AttributeError):
    returned = 'something without this field'
  elif raised_in == 'config_dict.py' and 'FrozenConfigDict is immutable' in str(error):
    returned = 'a FrozenConfigDict'
  return returned and (
    f'{path} returned {returned}; it must return the config that '
    'glora_jax.runs.config.default_config() gives, changed.'
  )


def _wrong_value(text: str) -> str:
  """The sentence about a value that cannot be a field's, with what the field takes."""
  given = re.match(r'flag (--config\.([\w.]+)=.*?): ', text, re.DOTALL)
  if given is None:
    return _last_line(text)
  # It imports JAX, for which a command line without mistakes does not wait.
  from glora_jax.runs import config, schema

  known = dict(schema.walk(config.RunSettings()))
  if given[2] not in known:
    return f'{given[1]}: {given[2]} is a section; give its fields, --config.{given[2]}.FIELD=VALUE.'
  setting = known[given[2]]
  end = '' if setting.help.endswith(('.', ')')) else '.'
  return f'{given[1]} must be {setting.domain}: {setting.help}{end}'


def _last_line(reason: object) -> str:
  return (str(reason).strip().splitlines() or ['without a reason'])[-1]
