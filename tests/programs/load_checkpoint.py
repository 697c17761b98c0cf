"""Prints the logits of a checkpoint on images in an npy file, and its metadata, as JSON."""

import json
import sys

import jax
import numpy as np

from glora_jax.models import weights

_, checkpoint, images = sys.argv
model, params, metadata = weights.load(checkpoint)
logits = np.asarray(jax.jit(model.apply)({'params': params}, np.load(images)))
print(json.dumps([logits.tolist(), metadata]))
