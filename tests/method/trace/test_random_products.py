"""Random products: the layout that the trace finds makes of each a product of matrices."""

import math

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from glora_jax.method.trace.find import find

SIZES = dict(zip('bstijop', (2, 2, 3, 3, 2, 2, 3), strict=True))


def shape_of(letters):
  return [SIZES[letter] for letter in letters]


@st.composite
def products(draw):
  """The axes of inputs, kernel as it is stored and as it is used, outputs and bias."""
  limits = ('b', 0), ('st', 0), ('ij', 1), ('op', 1)
  batch, stack, inputs, outputs = (
    letters[: draw(st.integers(least, len(letters)))] for letters, least in limits
  )
  kernel = stack + inputs + outputs
  axes = batch + stack + inputs, kernel, kernel, batch + stack + outputs, stack + outputs
  return [''.join(draw(st.permutations(letters))) for letters in axes]


@settings(max_examples=25, deadline=None)
@given(products())
def test_matrices_and_vectors_of_a_layout_are_what_the_product_multiplies_and_adds(product):
  """The layers may be a stack, as somebody may write them."""
  inputs, stored, used, outputs, bias = product

  def function(params, x):
    kernel = jnp.einsum(f'{stored}->{used}', params['w'])
    added = jnp.einsum(f'{bias}->{"".join(x for x in outputs if x in bias)}', params['b'])
    y = jnp.einsum(f'{inputs},{used}->{outputs}', x, kernel)
    return y + added.reshape([SIZES[x] if x in bias else 1 for x in outputs])

  rng = np.random.default_rng(0)
  x, w, b = (np.float32(rng.normal(size=shape_of(axes))) for axes in (inputs, stored, bias))
  (site,) = find(function, {'w': w, 'b': b}, (x,), {}).sites
  assert site.bias_path == ('b',)
  layout = site.layout
  s, i, o = (
    ''.join(stored[axis] for axis in axes) for axes in (layout.stack, layout.inputs, layout.outputs)
  )
  batch = 'b' * ('b' in inputs)
  rows = np.einsum(f'{inputs}->{s}{batch}{i}', x)
  rows = rows.reshape(*shape_of(s), -1, math.prod(shape_of(i)))
  y = rows @ layout.matrices(w) + layout.vectors(b)[..., None, :]
  result = np.einsum(f'{s}{batch}{o}->{outputs}', y.reshape(shape_of(s + batch + o)))
  assert_allclose(result, function({'w': w, 'b': b}, x), atol=1e-4)
  assert_array_equal(layout.kernel(layout.matrices(w), w.shape), w)
  assert_array_equal(layout.bias(layout.vectors(b), b.shape), b)
