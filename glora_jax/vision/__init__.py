"""The application: images, vision backbones, and runs from a config to a page.

The library, which is everything else in `glora_jax`, imports nothing from here and needs fewer
packages.
"""

import importlib.metadata
import re

from glora_jax.errors import MissingPackageError


def _require_packages() -> None:
  """Raises MissingPackageError unless all packages of the extra `vision` are installed."""
  try:
    requirements = importlib.metadata.requires('glora_jax') or ()
  except importlib.metadata.PackageNotFoundError:  # a clone on the path, but not installed
    return
  for requirement in requirements:
    if 'extra == "vision"' not in requirement:
      continue
    name = re.split(r'[^\w.-]', requirement)[0]
    try:
      importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
      raise MissingPackageError(
        f'glora_jax.vision and the commands need {name}, which is not installed; in the clone run '
        "pip install -e '.[vision]'"
      ) from None


_require_packages()
