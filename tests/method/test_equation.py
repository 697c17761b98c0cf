"""The equation: parity with the official layer, gradients, nested ranks, identity at the start."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import randomized
from hypothesis import given, settings
from hypothesis import strategies as st

from glora_jax.method import equation


def outputs(golden, dtype):
  """Our layer's outputs for all golden genomes, [genome, batch, out]."""
  cast = functools.partial(jax.tree.map, lambda value: jnp.asarray(value, dtype))
  kernel, bias, supports, x = cast(
    (golden['kernel'], golden['bias'], golden['supports'], golden['x'])
  )

  @jax.jit
  def layer(genome):
    new_kernel, new_bias = equation.effective(kernel, bias, supports, genome)
    return x @ new_kernel + new_bias

  return np.stack([layer(genome) for genome in golden['genomes']])


@pytest.mark.parametrize('dtype, tolerance', [('float64', 1e-12), ('float32', 1e-5)])
def test_all_432_forms_equal_the_official_layer(golden_layer, dtype, tolerance):
  with jax.enable_x64(dtype == 'float64'):
    ours = outputs(golden_layer, dtype)
  assert ours.dtype == dtype
  assert len(golden_layer['genomes']) == 432
  assert np.abs(ours - golden_layer['y']).max() <= tolerance * np.abs(golden_layer['y']).max()


def test_bfloat16_kernels_come_within_a_hundredth(golden_layer):
  bfloat = {
    **golden_layer,
    **{name: golden_layer[name].astype(jnp.bfloat16) for name in ('kernel', 'bias')},
  }
  for genome, y in itertools.islice(zip(bfloat['genomes'], bfloat['y'], strict=True), 0, None, 17):
    supports = jax.tree.map(jnp.float32, bfloat['supports'])
    kernel, bias = equation.effective(
      jnp.asarray(bfloat['kernel']), jnp.asarray(bfloat['bias']), supports, genome
    )
    assert kernel.dtype == bias.dtype == jnp.bfloat16
    ours = jnp.float32(bfloat['x']) @ kernel.astype(jnp.float32) + bias.astype(jnp.float32)
    assert np.abs(ours - y).max() <= 1e-2 * np.abs(y).max()


def test_gradients_of_every_support_equal_finite_differences(golden_layer):
  with jax.enable_x64(True):
    g = golden_layer
    weights = np.random.default_rng(0).normal(size=g['y'].shape[1:])

    @jax.jit
    def loss(supports, genome):
      kernel, bias = equation.effective(
        jnp.asarray(g['kernel']), jnp.asarray(g['bias']), supports, genome
      )
      return jnp.sum(weights * (g['x'] @ kernel + bias) ** 2)

    gradient, step = jax.jit(jax.grad(loss)), 1e-6
    for genome in ([3, 3, 2, 2, 2], [2, 2, 1, 1, 1], [1, 1, 2, 0, 1], [0, 3, 0, 1, 0]):
      found = gradient(g['supports'], np.array(genome))
      for name, values in g['supports'].items():
        direction = np.random.default_rng(1).normal(size=values.shape)
        shifted = lambda sign, name=name, d=direction: {
          **g['supports'],
          name: g['supports'][name] + sign * step * d,
        }
        numeric = (loss(shifted(1), np.array(genome)) - loss(shifted(-1), np.array(genome))) / (
          2 * step
        )
        np.testing.assert_allclose(
          np.sum(found[name] * direction), numeric, rtol=2e-6, atol=1e-5, err_msg=f'{name} {genome}'
        )
      read = equation.used_parts(genome, (4,))
      assert {
        name for name in found if np.any(found[name])
      } == read.keys()  # others do not take part


