"""Prepares a data set while another process does the same."""

import logging
import os
import pathlib
import sys
import time

from glora_jax.data import catalog, pipeline, task
from glora_jax.data.tasks.digits import Digits

logging.basicConfig(level=logging.INFO, format='%(message)s', force=True)
folder, both = sys.argv[1], pathlib.Path(sys.argv[2])
examples = Digits._generate_examples


def waiting(self, indices):
  """Neither goes on before both have begun, so that both want to give their folder its final name."""
  (both / str(os.getpid())).touch()
  while len(list(both.iterdir())) < 2:
    time.sleep(0.01)
  return examples(self, indices)


Digits._generate_examples = waiting
digits = catalog.find('digits', task.Source(dir=folder))
for split in ('train', 'val', 'test'):
  images, labels = pipeline.load(digits.open(split), 8)
  print(split, images.shape, images.sum(), labels.sum())
