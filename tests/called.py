"""What a stage calls a compiled program with, which does not run."""

import jax
import jax.numpy as jnp
import numpy as np


class Called(Exception):
  """The arguments of the call."""


def raise_arguments(*arguments):
  """Stands for a compiled program that is not to run."""
  raise Called(*arguments)


def shapes(arguments):
  """Structure, and the shape and type of every array."""
  leaves, structure = jax.tree.flatten(arguments)
  return structure, [(np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]
