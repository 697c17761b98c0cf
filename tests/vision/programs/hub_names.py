"""Prints for each name on the hub what `weights.load` makes of it, as JSON."""

import json
import os
import sys

from glora_jax import hub
from glora_jax.vision.models import weights
from glora_jax.vision.models.checkpoint import HUB_FILES


def outcome(name):
  try:
    folder = hub.snapshot(name, HUB_FILES)
    model, _, metadata = weights.load(name)
  except (OSError, ValueError, ImportError) as error:
    return [type(error).__name__, str(error)]
  return [os.path.basename(folder), model.width, metadata['normalization']]


print(json.dumps([outcome(name) for name in sys.argv[1:]]))
