"""Random products: the layout that the trace finds makes of each a product of matrices."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from glora_jax.method.trace.find import find

ROLES = {'batch': 'b', 'stack': 'st', 'in': 'ij', 'out': 'op'}


@dataclasses.dataclass(frozen=True)
class Product:
  """A linear layer, or a stack of them, as somebody may write it.

  Attributes:
    sizes: sizes of the axes, by letter.
    inputs: the axes of the activations, in their order.
    kernel: likewise of the kernel.
    result: likewise of the result.
    bias: likewise of the bias.
    stored: the kernel's axes as its parameter has them.
  """

  sizes: dict[str, int]
  inputs: str
  kernel: str
  result: str
  bias: str
  stored: str

  def shape(self, letters):
    return tuple(self.sizes[letter] for letter in letters)

  def __call__(self, params, x):
    kernel = params['w'].transpose([self.stored.index(letter) for letter in self.kernel])
    y = jnp.einsum(f'{self.inputs},{self.kernel}->{self.result}', x, kernel)
    kept = [letter for letter in self.result if letter in self.bias]
    bias = params['b'].transpose([self.bias.index(letter) for letter in kept])
    return y + bias.reshape([self.sizes[x] if x in kept else 1 for x in self.result])


def letters_of(draw, role, least):
  count = draw(st.integers(least, len(ROLES[role])))
  return ROLES[role][:count]


@st.composite
def products(draw):
  stack, inputs, outputs = (
    letters_of(draw, role, least) for role, least in (('stack', 0), ('in', 1), ('out', 1))
  )
  batch = letters_of(draw, 'batch', 0)
  kernel = stack + inputs + outputs
  sizes = {letter: draw(st.integers(2, 3)) for letter in batch + kernel}
  return Product(
    sizes=sizes,
    inputs=''.join(draw(st.permutations(batch + stack + inputs))),
    kernel=''.join(draw(st.permutations(kernel))),
    result=''.join(draw(st.permutations(batch + stack + outputs))),
    bias=''.join(draw(st.permutations(stack + outputs))),
    stored=''.join(draw(st.permutations(kernel))),
  )


def random_arrays(product):
  rng = np.random.default_rng(0)
  shapes = {'w': product.shape(product.stored), 'b': product.shape(product.bias)}
  params = {name: rng.normal(size=shape) for name, shape in shapes.items()}
  x = rng.normal(size=product.shape(product.inputs))
  return {name: np.float32(value) for name, value in params.items()}, np.float32(x)


@settings(max_examples=25, deadline=None)
@given(products())
def test_matrices_and_vectors_of_a_layout_are_what_the_product_multiplies_and_adds(product):
  params, x = random_arrays(product)
  (site,) = find(product, params, (x,), {}).sites
  assert site.bias_path == ('b',)
  stack, inputs, outputs = (
    ''.join(product.stored[axis] for axis in axes)
    for axes in (site.layout.stack, site.layout.inputs, site.layout.outputs)
  )
  batch = ''.join(letter for letter in product.inputs if letter in ROLES['batch'])
  order = stack + batch + inputs
  rows = np.einsum(f'{product.inputs}->{order}', x)
  rows = rows.reshape(*product.shape(stack), -1, math.prod(product.shape(inputs)))
  vectors = site.layout.vectors(params['b'])[..., None, :]
  y = rows @ site.layout.matrices(params['w']) + vectors

  found = stack + batch + outputs
  result = np.einsum(f'{found}->{product.result}', y.reshape(product.shape(found)))
  assert_allclose(result, product(params, x), atol=1e-4)

  kernel = site.layout.kernel(site.layout.matrices(params['w']), params['w'].shape)
  bias = site.layout.bias(site.layout.vectors(params['b']), params['b'].shape)
  assert_array_equal(kernel, params['w'])
  assert_array_equal(bias, params['b'])
