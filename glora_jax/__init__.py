"""GLoRA (arXiv 2306.07967) for JAX and Flax: adapt a model, train a structure, fold it away.

The public names are listed in `__init__.pyi`, which type checkers and editors read as it is. This
file reads it too, and imports each name at its first use: `import glora_jax` loads no JAX.
"""

import importlib
from typing import Any

__version__ = '0.3.0'

with open(__file__.removesuffix('.py') + '.pyi', encoding='utf-8') as stub:
  # `from MODULE import NAME as NAME`, line by line: parsing it with `ast` would take longer.
  lines = [line.split() for line in stub if line.startswith('from ')]
_HOMES = {name: module for _, module, _, name, *_ in lines}
del stub, lines
__all__ = [name for name in _HOMES if name != 'torch']  # which needs an extra


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
