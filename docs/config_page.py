"""The page of all config fields, from the declarations that check them."""

from glora_jax.vision.runs import config, schema
from glora_jax.vision.settings import expected

HEAD = """# Config fields

Override any field on the command line: `--config.training.epochs=10`. `python -m glora_jax.main
--help_config=all` prints the same list. All fields are checked before training starts.
"""


def text() -> str:
  """The page, in MyST Markdown."""
  lines = [HEAD]
  for prefix, summary, fields in schema.sections(config.RunSettings()):
    if prefix:
      lines += ['', f'{"#" * (1 + prefix.count("."))} `{prefix}*`', '', summary]
    lines += ['', '| field | default | type and range | meaning |', '|---|---|---|---|']
    for name, info, value in fields:
      default = '(empty)' if value in ('', ()) else f'`{value}`'
      cells = (f'`{name}`', default, expected(info), info.description)
      lines.append('| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |')
  return '\n'.join(lines)
