"""GLoRA (arXiv 2306.07967) for JAX and Flax: adapt a model, train a structure, fold it away.

The public names are listed in `__init__.pyi`, which type checkers and editors read as it is. This
file reads it too, and imports each name at its first use: `import glora_jax` loads no JAX.
"""

import ast
import importlib
import pathlib
from typing import Any

__version__ = '0.3.0'

_STUB = pathlib.Path(__file__).with_suffix('.pyi').read_text(encoding='utf-8')
_HOMES = {
  name.name: line.module
  for line in ast.parse(_STUB).body
  if isinstance(line, ast.ImportFrom) and line.module
  for name in line.names
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
  """Imports a public name at its first use, and keeps it."""
  if name not in _HOMES:
    raise AttributeError(f"module 'glora_jax' has no attribute '{name}'")
  home = _HOMES[name]
  if home == 'glora_jax':  # the name is a module
    return importlib.import_module(f'glora_jax.{name}')
  value = getattr(importlib.import_module(home), name)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  """The public names, also those that are not imported yet."""
  return __all__
