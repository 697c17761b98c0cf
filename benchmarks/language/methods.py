"""The methods that are compared, and the names of the tasks."""

from typing import Any

import glora_jax

RANK = 8
LORA, ATTENTION, VECTORS, GRADIENT = 'lora:8', 'lora:8@attn', 'vectors of A', 'gradient'
METHODS = (LORA, ATTENTION, VECTORS, GRADIENT)
STRUCTURES: dict[str, Any] = {  # Llama has no biases
  LORA: f'lora:{RANK}',
  ATTENTION: f'lora:{RANK}@attn',
  VECTORS: {'': {'A': 'vector'}},
}
SPACE = glora_jax.SearchSpace(  # `allocate` gives a layer at most twice the rank of all
  ranks=tuple(range(1, 2 * RANK + 1)), A=('none', 'vector'), C='none', D='none', E='none'
)
MOOD, DOCUMENTATION = 'mood', 'documentation'
UNTRAINED = 'untrained'
