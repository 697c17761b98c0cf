"""Why a matrix is not adapted, in the few words that stand in brackets behind its name."""

from __future__ import annotations

HEAD = 'trained in full'
NOT_SELECTED = 'not selected'
LOOKED_UP = 'embedding lookup'
ITEM_BY_ITEM = 'not a matmul'
CONVOLUTION = 'convolution; use convs=True'
AN_INPUT = 'used as an input of other weights'
UNUSED = 'not used'
NO_MODULE = 'matmul outside the known modules; use glora_jax.adapt_function'
NO_SAMPLE = 'not in a known module; pass sample inputs'

# What a user has chosen, and what is no linear layer to anybody; there are other reasons besides.
CHOSEN = (HEAD, NOT_SELECTED)
ORDINARY = (LOOKED_UP, ITEM_BY_ITEM, CONVOLUTION, AN_INPUT, UNUSED)
