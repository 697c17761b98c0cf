"""A run that has a folder in common with others: WORKDIR SHARED, and its config as input."""

import ast
import logging
import sys

import ml_collections

from glora_jax.vision.runs import experiment

logging.basicConfig(level=logging.INFO, format='%(message)s', force=True)
config = ml_collections.ConfigDict(ast.literal_eval(sys.stdin.read()))
experiment.run(config, sys.argv[1], shared=sys.argv[2])
