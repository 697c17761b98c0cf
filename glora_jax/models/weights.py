"""Checkpoints of the ViT: `load` other people's, `refit` them to a task, `save` them back."""

import os

from glora_jax.models.load import Checkpoint, load
from glora_jax.models.refit import refit
from glora_jax.models.save import save

__all__ = ['EMBEDDED', 'EMBEDDED_FILE', 'Checkpoint', 'load', 'refit', 'save']

EMBEDDED = 'embedded'  # the name that configs give to the backbone in the package
EMBEDDED_FILE = os.path.join(os.path.dirname(__file__), 'fashion_mnist_vit.safetensors')
