"""What holds for GLoRA on any model whose kernels were counted by hand."""

import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from comparing import assert_close, random_variables, vector
from flax import nnx
from hand_count import expected, fold_by_hand, found, unboxed

import glora_jax
from glora_jax import SearchSpace, preset, random_genomes
from glora_jax import nnx as glora_nnx
from glora_jax.method.adapter import ADAPTER
from glora_jax.method.trace.events import HEAD
from glora_jax.tree import path_name

SPACE = SearchSpace(ranks=(1, 2))


def as_at_start(adapter):
  """Supports with zeros where fresh ones have them."""

  def value(path, leaf):
    name = next(part.key for part in reversed(path) if hasattr(part, 'key'))  # the last is a box's
    return leaf if ADAPTER[name].drawn else jax.device_put(np.zeros_like(leaf))

  return jax.tree_util.tree_map_with_path(value, adapter)


class Results(NamedTuple):
  """What a genome gives: outputs as a vector, gradients by the supports, folded parameters."""

  outputs: Any
  gradients: Any
  folded: Any


class Case:
  """A model of a zoo, adapted, with random supports, and its compiled functions.

  Attributes:
    example: an example of a zoo.
    adapted: the adapted model.
    params: its parameters.
    plain: compiled, gives the outputs for parameters, as a vector.
    kernels: its kernels counted by hand; by default the example has them.
  """

  def __init__(self, example, adapted, params, plain, kernels=None):
    self.example, self.adapted, self.params = example, adapted, params
    self.plain, self.kernels = plain, kernels or example.kernels
    self.variables = random_variables(adapted, params)
    self.start = {'params': params, 'glora': as_at_start(self.variables['glora'])}
    spec = adapted.spec
    self.genomes = np.stack(
      [preset(spec, 'full'), *random_genomes(np.random.default_rng(0), spec, 2)]
    )
    self._one = jax.jit(self._compute)

  def _compute(self, variables, genome):
    def loss(adapter):
      outputs = self.adapted.apply(
        {**variables, 'glora': adapter},
        *self.example.inputs,
        genome=genome,
        **self.example.kwargs,
      )
      outputs = vector(outputs)
      return jnp.cos(jnp.arange(len(outputs))) @ outputs, outputs

    gradients, outputs = jax.grad(loss, has_aux=True)(variables['glora'])
    return Results(outputs, gradients, self.adapted.fold(variables, genome))

  def compute(self, variables) -> list[Results]:
    """Of each genome, as arrays of NumPy, of which nothing that is done with them is compiled."""
    return [jax.device_get(self._one(variables, genome)) for genome in self.genomes]

  @functools.cached_property
  def results(self) -> list[Results]:
    """Of each genome, with random supports."""
    return self.compute(self.variables)

  def check_layers(self):
    """All layers and matrices are found that were counted by hand."""
    self.check_rows()
    self.check_coverage()

  def check_results(self):
    """It starts as the model itself, folds by the equation, and every support gets a gradient."""
    self.check_identity()
    self.check_fold()
    self.check_gradients()

  def check_rows(self):
    """Kernels, axes, biases and the number of rows are those that were counted by hand."""
    assert found(self.adapted) == expected(self.kernels)
    assert len(self.adapted.spec) == self.example.rows

  def check_identity(self):
    """Every subnet of fresh supports is the model itself."""
    base = self.plain(self.params)
    for results in self.compute(self.start):
      assert_close(results.outputs, base, self.example.tolerance)

  def check_fold(self):
    """Folded parameters are the equation along the axes counted by hand, and `apply` says so.

    All others are what they were, and structure, boxes and types are.
    """
    params = unboxed(self.params)
    for genome, results in zip(self.genomes, self.results, strict=True):
      rows = {layer.name: genome[row] for row, layer in enumerate(self.adapted.spec)}
      adapter = unboxed(self.variables['glora'])
      by_hand = fold_by_hand(self.kernels, params, adapter, rows, SPACE.ranks)
      assert jax.tree.structure(results.folded) == jax.tree.structure(self.params)
      for path, value in unboxed(results.folded).items():
        assert value.dtype == params[path].dtype
        eps = float(jnp.finfo(value.dtype).eps)
        assert np.abs(value - by_hand[path]).max() <= max(1e-5, 2 * eps) * np.abs(value).max(), path
      assert_close(results.outputs, self.plain(results.folded), self.example.tolerance)
    adapted = {*self.kernels, *(kernel.bias for kernel in self.kernels.values())}
    for path, value in unboxed(self.results[0].folded).items():
      assert np.array_equal(value, params[path]) != (path in adapted), path

  def check_gradients(self):
    """Every support of every row gets a gradient."""
    gradients = {path: np.asarray(x) for path, x in unboxed(self.results[0].gradients).items()}
    largest = max(np.abs(leaf).max() for leaf in gradients.values())
    for layer in self.adapted.spec:
      name, _, index = layer.name.removesuffix(']').partition('[')
      index = tuple(map(int, index.split(','))) if index else ()
      own = {path: leaf for path, leaf in gradients.items() if path.rpartition('/')[0] == name}
      assert own
      for path, leaf in own.items():
        is_blind = path.rpartition('/')[2][0] in 'CDE' and re.search(self.example.blind, layer.name)
        size = np.abs(leaf[index]).max()
        assert (size < 1e-5 * largest) if is_blind else (size > 1e-6 * largest), (path, index)

  def check_coverage(self):
    """Every matrix that no row stands for is named, with a reason; heads have one of their own."""
    matrices = self.adapted.coverage().uncovered
    heads = {path_name(path) for path in self.adapted.places.head_paths}
    assert {matrix.name for matrix in matrices} - heads == set(self.example.uncovered)
    for matrix in matrices:
      assert (matrix.reason == HEAD) if matrix.name in heads else matrix.reason


@nnx.jit
def call(model, inputs, kwargs):
  """The outputs of an NNX model as a vector; compiled once, whatever its parameters."""
  return vector(model(*inputs, **kwargs))


def case_of(example, model=None, **options):
  """A `Case` of a function, or of an attached NNX model as a function of its parameters."""
  inputs, options = example.inputs, {'space': SPACE, **example.options, **options}
  if model is None:
    adapted = glora_jax.adapt_function(example.apply, example.params, *inputs, **options)
    plain = jax.jit(lambda params: vector(example.apply(params, *inputs)))
    return Case(example, adapted, example.params, plain)
  attached = glora_nnx.attach(model, *inputs, **options, **example.kwargs)
  adapted, _ = glora_nnx.as_adapted(attached)

  def plain(params):
    return call(glora_nnx.with_params(model, params), inputs, example.kwargs)

  return Case(example, adapted, glora_nnx.params(model), plain)
