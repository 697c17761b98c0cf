"""The page of all config fields, from the schema that checks them."""

import inspect

from glora_jax.runs import config, schema

HEAD = """# Config fields

Every field can be overridden on the command line: `--config.supernet.epochs=10`. The same list
is printed by `python -m glora_jax.main --help_config`. What cannot be is refused before anything
starts.
"""


def text() -> str:
  """The page, in MyST Markdown."""
  return HEAD + '\n'.join(_section(config.RunSettings(), '', {}))


def _section(defaults, prefix, within):
  """A table of the section's fields, then the sections within it."""
  inner = []
  yield from ('', '| field | default | type and range | meaning |', '|---|---|---|---|')
  for setting in schema.settings_of(defaults, within):
    if setting.is_section:
      inner.append(setting)
    else:
      default = '(empty)' if setting.default in ('', ()) else f'`{setting.default}`'
      cells = (f'`{prefix}{setting.name}`', default, str(setting.domain), setting.help)
      yield '| ' + ' | '.join(_cell(each) for each in cells) + ' |'
  for setting in inner:
    name = f'{prefix}{setting.name}.'
    summary = (inspect.getdoc(setting.domain.kind) or '').partition('\n\n')[0]
    yield from ('', f'{"#" * (1 + name.count("."))} `{name}*`', '', ' '.join(summary.split()))
    yield from _section(setting.default, name, setting.within)


def _cell(words: str) -> str:
  return ' '.join(words.split()).replace('|', '\\|')
