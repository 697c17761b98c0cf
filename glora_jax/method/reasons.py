"""Why no row stands for a matrix, as what follows its name in a sentence."""

from __future__ import annotations

HEAD = 'is trained in full'
NOT_SELECTED = 'is not selected'
LOOKED_UP = 'is looked up by an index (an embedding)'
ITEM_BY_ITEM = 'meets activations item by item, in no product'
CONVOLUTION = 'is the kernel of a convolution; convs=True adapts it'
AN_INPUT = 'meets kernels in the place of activations'
UNUSED = 'is not used in the call'
NO_MODULE = (
  'is used like a linear layer, but by none of the modules that glora_jax.adapt knows; '
  'glora_jax.adapt_function adapts it'
)
NO_SAMPLE = 'is in no linear layer that is found without sample inputs'

# What a user has chosen, and what is no linear layer to anybody; there are other reasons besides.
CHOSEN = (HEAD, NOT_SELECTED)
ORDINARY = (LOOKED_UP, ITEM_BY_ITEM, CONVOLUTION, AN_INPUT, UNUSED)
