"""`tiny=True` behind a config's name: the same job small, to see that it starts."""

from __future__ import annotations

import ml_collections

from glora_jax.models.weights import EMBEDDED


def shrink(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Makes a config of `default_config` start in seconds; what it finds is worth nothing.

  Few epochs, one generation of four subnets, two methods of a comparison, the backbone that comes
  with the package. Task and structure stay, and so do the images, which are not stored decoded.

  Args:
    config: a config, which is changed.

  Returns:
    The same config.

  Example:
    >>> from glora_jax.runs.config import check_config, default_config
    >>> check_config(shrink(default_config())).supernet.epochs
    4
  """
  config.model.weights = EMBEDDED
  config.data.cache = None
  for recipe in (config.supernet, config.training):
    recipe.update(epochs=4, warmup_epochs=0)  # head and gradient count as three
  config.allocation.update(head_epochs=1, folds=2)
  config.search.update(population=4, generations=1, parents=2, mutations=2, crossovers=2)
  config.finetune.update(epochs=1, warmup_epochs=0)
  config.compare.update(methods=('linear', 'lora:2'), seeds=1)
  return config
