"""Adapted models that compile in no time, made once for all tests of this folder."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from comparing import ready
from small_models import Mlp, Transformer

import glora_jax
from glora_jax.method.draws import random_genomes

NUM_IMAGES = 23
MOST_GENOMES = 24


MODELS = {'mlp': Mlp(12, 4), 'transformer': Transformer(4)}


class Problem(NamedTuple):
  """A supernet, subnets of it, and images to score them on."""

  adapted: glora_jax.Adapted
  variables: Any
  genomes: np.ndarray
  images: jax.Array
  labels: jax.Array


@functools.cache
def supernet(name):
  """(A model adapted, random variables, images, labels)."""
  images = jax.random.normal(jax.random.key(0), (NUM_IMAGES, 4, 4, 3))
  # With this key some are right about the last image, which padding repeats.
  labels = jax.random.randint(jax.random.key(8), (NUM_IMAGES,), 0, 4)
  return *ready(MODELS[name], images[:1], space=glora_jax.SearchSpace(), heads=None), images, labels


def problem(name, num_genomes=7):
  """A supernet with the first so many of `MOST_GENOMES` random subnets."""
  adapted, variables, images, labels = supernet(name)
  genomes = random_genomes(np.random.default_rng(0), adapted.spec, MOST_GENOMES)
  return Problem(adapted, variables, genomes[:num_genomes], images, labels)


@functools.cache
def reference_scores(name, num_genomes=7):
  """(right answers, losses) of the folded subnets, one after the other, all images at once."""
  adapted, variables, genomes, images, labels = problem(name, num_genomes)

  @jax.jit
  def score(genome):
    logits = adapted.model.apply({'params': adapted.fold(variables, genome)}, images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return (logits.argmax(-1) == labels).sum(), losses.sum()

  correct, loss = (np.array(values) for values in zip(*map(score, genomes), strict=True))
  assert len({*correct.tolist()}) > 1
  return correct, loss
