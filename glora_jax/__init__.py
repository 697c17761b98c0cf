"""GLoRA (arXiv 2306.07967) for JAX and Flax: adapt a model, find a subnet, train it, fold it away.

Every name is imported on its first use, so that `import glora_jax` takes no time of its own.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors; `_HOMES` says the same to Python
  from glora_jax import nnx
  from glora_jax.method.adapt import adapt, adapt_function
  from glora_jax.method.adapted import Adapted, Subnet
  from glora_jax.method.adapter_file import load_adapter, save_adapter
  from glora_jax.method.check import Check, check
  from glora_jax.method.draws import random_genomes, sample_genome
  from glora_jax.method.equation import effective
  from glora_jax.method.genomes import canonicalize, count_params, genome_from_json, genome_to_json
  from glora_jax.method.presets import (
    check_preset_name,
    custom_genome,
    preset,
    preset_label,
    presets,
  )
  from glora_jax.method.sharding import shard
  from glora_jax.method.space import Layer, SearchSpace, Spec
  from glora_jax.method.supports import init_supports
  from glora_jax.models.official import load_official_supernet
  from glora_jax.runs.planning.plan import plan
  from glora_jax.search.allocate import allocate
  from glora_jax.search.allocated import Allocation
  from glora_jax.search.archive import Archive
  from glora_jax.search.evolution import Evolution, evolve
  from glora_jax.search.scoring import make_scorer, score
  from glora_jax.training.consistency import Consistency
  from glora_jax.training.head_alone import warm_head
  from glora_jax.training.loop import fit
  from glora_jax.training.losses import subnet_loss, supernet_loss
  from glora_jax.training.recipe import Recipe
  from glora_jax.training.sampling import Sampling
  from glora_jax.training.side_by_side import Training, subnet_runs, train_many

__version__ = '0.3.0'

_HOMES = {
  'glora_jax.method.adapt': ('adapt', 'adapt_function'),
  'glora_jax.method.adapted': ('Adapted', 'Subnet'),
  'glora_jax.method.adapter_file': ('load_adapter', 'save_adapter'),
  'glora_jax.method.check': ('Check', 'check'),
  'glora_jax.method.draws': ('random_genomes', 'sample_genome'),
  'glora_jax.method.equation': ('effective',),
  'glora_jax.method.genomes': (
    'canonicalize',
    'count_params',
    'genome_from_json',
    'genome_to_json',
  ),
  'glora_jax.method.presets': (
    'check_preset_name',
    'custom_genome',
    'preset',
    'preset_label',
    'presets',
  ),
  'glora_jax.method.sharding': ('shard',),
  'glora_jax.method.space': ('Layer', 'SearchSpace', 'Spec'),
  'glora_jax.method.supports': ('init_supports',),
  'glora_jax.models.official': ('load_official_supernet',),
  'glora_jax.runs.planning.plan': ('plan',),
  'glora_jax.search.allocate': ('allocate',),
  'glora_jax.search.allocated': ('Allocation',),
  'glora_jax.search.archive': ('Archive',),
  'glora_jax.search.evolution': ('Evolution', 'evolve'),
  'glora_jax.search.scoring': ('make_scorer', 'score'),
  'glora_jax.training.consistency': ('Consistency',),
  'glora_jax.training.head_alone': ('warm_head',),
  'glora_jax.training.loop': ('fit',),
  'glora_jax.training.losses': ('subnet_loss', 'supernet_loss'),
  'glora_jax.training.recipe': ('Recipe',),
  'glora_jax.training.sampling': ('Sampling',),
  'glora_jax.training.side_by_side': ('Training', 'subnet_runs', 'train_many'),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
  'Adapted',
  'Allocation',
  'Archive',
  'Check',
  'Consistency',
  'Evolution',
  'Layer',
  'Recipe',
  'Sampling',
  'SearchSpace',
  'Spec',
  'Subnet',
  'Training',
  'adapt',
  'adapt_function',
  'allocate',
  'canonicalize',
  'check',
  'check_preset_name',
  'count_params',
  'custom_genome',
  'effective',
  'evolve',
  'fit',
  'genome_from_json',
  'genome_to_json',
  'init_supports',
  'load_adapter',
  'load_official_supernet',
  'make_scorer',
  'nnx',
  'plan',
  'preset',
  'preset_label',
  'presets',
  'random_genomes',
  'sample_genome',
  'save_adapter',
  'score',
  'shard',
  'subnet_loss',
  'subnet_runs',
  'supernet_loss',
  'train_many',
  'warm_head',
]


def __getattr__(name: str) -> Any:
  """Imports a public name at its first use, and keeps it."""
  if name == 'nnx':
    return importlib.import_module('glora_jax.nnx')
  if name not in _HOME_OF:
    raise AttributeError(f"module 'glora_jax' has no attribute '{name}'")
  value = getattr(importlib.import_module(_HOME_OF[name]), name)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  """All public names, also those that are not imported yet."""
  return sorted({*globals(), *__all__})
