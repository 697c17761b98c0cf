"""What is wrong with a command line or a config file, in one sentence.

A config file is a program, so whatever it raises is its author's mistake and is told with its line.
What comes from elsewhere is a fault of this package, and has no sentence here.
"""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Sequence

from absl import flags

from glora_jax.runs import front_page
from glora_jax.runs.mistakes import explain_os

_LOOKUPS = (KeyError, TypeError, AttributeError)  # that fail
_SENTENCES = (ValueError, OSError, ImportError)  # whose text is a sentence of our own functions


def explain(error: BaseException, config_files: Sequence[str]) -> str | None:
  """What to tell the user of an error that parsing the flags has raised.

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
    if (sentence := _blame_config_file(cause, path)) is not None:
      return sentence
  if isinstance(error, AttributeError | KeyError):
    return _unknown_field(error)
  if isinstance(error, flags.UnrecognizedFlagError):
    return _unknown_flag(error.flagname)
  if isinstance(error, flags.IllegalFlagValueError):
    return _wrong_value(str(error))
  if isinstance(error, OSError):
    return explain_os(error)
  if isinstance(error, flags.Error | TypeError | ValueError):
    return _last_line(str(error))
  return None


def _blame_config_file(error: BaseException, path: str) -> str | None:
  """The sentence where a config file is to blame."""
  if isinstance(error, SyntaxError) and error.filename in (path, None):
    place = '' if error.lineno is None else f', line {error.lineno},'
    return f'{path}{place} is no Python ({error.msg}).'
  lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if _is(frame, path)]
  is_pythons_own = isinstance(error, ImportError) and error.name is not None
  if lines and isinstance(error, _SENTENCES) and not is_pythons_own:
    return str(error)
  if lines:
    reason = f'{type(error).__name__} ({_last_line(str(error))})'
    return f'{path}, line {lines[-1]}, fails with {reason}.'
  is_missing = isinstance(error, AttributeError) and "no attribute 'get_config'" in str(error)
  if is_missing or (isinstance(error, TypeError) and 'is not callable' in str(error)):
    return f'{path} has no function get_config, which returns the config.'
  if isinstance(error, TypeError) and 'get_config()' in str(error):
    return f'{path} takes no such arguments behind its name ({_last_line(str(error))}).'
  if (returned := _what_is_no_config(error)) is not None:
    return (
      f'{path} returned {returned}; it must return the config that '
      'glora_jax.runs.config.default_config() gives, changed.'
    )
  return None


def _is(frame: traceback.FrameSummary, path: str) -> bool:
  return frame.filename == path


def _what_is_no_config(error: BaseException) -> str | None:
  """What a config file returned that ml_collections has no fields of, or cannot change."""
  frames = traceback.extract_tb(error.__traceback__)
  raised_in = frames[-1].filename if frames else ''
  if raised_in.endswith('config_path.py') and isinstance(error, _LOOKUPS):
    return 'something without this field'
  if raised_in.endswith('config_dict.py') and 'FrozenConfigDict is immutable' in str(error):
    return 'a FrozenConfigDict'
  return None


def _unknown_flag(name: str) -> str:
  """The sentence about a flag that there is not, with the nearest one that there is."""
  # It imports JAX, for which a command line without mistakes does not wait.
  from glora_jax.runs import config, schema

  fields = [field for field, _ in schema.walk(config.RunSettings())]
  known = {name: name for name in front_page.own_flags()}
  known |= {field: f'config.{field}' for field in fields}
  known |= {f'config.{field}': f'config.{field}' for field in fields}
  near = difflib.get_close_matches(name, known, n=1)
  hint = f'; did you mean --{known[near[0]]}?' if near else '.'
  return f'There is no flag --{name}{hint} --help shows all flags, --help_config all fields.'


def _unknown_field(error: Exception) -> str | None:
  """The sentence about a field that a config does not have, from the error of ml_collections."""
  text = str(error.args[0].args[0] if _wraps_another(error) else error.args[0])
  name = re.match(r"'(\w+)'", text)
  if name is None:
    return None
  near = re.search(r'Did you mean "(\w+)"', text)
  hint = f"; did you mean '{near[1]}'?" if near else '.'
  return f"The config has no field '{name[1]}'{hint} --help_config lists all of them."


def _wraps_another(error: Exception) -> bool:
  return bool(error.args) and isinstance(error.args[0], Exception)


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


def _last_line(text: str) -> str:
  return (text.strip().splitlines() or ['without a reason'])[-1]
