"""GLoRA (arXiv 2306.07967) for JAX and Flax: adapt a model, train a structure, fold it away.

Every name is imported on its first use, so that `import glora_jax` takes no time of its own.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors; `_HOMES` says the same to Python
  from glora_jax import nnx, serve
  from glora_jax.method.adapt import adapt, adapt_function
  from glora_jax.method.adapted import Adapted
  from glora_jax.method.adapter_file import load_adapter, save_adapter
  from glora_jax.method.check import check
  from glora_jax.method.combine import combine
  from glora_jax.method.draws import random_genomes, sample_genome
  from glora_jax.method.genomes import count_params, genome_from_json, genome_to_json
  from glora_jax.method.presets import preset, presets
  from glora_jax.method.sharding import shard
  from glora_jax.method.space import Layer, SearchSpace, Spec
  from glora_jax.search.allocate import allocate
  from glora_jax.search.archive import Archive
  from glora_jax.search.evolution import Evolution, evolve
  from glora_jax.search.scoring import make_scorer
  from glora_jax.training.consistency import Consistency
  from glora_jax.training.head_alone import warm_head
  from glora_jax.training.loop import fit
  from glora_jax.training.losses import make_loss
  from glora_jax.training.recipe import Recipe
  from glora_jax.training.sampling import Sampling
  from glora_jax.vision.models.official import load_official_supernet

__version__ = '0.3.0'

_HOMES = {
  'glora_jax.method.adapt': (
    'adapt',
    'adapt_function',
  ),
  'glora_jax.method.adapted': ('Adapted',),
  'glora_jax.method.adapter_file': (
    'load_adapter',
    'save_adapter',
  ),
  'glora_jax.method.check': ('check',),
  'glora_jax.method.combine': ('combine',),
  'glora_jax.method.draws': (
    'random_genomes',
    'sample_genome',
  ),
  'glora_jax.method.genomes': (
    'count_params',
    'genome_from_json',
    'genome_to_json',
  ),
  'glora_jax.method.presets': (
    'preset',
    'presets',
  ),
  'glora_jax.method.sharding': ('shard',),
  'glora_jax.method.space': (
    'Layer',
    'SearchSpace',
    'Spec',
  ),
  'glora_jax.vision.models.official': ('load_official_supernet',),
  'glora_jax.search.allocate': ('allocate',),
  'glora_jax.search.archive': ('Archive',),
  'glora_jax.search.evolution': ('Evolution', 'evolve'),
  'glora_jax.search.scoring': ('make_scorer',),
  'glora_jax.training.consistency': ('Consistency',),
  'glora_jax.training.head_alone': ('warm_head',),
  'glora_jax.training.loop': ('fit',),
  'glora_jax.training.losses': ('make_loss',),
  'glora_jax.training.recipe': ('Recipe',),
  'glora_jax.training.sampling': ('Sampling',),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
  'Adapted',
  'Archive',
  'Consistency',
  'Evolution',
  'Layer',
  'Recipe',
  'Sampling',
  'SearchSpace',
  'Spec',
  'adapt',
  'adapt_function',
  'allocate',
  'check',
  'combine',
  'count_params',
  'evolve',
  'fit',
  'genome_from_json',
  'genome_to_json',
  'load_adapter',
  'load_official_supernet',
  'make_loss',
  'make_scorer',
  'nnx',
  'preset',
  'presets',
  'random_genomes',
  'sample_genome',
  'save_adapter',
  'serve',
  'shard',
  'warm_head',
]


def __getattr__(name: str) -> Any:
  """Imports a public name at its first use, and keeps it."""
  if name in ('nnx', 'serve'):
    return importlib.import_module(f'glora_jax.{name}')
  if name not in _HOME_OF:
    raise AttributeError(f"module 'glora_jax' has no attribute '{name}'")
  value = getattr(importlib.import_module(_HOME_OF[name]), name)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  """All public names, also those that are not imported yet."""
  return sorted({*globals(), *__all__})
