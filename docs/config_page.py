"""The page of all config fields, from the declarations that check them."""

from glora_jax.vision.runs.fields import sections
from glora_jax.vision.runs.settings import RunSettings

HEAD = """# Config fields

Override any field on the command line: `--config.training.epochs=10`. `python -m glora_jax.main
--help_config=all` prints the same list. All fields are checked before training starts.
"""


def text() -> str:
  """The page, in MyST Markdown."""
  lines = [HEAD]
  for prefix, summary, fields in sections(RunSettings()):
    if prefix:
      lines += ['', f'{"#" * (1 + prefix.count("."))} `{prefix}*`', '', summary]
    lines += ['', '| field | default | type and range | meaning |', '|---|---|---|---|']
    for field in fields:
      default = '(empty)' if field.value in ('', ()) else f'`{field.value}`'
      cells = (f'`{field.name}`', default, field.expected, field.meaning)
      lines.append('| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |')
  return '\n'.join(lines)