def reference(kernel, bias, s, alleles, ranks):
  """The equation as plain numpy, one case after another."""

  def weight(tensor, allele):
    down, up = s[f'{tensor}_down'], s[f'{tensor}_up']
    if allele == 0:
      return np.zeros_like(kernel)
    if allele == 1:
      return np.full_like(
        kernel, s[f'{tensor}_constant'][0] if f'{tensor}_constant' in s else up[0, 0]
      )
    if allele == 2:
      return np.tile(s.get(f'{tensor}_vector', up[0]), (len(kernel), 1))
    return down[:, : ranks[allele - 3]] @ up[: ranks[allele - 3]]

  def vector(tensor, allele):
    full = s[tensor]
    return [np.zeros_like(full), np.full_like(full, s.get(f'{tensor}_constant', full)[0]), full][
      allele
    ]

  a, b = weight('A', alleles[0]), weight('B', alleles[1])
  if alleles[2] == 0:
    c = np.zeros(len(kernel))
  elif alleles[2] == 1:
    c = s.get('C_vector', s['C_down'][:, 0])
  else:
    c = (s['C_down'][:, : ranks[alleles[2] - 2]] @ s['C_up'][: ranks[alleles[2] - 2]])[:, 0]
  d, e = vector('D', alleles[3]), vector('E', alleles[4])
  return kernel + kernel * a + b, bias + bias * d + e + c @ kernel


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_nested_ranks_and_untied_storage_equal_a_plain_reading(data):
  fan_in, fan_out = data.draw(st.sampled_from([(1, 5), (6, 1), (5, 7)]))
  ranks, tied = (
    data.draw(st.sampled_from([(1,), (4,), (1, 3), (2, 4, 8)])),
    data.draw(st.booleans()),
  )
  alleles = [
    data.draw(st.integers(0, n - 1)) for n in (3 + len(ranks), 3 + len(ranks), 2 + len(ranks), 3, 3)
  ]
  rng = np.random.default_rng(data.draw(st.integers(0, 99)))
  supports = {
    name: rng.normal(size=shape)
    for name, shape in equation.support_shapes(fan_in, fan_out, ranks, tied=tied).items()
  }
  kernel, bias = rng.normal(size=(fan_in, fan_out)), rng.normal(size=fan_out)
  with jax.enable_x64(True):
    ours = equation.effective(
      jnp.asarray(kernel), jnp.asarray(bias), supports, jnp.array(alleles), ranks
    )
  for found, expected in zip(ours, reference(kernel, bias, supports, alleles, ranks), strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_numbers_that_no_form_reads_change_nothing(data):
  """`used_parts` names exactly what an adapter file must hold."""
  ranks, tied = data.draw(st.sampled_from([(4,), (2, 3)])), data.draw(st.booleans())
  alleles = [
    data.draw(st.integers(0, n - 1)) for n in (3 + len(ranks), 3 + len(ranks), 2 + len(ranks), 3, 3)
  ]
  rng = np.random.default_rng(0)
  full = {
    name: rng.normal(size=shape).astype(np.float32)
    for name, shape in equation.support_shapes(5, 7, ranks, tied=tied).items()
  }
  kept = {name: np.zeros_like(value) for name, value in full.items()}
  for name, part in equation.used_parts(alleles, ranks, tied=tied).items():
    kept[name][part] = full[name][part]
  kernel, bias = rng.normal(size=(5, 7)).astype(np.float32), rng.normal(size=7).astype(np.float32)
  run = lambda supports: equation.effective(
    jnp.asarray(kernel), jnp.asarray(bias), supports, jnp.array(alleles), ranks
  )
  for a, b in zip(run(full), run(kept), strict=True):
    np.testing.assert_array_equal(a, b)


def test_every_form_of_fresh_supports_is_the_base_layer():
  kernel, bias = (
    jax.random.normal(jax.random.key(0), (6, 9)),
    jax.random.normal(jax.random.key(1), (9,)),
  )
  supports = equation.init_supports(jax.random.key(2), 6, 9, ranks=(2, 4))
  for genome in itertools.product(range(5), range(5), range(4), range(3), range(3)):
    new_kernel, new_bias = jax.jit(equation.effective, static_argnames='ranks')(
      kernel, bias, supports, np.array(genome), ranks=(2, 4)
    )
    np.testing.assert_array_equal(new_kernel, kernel)
    np.testing.assert_array_equal(new_bias, bias)


def test_a_layer_without_bias_returns_the_shift_or_none():
  kernel = jax.random.normal(jax.random.key(0), (6, 9))
  supports = randomized(equation.init_supports(jax.random.key(2), 6, 9))
  _, shift = equation.effective(kernel, None, supports, jnp.array([0, 0, 1, 2, 2]))
  np.testing.assert_allclose(
    shift, supports['E'] + supports['C_down'][:, 0] @ kernel, rtol=1e-5, atol=1e-6
  )
  bare = equation.init_supports(jax.random.key(2), 6, 9, bias=False)
  assert bare.keys() == {'A_down', 'A_up', 'B_down', 'B_up'}
  assert equation.effective(kernel, None, bare, jnp.array([3, 3, 0, 0, 0]))[1] is None


def test_supports_left_unread_may_be_anything():
  """Selected, not multiplied by zero: a NaN in a form that is not chosen stays out."""
  supports = {
    name: jnp.full_like(value, jnp.nan)
    for name, value in equation.init_supports(jax.random.key(0), 4, 5).items()
  }
  kernel, bias = equation.effective(jnp.ones((4, 5)), jnp.ones(5), supports, jnp.zeros(5, int))
  assert np.all(kernel == 1)
  assert np.all(bias == 1)
