"""Random products: the layout that the trace finds makes of each a product of matrices."""

import dataclasses
import itertools
import math

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from glora_jax.method.trace.find import find

ROLES = {'batch': 'b', 'stack': 'st', 'in': 'ij', 'out': 'op'}
ROLE_OF = {letter: role for role, letters in ROLES.items() for letter in letters}


@dataclasses.dataclass(frozen=True)
class Product:
  """A linear layer, or a stack of them, as somebody may write it.

  Attributes:
    sizes: sizes of the axes, by letter.
    inputs: the axes of the activations, in their order.
    kernel: likewise of the kernel.
    result: likewise of the result.
    bias: likewise of the bias.
    groups: the kernel's axes as its parameter has them, some of them merged to one.
  """

  sizes: dict[str, int]
  inputs: str
  kernel: str
  result: str
  bias: str
  groups: tuple[str, ...]

  def shape(self, letters):
    return tuple(self.sizes[letter] for letter in letters)

  def __call__(self, params, x):
    whole = params['w'].reshape(self.shape(''.join(self.groups)))
    kernel = whole.transpose([''.join(self.groups).index(letter) for letter in self.kernel])
    y = jnp.einsum(f'{self.inputs},{self.kernel}->{self.result}', x, kernel)
    kept = [letter for letter in self.result if letter in self.bias]
    bias = params['b'].transpose([self.bias.index(letter) for letter in kept])
    return y + bias.reshape([self.sizes[x] if x in kept else 1 for x in self.result])

  @property
  def is_expressible(self):
    return all(len({ROLE_OF[letter] for letter in group}) == 1 for group in self.groups)


def letters_of(draw, role, least):
  count = draw(st.integers(least, len(ROLES[role])))
  return ROLES[role][:count]


@st.composite
def products(draw, merged):
  stack, inputs, outputs = (
    letters_of(draw, role, least) for role, least in (('stack', 0), ('in', 1), ('out', 1))
  )
  batch = letters_of(draw, 'batch', 0)
  kernel = stack + inputs + outputs
  stored = ''.join(draw(st.permutations(kernel)))
  cuts = draw(st.sets(st.integers(1, len(stored) - 1))) if merged else range(1, len(stored))
  places = [0, *sorted(cuts), len(stored)]
  sizes = {letter: draw(st.integers(2, 3)) for letter in batch + kernel}
  return Product(
    sizes=sizes,
    inputs=''.join(draw(st.permutations(batch + stack + inputs))),
    kernel=''.join(draw(st.permutations(kernel))),
    result=''.join(draw(st.permutations(batch + stack + outputs))),
    bias=''.join(draw(st.permutations(stack + outputs))),
    groups=tuple(stored[start:stop] for start, stop in itertools.pairwise(places)),
  )


def random_arrays(product):
  rng = np.random.default_rng(0)
  shape = [math.prod(product.shape(group)) for group in product.groups]
  params = {'w': rng.normal(size=shape), 'b': rng.normal(size=product.shape(product.bias))}
  x = rng.normal(size=product.shape(product.inputs))
  return {name: np.float32(value) for name, value in params.items()}, np.float32(x)


def letters_at(product, axes):
  return ''.join(product.groups[axis] for axis in axes)


@settings(max_examples=25, deadline=None)
@given(products(merged=True))
def test_a_layer_is_found_if_no_axis_of_its_parameter_is_two_things(product):
  params, x = random_arrays(product)
  found = find(product, params, (x,), {})
  assert product.is_expressible == bool(found.sites) != (('w',) in found.uncovered)
  for site in found.sites:
    parts = (site.layout.stack, site.layout.inputs, site.layout.outputs)
    for role, axes in zip(('stack', 'in', 'out'), parts, strict=True):
      assert {ROLE_OF[letter] for letter in letters_at(product, axes)} <= {role}


@settings(max_examples=25, deadline=None)
@given(products(merged=False))
def test_matrices_and_vectors_of_a_layout_are_what_the_product_multiplies_and_adds(product):
  params, x = random_arrays(product)
  (site,) = find(product, params, (x,), {}).sites
  assert site.bias_path == ('b',)
  stack, inputs, outputs = (
    letters_at(product, axes)
    for axes in (site.layout.stack, site.layout.inputs, site.layout.outputs)
  )
  batch = ''.join(letter for letter in product.inputs if ROLE_OF[letter] == 'batch')
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
