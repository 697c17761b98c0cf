"""Prints what one device of several reads of a stream."""

import sys

import jax

from glora_jax.training.batches import batch_indices

assert jax.device_count() == int(sys.argv[1])
print(batch_indices(jax.random.key(7), int(sys.argv[2]), 20, 83, 8).tolist())
