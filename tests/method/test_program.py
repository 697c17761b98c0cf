"""Kernels are merged, and weights that lie in parts gathered, where a program uses them."""

import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import pytest
from comparing import assert_trees_close, random_params, random_variables
from jax.extend.core import jaxprs_in_params
from numpy.testing import assert_allclose
from small_models import Mlp
from trees import normal

import glora_jax
from glora_jax.method import program
from glora_jax.method.rules import multiply
from glora_jax.method.space import SearchSpace

TOKENS, WIDTH, HIDDEN, DEPTH = 3, 6, 10, 4
X = normal(TOKENS, WIDTH)
PARAMS = {
  'up': normal(DEPTH, WIDTH, HIDDEN, seed=1) / 3,
  'down': normal(DEPTH, HIDDEN, WIDTH, seed=2) / 3,
}
EVERYTHING = jax.checkpoint_policies.everything_saveable


def block(x, layer):
  return x + jnp.tanh(x @ layer['up']) @ layer['down']


def scanned(params, x, block=block):
  return jax.lax.scan(lambda x, layer: (block(x, layer), None), x, params)[0]


def computed_again(params, x):
  return scanned(params, x, jax.checkpoint(block, policy=EVERYTHING))


def of_items(params, number):
  return jax.tree.map(lambda stack: stack[number], params)


def counted(params, x):
  return jax.lax.fori_loop(0, DEPTH, lambda i, x: block(x, of_items(params, i)), x)


def chosen(params, x):
  branches = [lambda x, i=i: block(x, of_items(params, i)) for i in range(DEPTH)]
  return jax.lax.switch((x[0, 0] > 0).astype(int), branches, x)


def repeated(params, x):
  first = of_items(params, 1)
  return jax.lax.scan(lambda x, _: (block(x, first), None), x, length=3)[0]


def handed_on(params, x):
  """In the manner of NNX, whose calls return the state that they were given; nobody uses it."""

  @jax.checkpoint
  def run(params, x):
    return params, block(x, params)

  def body(x, layer):
    layer, x = run(layer, x)
    return x, layer

  return jax.lax.scan(body, x, params)[0]


