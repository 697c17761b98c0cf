"""GLoRA on Flax NNX models that stay alive: instances of their classes, with all their state."""

from glora_jax.nnx.attach import attach, fix, load
from glora_jax.nnx.functional import params, with_params
from glora_jax.nnx.live import (
  as_adapted,
  load_adapter,
  save_adapter,
  set_genome,
  set_variables,
  shard,
  summary,
)
from glora_jax.nnx.owners import fold
from glora_jax.nnx.variables import AdapterParam, Genome, Head, Trained

__all__ = [
  'AdapterParam',
  'Genome',
  'Head',
  'Trained',
  'as_adapted',
  'attach',
  'fix',
  'fold',
  'load',
  'load_adapter',
  'params',
  'save_adapter',
  'set_genome',
  'set_variables',
  'shard',
  'summary',
  'with_params',
]
