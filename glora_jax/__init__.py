"""GLoRA (arXiv 2306.07967) for JAX and Flax: adapt any model, train a supernet, search a subnet, fold it away."""

from glora_jax import nnx
from glora_jax.method.adapt import adapt
from glora_jax.method.adapted import Adapted, Subnet
from glora_jax.method.adapter_file import load_adapter, save_adapter
from glora_jax.method.equation import effective, init_supports
from glora_jax.method.genomes import (
  canonicalize,
  count_params,
  genome_from_json,
  genome_to_json,
  random_genomes,
  sample_genome,
)
from glora_jax.method.presets import custom_genome, preset, presets
from glora_jax.method.space import Layer, SearchSpace, Spec
from glora_jax.models.official import load_official_supernet
from glora_jax.search.archive import Archive
from glora_jax.search.evolution import Evolution, evolve
from glora_jax.search.scoring import make_scorer, score
from glora_jax.training.loop import fit
from glora_jax.training.losses import Consistency, Sampling, subnet_loss, supernet_loss
from glora_jax.training.recipe import Recipe
from glora_jax.training.side_by_side import Training, subnet_runs, train_many

__version__ = '0.1.0'

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
  'Subnet',
  'Training',
  'adapt',
  'canonicalize',
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
  'preset',
  'presets',
  'random_genomes',
  'sample_genome',
  'save_adapter',
  'score',
  'subnet_loss',
  'subnet_runs',
  'supernet_loss',
  'train_many',
]
