"""What tests of many rooms share: random variables, equality of outputs, refusals."""

import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import randomized

import glora_jax
from glora_jax.files import LaterVersionError

# A structure of which no merged kernel is formed.
THIN = {'': {'A': 'vector', 'B': 'lora', 'C': 'vector', 'D': 'vector', 'E': 'vector'}}


def random_params(model, *inputs, **kwargs):
  """Normal numbers in the place of a model's parameters; nothing is compiled."""
  return randomized(jax.eval_shape(model.init, jax.random.key(0), *inputs, **kwargs)['params'], 1)


def random_variables(adapted, params, seed=2):
  """Params, and normal numbers in the place of the supports; nothing is compiled."""
  shapes = jax.eval_shape(adapted.init, jax.random.key(0), params)
  return {'params': params, 'glora': randomized(shapes['glora'], seed)}


def ready(model, *inputs, **options):
  """(A Linen model adapted, variables with random params and supports)."""
  adapted = glora_jax.adapt(model, *inputs, **options)
  return adapted, random_variables(adapted, random_params(model, *inputs))


def trained_variables(adapted, params, scale=0.3):
  """Variables as after a training: supports and heads are nowhere as they began."""
  shapes = jax.eval_shape(adapted.init, jax.random.key(0), params)
  trainable, frozen = adapted.split({**shapes, 'params': params})
  return adapted.join(randomized(trainable, scale=scale), frozen)


def mixed_loras(spec):
  """LoRAs of B: none, the first and the second rank in turn; the MLPs of a block differ."""
  genome = np.zeros((len(spec), 5), np.int8)
  genome[:, 1] = np.resize([3, 0, 4, 4, 3], len(spec))
  return genome


def vector(outputs):
  """All numbers of a model's output as one float32 vector."""
  return jnp.concatenate([jnp.ravel(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(outputs)])


def assert_close(actual, expected, tolerance=1e-5):
  """Equal relative to the largest number: outputs cross zero."""
  actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
  assert actual.shape == expected.shape
  assert np.isfinite(expected).all()
  assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


def assert_trees_close(actual, expected, tolerance=1e-5):
  """Equal structures and dtypes, and every leaf close."""
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    assert a.dtype == b.dtype
    assert_close(a, b, tolerance)


def assert_trees_equal(actual, expected):
  """Equal structures, and leaves of equal numbers."""
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


def assert_says_kind_and_format(path, write, read, monkeypatch):
  """A file of kind 'order' is refused as another kind, and if its format is a later one."""
  write()
  read(path, 'order')
  with pytest.raises(ValueError, match="of kind 'order'"):
    read(path, 'archive')
  with monkeypatch.context() as later:
    later.setattr('glora_jax.files.FORMATS', {'order': 2})
    write()
  with pytest.raises(LaterVersionError, match=r"by a later version .*format 2 of 'order'"):
    read(path, 'order')


def assert_folds(adapted, variables, *inputs, structure=None, tolerance=1e-5, **kwargs):
  """Folded, a model answers as it does adapted: fixed to a structure, and with it at the call.

  Returns the answer as a vector. The structure is by default the one that the model is fixed to.
  """
  free, fixed = adapted.fix(None), adapted.fix(adapted.genome if structure is None else structure)

  @jax.jit
  def answers(variables, inputs):
    others = {name: tree for name, tree in variables.items() if name != 'glora'}
    folded = {**others, 'params': fixed.fold(variables)}
    outputs = (
      adapted.model.apply(folded, *inputs, **kwargs),
      fixed.apply(variables, *inputs, **kwargs),
      free.apply(variables, *inputs, genome=fixed.genome, **kwargs),
    )
    return [vector(output) for output in outputs]

  expected, *found = answers(variables, inputs)
  for output in found:
    assert_close(output, expected, tolerance)
  return expected


def assert_refused(named, call, *arguments, kind=(TypeError, ValueError), **fields):
  """Asserts that a call raises one line that names all texts, and that no bug raises it."""
  with pytest.raises(kind) as caught:
    call(*arguments, **fields)
  message = str(caught.value)
  assert '\n' not in message
  line = traceback.extract_tb(caught.value.__traceback__)[-1].line
  assert type(caught.value) is not TypeError or line.startswith('raise')
  for text in [named] if isinstance(named, str) else named:
    assert text in message
