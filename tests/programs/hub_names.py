"""Prints for each name on the hub what `weights.load` makes of it, as JSON."""

import json
import sys

from glora_jax import hub
from glora_jax.vision.models import weights


def outcome(name):
  try:
    snapshot = hub.snapshot(name)
    model, _, metadata = weights.load(name)
  except (OSError, ValueError, ImportError) as error:
    return [type(error).__name__, str(error)]
  return [snapshot.revision, model.width, metadata['normalization']]


print(json.dumps([outcome(name) for name in sys.argv[1:]]))
