"""Linear layers found by use, in ways that the functions of `function_zoo` do not have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_count import axes_of

from glora_jax.method.trace.find import find

D, F, E, L = 4, 6, 3, 2  # inputs, outputs, experts, layers


def zeros(*shape):
  return jnp.zeros(shape)


def found_in(function, params, *inputs, **options):
  return find(function, params, inputs or (zeros(5, D),), {}, **options)


def layouts(found):
  """A letter for each axis, as in `hand_count`, by name."""
  return {site.name: axes_of(site) for site in found.sites}


def reasons(found):
  return {'/'.join(path): reason for path, reason in found.uncovered.items()}


ONE_KERNEL = {
  'experts by take in a loop': (
    lambda w, x: jax.lax.fori_loop(0, E, lambda i, y: y + x @ jnp.take(w, i, axis=1), zeros(5, F)),
    (D, E, F),
    'iso',
  ),
  'split in parts': (
    lambda w, x: sum(x @ part for part in jnp.split(w, 3, axis=1)),
    (D, F),
    'io',
  ),
  'parts of which one has a single head': (
    lambda w, x: (
      jnp.einsum('bd,dnh->bnh', x, w[:, :2]),
      x @ w[:, 2],
    ),
    (D, 3, 5),
    'ioo',
  ),
  'cut along the inputs': (
    lambda w, x: x[:, :1] @ w[:1] + x[:, 1:] @ w[1:],
    (D, F),
    'io',
  ),
  'scaled and masked': (
    lambda w, x: x @ (w / 2 * np.tri(D, F, dtype=np.float32)),
    (D, F),
    'io',
  ),
  'repeated heads': (
    lambda w, x: jnp.einsum('bd,ndh->bnh', x, jnp.repeat(w, 2, axis=0)),
    (2, D, 3),
    'oio',
  ),
  'one expert for each example': (
    lambda w, x: jax.vmap(lambda x: w[:, x.argmax()] @ x)(x),
    (F, E, D),
    'osi',
  ),
  'one expert for all examples, multiplied in parts': (
    lambda w, x: x[:, :2] @ (expert := w[x.sum().astype(int)])[:2] + x[:, 2:] @ expert[2:],
    (E, D, F),
    'sio',
  ),
  'carried by a loop': (
    lambda w, x: jax.lax.fori_loop(0, L, lambda _, c: (c[0], c[1] @ c[0]), (w, x))[1],
    (D, D),
    'io',
  ),
  'scanned twice, in and out': (
    lambda w, x: jax.lax.scan(
      lambda x, w: (jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0], None),
      x,
      w.reshape(L, 3, D, D),
    )[0],
    (L * 3, D, D),
    'sio',
  ),
}


@pytest.mark.parametrize('name', ONE_KERNEL)
def test_a_kernel_is_found_however_it_is_used(name):
  function, shape, layout = ONE_KERNEL[name]
  found = found_in(lambda params, x: function(params['w'], x), {'w': zeros(*shape)})
  assert layouts(found) == {'w': layout}
  assert not found.uncovered


LOOKUP = 'embedding lookup'
HIDDEN = {
  'tokens': (lambda w, x: w[x.astype(int)], LOOKUP),
  'positions of window pairs, as in Swin': (
    lambda w, x: (x @ x.T)[..., None] + w[(np.arange(25) % D).reshape(5, 5)],
    LOOKUP,
  ),
  'distances in buckets, as in T5': (
    lambda w, x: x @ x.T + jnp.moveaxis(w[x.argmax(-1) - jnp.arange(5)[:, None]], 2, 0),
    LOOKUP,
  ),
  'similarities of rows': (lambda w, x: jnp.einsum('bd,bkd->bk', x, w[x.astype(int)]), LOOKUP),
  'in a loop': (lambda w, x: jax.lax.map(lambda row: row + w[row.argmax()], x), LOOKUP),
  'unused': (lambda w, x: x, 'not used'),
  'a vector of it last': (lambda w, x: x @ w @ w[0], ''),
  'normalized': (lambda w, x: x @ (w / jnp.linalg.norm(w)), 'combined with other parameters first'),
  'in a callback': (
    lambda w, x: jax.pure_callback(np.dot, zeros(5, D), x, w),
    'used in pure_callback',
  ),
  'outer product': (lambda w, x: jnp.tensordot(x, w, 0), 'without an axis of inputs'),
  'inputs and outputs in one axis': (
    lambda w, x: x[:, :2] @ w.reshape(2, 2 * D),
    'in two ways, once transposed',
  ),
  'layers and inputs in one axis': (
    lambda w, x: jnp.einsum('bsd,sdf->bsf', x.reshape(-1, 2, 2), w.reshape(2, 2, D)),
    'in two ways: an axis is a stack',
  ),
  'sum of axes': (lambda w, x: jnp.einsum('bd,df->b', x, w), 'changed first: reduce_sum'),
}


@pytest.mark.parametrize('name', HIDDEN)
def test_what_no_layout_expresses_is_named_with_its_reason(name):
  function, reason = HIDDEN[name]
  found = found_in(lambda params, x: function(params['w'], x), {'w': zeros(D, D)})
  assert not found.sites
  assert list(reasons(found)) == ['w']
  assert reason in reasons(found)['w']
  assert reason != LOOKUP or reasons(found)['w'] == LOOKUP


def test_selected_matrices_without_a_product_of_their_own_are_named_with_what_is_done_to_them():
  names = 'added', 'fed', 'branch', 'cut'
  params = {name: zeros(E, D, D) for name in names} | {'w': zeros(D, F)}

  def function(params, x):
    added, fed, branch, cut = (params[name][x.sum(1).astype(int)] for name in names)
    either = jax.lax.cond(x[0, 0] > 0, lambda: branch, lambda: x[..., None] * x[:, None])
    return (either + added).sum(), fed @ params['w'], jnp.split(cut, 2, axis=1)[0] @ x[..., None]

  found = found_in(function, params)
  assert layouts(found) == {'w': 'io'}
  assert reasons(found) == {
    'added': 'selected by index; not a matmul',
    'branch': 'selected by index; differs between branches or iterations',
    'cut': 'selected by index; used in split',
    'fed': 'selected by index; used as an input of other weights',
  }


@pytest.mark.parametrize('batch', [1, 5])
def test_kernels_that_meet_repeated_parameters_are_found(batch):
  """Learned queries, as in attention pooling, stand in the place of activations."""
  params = {'queries': zeros(1, 3, D), 'scale': zeros(D), 'w': zeros(D, F)}

  def function(params, x):
    queries = jnp.tile(params['queries'], (len(x), 1, 1)) * params['scale']
    return queries @ params['w'] + x[:, None] @ params['w']

  found = found_in(function, params, zeros(batch, D))
  assert layouts(found) == {'w': 'io'}
  assert list(reasons(found)) == ['queries']


BIASES = {
  'flat beside heads': (
    lambda w, b, x: jnp.einsum('bd,dhk->bhk', x, w) + b.reshape(2, 3),
    (D, 2, 3),
    (F,),
    True,
  ),
  'heads beside flat': (
    lambda w, b, x: (x @ w).reshape(5, 2, 3) + b,
    (D, F),
    (2, 3),
    True,
  ),
  'with an axis of size one': (lambda w, b, x: b + x @ w, (D, F), (1, F), True),
  'backwards as the outputs': (lambda w, b, x: x @ w[:, ::-1] + b[::-1], (D, F), (F,), True),
  # no biases
  'positions': (lambda w, b, x: x @ w + b, (D, F), (5, F), False),
  'one for all experts': (
    lambda w, b, x: jnp.einsum('ebd,edf->ebf', x[None].repeat(E, 0), w) + b,
    (E, D, F),
    (F,),
    False,
  ),
  'backwards': (lambda w, b, x: x @ w + b[::-1], (D, F), (F,), False),
  'in one of two products': (lambda w, b, x: x @ w + b + x @ w, (D, F), (F,), False),
}


@pytest.mark.parametrize('name', BIASES)
def test_only_what_is_added_along_exactly_the_outputs_is_the_bias(name):
  function, kernel, bias, is_bias = BIASES[name]
  params = {'w': zeros(*kernel), 'b': zeros(*bias)}
  (site,) = found_in(lambda params, x: function(params['w'], params['b'], x), params).sites
  assert site.has_bias == is_bias
  assert not is_bias or site.layout.vectors(params['b']).shape == (F,)


def test_two_kernels_do_not_share_a_bias():
  params = {'w': zeros(D, F), 'v': zeros(D, F), 'b': zeros(F)}
  found = found_in(
    lambda params, x: x @ params['w'] + params['b'] + (x @ params['v'] + params['b']), params
  )
  assert [site.has_bias for site in found.sites] == [False, False]


def test_layers_of_a_python_loop_are_numbered_as_they_run_and_then_those_that_do_not():
  params = {'a': zeros(3, D, F), 'b': zeros(3, F, D)}

  def function(params, x):
    for layer in (2, 0):
      x = x @ params['a'][layer] @ params['b'][layer]
    return x

  rows = {site.name: site.rows for site in found_in(function, params).sites}
  assert rows == {'a': (2, 4, 0), 'b': (3, 5, 1)}


def test_layers_that_run_from_the_last_to_the_first_are_numbered_so():
  params = {'w': zeros(3, D, D)}
  for function in (
    lambda w, x: jax.lax.scan(lambda x, w: (x @ w, None), x, w[::-1])[0],
    lambda w, x: x @ w[::-1][:2][0] @ w[::-1][1:][0] @ w[0],
  ):
    (site,) = found_in(lambda params, x, call=function: call(params['w'], x), params).sites
    assert site.rows == (2, 1, 0)