def turned(params, x):
  """Kernels the other way round, in other types and shapes, scanned along their last axis."""
  stacks = jax.tree.map(lambda stack: stack.transpose(1, 2, 0).astype(jnp.bfloat16), params)

  def run(x, layer):
    up, down = (kernel.T.astype(jnp.float32) for kernel in layer)
    up = up.reshape(2, HIDDEN // 2, WIDTH)
    x = jnp.einsum('abi,ti->tab', up, x)
    return jnp.einsum('tab,oab->to', jnp.tanh(x), down.reshape(WIDTH, 2, -1)), None

  items = (stacks['up'], stacks['down'])
  return jax.lax.scan(run, x, jax.tree.map(lambda stack: jnp.moveaxis(stack, 2, 0), items))[0]


def selected(params, x):
  """A layer for each of two tokens, as a mixture of experts has them."""
  x = x[:2]
  layers = of_items(params, x.argmax(-1) % DEPTH)
  return x + (jnp.tanh(x[:, None] @ layers['up']) @ layers['down'])[:, 0]


MESH = jax.make_mesh((1, 1), ('data', 'fsdp'), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def constrained(params, x):
  """A model that says how its weights are sharded, as Linen's boxed parameters do under a mesh."""
  sharding = jax.sharding.NamedSharding(MESH, jax.sharding.PartitionSpec(None, None, 'fsdp'))
  return scanned(jax.lax.with_sharding_constraint(params, sharding), x)


@jax.custom_vjp
def own_product(x, w):
  return x @ w


own_product.defvjp(
  lambda x, w: (x @ w, (x, w)), lambda saved, slope: (slope @ saved[1].T, 2 * saved[0].T @ slope)
)


def of_own_slope(params, x):
  """The gradient by its first weights is what the model says it is."""
  first = of_items(params, 0)
  return jnp.tanh(own_product(x, first['up'])) @ first['down']


def forces(params, x):
  """A gradient through a checkpointed scan, which JAX makes a `closed_call` of."""
  energy = jax.checkpoint(lambda x: jnp.square(scanned(params, x)).sum(), policy=EVERYTHING)
  return jax.grad(energy)(x)


FUNCTIONS = [
  *(scanned, computed_again, counted, chosen, repeated),
  *(handed_on, turned, selected, constrained),
]


@functools.cache
def adapted_to(function):
  space = SearchSpace(ranks=(2,))
  adapted = glora_jax.adapt_function(function, PARAMS, X, space=space, heads=None)
  return adapted, random_variables(adapted, PARAMS)


def total(apply, adapted, trainable, frozen):
  outputs = apply(adapted.join(trainable, frozen))
  return jnp.cos(jnp.arange(outputs.size)) @ outputs.ravel()


def program_of(function, preset):
  """The gradient's program of a fixed preset."""
  adapted, variables = adapted_to(function)
  subnet = adapted.fix(glora_jax.preset(adapted.spec, preset))
  run = functools.partial(total, lambda variables: subnet.apply(variables, X), adapted)
  return jax.make_jaxpr(jax.grad(run))(*adapted.split(variables)).jaxpr


def equations(jaxpr):
  for equation in jaxpr.eqns:
    yield equation
    for inner in jaxprs_in_params(equation.params):
      yield from equations(inner)


@pytest.mark.parametrize(
  'function, preset',
  [
    *itertools.product([*FUNCTIONS, of_own_slope], ['lora', 'full']),
    (turned, 'scale_shift_lora:2'),
  ],
)
def test_outputs_and_gradients_are_those_of_folded_kernels(function, preset):
  adapted, variables = adapted_to(function)
  subnet = adapted.fix(glora_jax.preset(adapted.spec, preset))
  ways = (
    lambda variables: subnet.apply(variables, X),
    lambda variables: adapted.apply(variables, X, genome=subnet.genome),
    lambda variables: function(adapted.fold(variables, subnet.genome), X),
  )
  totals = [jax.value_and_grad(functools.partial(total, way, adapted)) for way in ways]
  *found, expected = jax.jit(lambda *halves: [way(*halves) for way in totals])(
    *adapted.split(variables)
  )
  for each in found:
    assert_trees_close(each, expected, 2e-2 if function is turned else 1e-5)


def test_products_keep_the_names_of_their_modules():
  model, x = Mlp(), normal(2, 4)
  adapted = glora_jax.adapt(model, x, structure='lora:2', heads=None)
  variables = random_variables(adapted, random_params(model, x))
  program = jax.jit(adapted.apply).lower(variables, x).as_text(debug_info=True)
  assert {*re.findall(r'(\w+)/dot_general"', program)} == {'fc', 'head'}


@pytest.mark.parametrize('function', FUNCTIONS)
def test_a_step_of_a_lora_makes_no_array_of_the_size_of_a_kernel(function):
  made = (
    variable.aval.shape
    for equation in equations(program_of(function, 'lora'))
    if equation.primitive.name == 'dot_general'
    for variable in equation.outvars
  )
  assert max(map(math.prod, made)) < WIDTH * HIDDEN


@pytest.mark.parametrize('function', [scanned, computed_again, counted, handed_on])
def test_a_merged_kernel_is_that_of_one_layer_and_no_policy_keeps_it(function):
  shapes = [
    tuple(size for size in variable.aval.shape if size > 1)
    for equation in equations(program_of(function, 'full'))
    if equation.primitive.name in ('add', 'add_any', 'mul')
    for variable in equation.outvars
  ]
  assert {(WIDTH, HIDDEN), (HIDDEN, WIDTH)} <= {*shapes}
  whole = {(DEPTH, WIDTH, HIDDEN), (DEPTH, HIDDEN, WIDTH)}
  assert whole.isdisjoint(shapes)


def unrolled(params, x):
  for number in range(DEPTH):
    x = jax.jit(block)(x, of_items(params, number))
  return x


def test_a_call_that_is_repeated_is_traced_once(monkeypatch):
  traced = []
  monkeypatch.setattr(program, 'multiply', lambda *args: traced.append(args) or multiply(*args))
  adapted, variables = adapted_to(unrolled)
  jax.make_jaxpr(adapted.fix('lora:2').apply)(variables, X)
  assert len(traced) == len(PARAMS)


def looked_up(params, x):
  return x + params['down'][0][jnp.array([3, 1, 7])]


def of_unknown_length(params, x):
  """It uses a weight in the condition, too."""
  first = of_items(params, 0)

  def goes_on(state):
    return (state[0] < 5) & (jnp.abs(state[1] @ first['up']).max() > 1e-3)

  return jax.lax.while_loop(goes_on, lambda s: (s[0] + 1, block(s[1], first)), (0, x))[1]


def gathered(function):
  return lambda params, x: program.call(function, params, x, MESH, shard_gradients=True)


def squares(function, params, x):
  return jnp.square(function(params, x)).sum()


@pytest.mark.parametrize('function', [*FUNCTIONS, of_own_slope, unrolled, looked_up, forces])
def test_gathered_weights_give_what_whole_ones_give_with_their_gradients(function):
  found, expected = (
    jax.jit(jax.value_and_grad(functools.partial(squares, run), argnums=(0, 1)))(PARAMS, X)
    for run in (gathered(function), function)
  )
  jax.tree.map(functools.partial(assert_allclose, rtol=1e-5, atol=1e-6), found, expected)


def test_a_loop_of_unknown_length_gathers_what_its_condition_reads_and_leaves_what_is_no_array():
  outputs = gathered(of_unknown_length)({**PARAMS, 'note': 'no array'}, X)
  assert_allclose(outputs, of_unknown_length(PARAMS, X), rtol=1e-6)


def gathers(jaxpr, inside=()):
  """The programs, from the outermost, in which something is gathered."""
  found = []
  for equation in jaxpr.eqns:
    name = equation.primitive.name
    if name == 'sharding_constraint' and equation.params['sharding'].spec == WHOLE:
      found.append((*inside, equation.outvars[0].aval.shape))
    for called in jaxprs_in_params(equation.params):
      found += gathers(called, (*inside, name) if name == 'scan' else inside)
  return found


WHOLE = jax.sharding.PartitionSpec()


@pytest.mark.parametrize('function', [scanned, computed_again])
def test_a_scanned_layer_is_gathered_in_the_scan_and_again_on_the_way_back(function):
  total = functools.partial(squares, gathered(function))
  once = [('scan', (WIDTH, HIDDEN)), ('scan', (HIDDEN, WIDTH))]
  for run, expected in ((total, once), (jax.grad(total), 2 * once)):
    assert sorted(gathers(jax.make_jaxpr(run)(PARAMS, X).jaxpr)) == sorted(expected)


def test_of_a_cast_layer_its_part_is_cast_and_then_gathered():
  def cast(stack, x):
    return x.astype(jnp.float16) @ stack[0].astype(jnp.float16)

  made = jax.make_jaxpr(lambda stack: program.call(cast, stack, X, MESH))(PARAMS['up'])
  assert gathers(made.jaxpr) == [((1, WIDTH, HIDDEN),)]
  constraint = next(e for e in equations(made.jaxpr) if e.primitive.name == 'sharding_constraint')
  assert constraint.outvars[0].aval.dtype == jnp.float16
