"""The public names: for type checkers, editors, and `__init__.py`, which reads this file."""

from glora_jax import nnx as nnx
from glora_jax import peft as peft
from glora_jax import torch as torch
from glora_jax.loading import load as load
from glora_jax.method.adapt import adapt as adapt
from glora_jax.method.adapt import adapt_function as adapt_function
from glora_jax.method.adapted import Adapted as Adapted
from glora_jax.method.adapter_file import load_adapter as load_adapter
from glora_jax.method.adapter_file import save_adapter as save_adapter
from glora_jax.method.check import check as check
from glora_jax.method.combine import combine as combine
from glora_jax.method.draws import random_genomes as random_genomes
from glora_jax.method.draws import sample_genome as sample_genome
from glora_jax.method.extend import extend as extend
from glora_jax.method.forward import Forward as Forward
from glora_jax.method.genomes import count_params as count_params
from glora_jax.method.genomes import genome_from_json as genome_from_json
from glora_jax.method.genomes import genome_to_json as genome_to_json
from glora_jax.method.presets import preset as preset
from glora_jax.method.presets import presets as presets
from glora_jax.method.quantized import requantize as requantize
from glora_jax.method.sharding import shard as shard
from glora_jax.method.space import Layer as Layer
from glora_jax.method.space import SearchSpace as SearchSpace
from glora_jax.method.space import Spec as Spec
from glora_jax.search.allocate import allocate as allocate
from glora_jax.search.archive import Archive as Archive
from glora_jax.search.choice import choose as choose
from glora_jax.search.evolution import Evolution as Evolution
from glora_jax.search.evolution import evolve as evolve
from glora_jax.search.scoring import make_scorer as make_scorer
from glora_jax.serve import Pool as Pool
from glora_jax.torch_files import save_folded as save_folded
from glora_jax.training.consistency import Consistency as Consistency
from glora_jax.training.fit import fit as fit
from glora_jax.training.fit import linear_probe as linear_probe
from glora_jax.training.looks import evaluate as evaluate
from glora_jax.training.loop import TrainState as TrainState
from glora_jax.training.losses import classification as classification
from glora_jax.training.recipe import Recipe as Recipe
from glora_jax.training.sampling import Sampling as Sampling
from glora_jax.training.sweep import Sweep as Sweep
from glora_jax.training.sweep import sweep as sweep

__version__: str
