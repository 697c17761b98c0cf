"""GLoRA on Flax NNX models, through the same pure functions.

Knows the method, and nothing of images or runs.
"""

from glora_jax.nnx.functional import adapt, params, with_params

__all__ = ['adapt', 'params', 'with_params']
