"""GLoRA (arXiv 2306.07967) for JAX and Flax: adapt any model, train a supernet, search a subnet, fold it away."""

from glora_jax import nnx
from glora_jax.adapt import Adapted, Subnet, adapt
from glora_jax.checkpoint import load_adapter, load_official_supernet, save_adapter
from glora_jax.many import Training, subnet_runs, train_many
from glora_jax.reparam import effective, init_supports
from glora_jax.scoring import make_scorer, score
from glora_jax.search import Archive, Evolution, evolve
from glora_jax.space import (
    Layer,
    SearchSpace,
    Spec,
    canonicalize,
    count_params,
    custom_genome,
    genome_from_json,
    genome_to_json,
    preset,
    presets,
    random_genomes,
    sample_genome,
)
from glora_jax.supernet import Consistency, Sampling, subnet_loss, supernet_loss
from glora_jax.training import Recipe, fit

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
