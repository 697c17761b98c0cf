"""Calls an exported model on images, both in files, with plain JAX."""

import pathlib
import sys

import jax.export
import numpy as np

_, model, images, logits = sys.argv
exported = jax.export.deserialize(bytearray(pathlib.Path(model).read_bytes()))
np.save(logits, exported.call(np.load(images)))
assert 'glora_jax' not in sys.modules
