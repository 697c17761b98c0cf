"""Holds a folder until it is killed."""

import sys
import time

from glora_jax.vision.runs.workdir import claim

with claim(sys.argv[1]):
  print('held', flush=True)
  time.sleep(600)
