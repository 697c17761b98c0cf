"""Runs a model's program with adapted kernels: each is merged where the program uses it.

A function of parameters and inputs is traced, and its program run equation by equation. An adapted
kernel goes in as `Deferred`, which casts, transposes, reshapes, slices of a stack, calls, scans,
loops, branches and blocks that are computed again pass on. The first equation that does not uses
it, by a rule of `glora_jax.method.rules`. So only one merged kernel is alive at a time.

Kernels of which every device holds a part (`glora_jax.shard`) are deferred in the same way, adapted
or not, and gathered where they are used. A compiler that only knows how weights lie would rather
send activations, and gather all images on every device. On the way back they are gathered and
merged again, and so never kept. Quantized arrays are deferred likewise, and taken out where they
are used.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr
from jax.sharding import Mesh

from glora_jax.method.equation import low_rank_product, matrix_product
from glora_jax.method.quantized import has_quantized
from glora_jax.method.rules import Deferred, Gather, look_up, merge, multiply
from glora_jax.method.sample import is_array
from glora_jax.method.sharding import gather_over
from glora_jax.method.trace.events import parts_of_scan
from glora_jax.method.trace.primitives import move_axes
from glora_jax.method.trace.view import Atom

CALLS = ('jit', 'pjit')  # primitives that do no more than call a jaxpr


def call(
  function: Callable[[Any, Any], Any],
  params: Any,
  inputs: Any,
  mesh: Mesh | None = None,
  *,
  defer: Callable[[Any], Any] | None = None,
  shard_gradients: bool = False,
) -> Any:
  """What a function of weights and inputs returns.

  Args:
    function: of weights and inputs.
    params: tree of weights.
    inputs: any tree. Where a loop goes over them, weights are gathered in it and not before it.
    mesh: devices that the weights are sharded over; None where each holds them whole.
    defer: what puts `Deferred` in the place of weights; None for none.
    shard_gradients: whether gradients by sharded weights lie in parts, too: where those of all
      layers are there at once.
  """
  if mesh is not None:
    arrays, rebuild = arrays_of((params, inputs))
    params, inputs = rebuild(_tied(arrays))
  params = params if defer is None else defer(params)

  def of_params(params: Any) -> Any:
    return function(params, inputs)

  if mesh is None:
    return _run(of_params, params)
  params = jax.tree.map(_in_parts, params, is_leaf=_is_deferred)
  return _run(of_params, params, gather_over(mesh, shard_gradients))


@jax.custom_jvp
def _tied(arrays: list[Any]) -> Any:
  """Arrays, of which a compiler takes none out of a loop that some come from."""
  return jax.lax.optimization_barrier(arrays)


@_tied.defjvp
def _tied_tangents(primals: Any, tangents: Any) -> Any:
  return _tied(*primals), tangents[0]  # also of keys and whole numbers, which have none


def _in_parts(leaf: Any) -> Any:
  """A weight of which every device holds a part, deferred."""
  is_whole = _is_deferred(leaf) or not is_array(leaf) or leaf.ndim < 2
  return leaf if is_whole else Deferred.unadapted(leaf, leaf.dtype)


def _run(function: Callable[[Any], Any], params: Any, gather: Gather | None = None) -> Any:
  """What a function of weights returns, of which some are `Deferred`.

  A model may return the weights that it was given, as NNX's calls do: nothing is merged for results
  that nobody uses.
  """
  deferred, rebuild = arrays_of(params, _is_deferred)
  if not deferred:
    return function(params)
  results: list[Any] = []

  def of_arrays(arrays: Sequence[Any]) -> list[Any]:
    results[:] = arrays_of(function(rebuild(arrays)))
    return results[0]

  shapes = [jax.ShapeDtypeStruct(value.shape, value.dtype) for value in deferred]
  program = jax.make_jaxpr(of_arrays)(shapes)
  used, _ = dce_jaxpr(program.jaxpr, [True] * len(program.out_avals), instantiate=True)
  return results[1](_Program(gather).arrays(program.replace(jaxpr=used), deferred))


def _product(down: jax.Array, up: jax.Array) -> jax.Array:
  """The product of a LoRA's factors: on CPU a sum of outer products.

  It needs no array of the kernel's size: sharded over eight devices a step holds 33 MiB in place of
  43. On TPU a matrix product holds less.
  """
  return jax.lax.platform_dependent(down, up, cpu=low_rank_product, default=matrix_product)


def _is_deferred(value: Any) -> bool:
  return isinstance(value, Deferred)


def arrays_of(
  tree: Any, belongs: Callable[[Any], bool] = is_array
) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
  """The arrays of a tree, or other leaves, and what makes the tree of others in their places."""
  leaves, structure = jax.tree.flatten(tree, is_leaf=_is_deferred)
  places = [place for place, leaf in enumerate(leaves) if belongs(leaf)]

  def rebuild(arrays: Sequence[Any]) -> Any:
    given = dict(zip(places, arrays, strict=True))
    return structure.unflatten([given.get(place, leaf) for place, leaf in enumerate(leaves)])

  return [leaves[place] for place in places], rebuild


def _cut(kernel: Deferred, starts: Sequence[Any], sizes: Sequence[int]) -> Deferred | None:
  """A slice along axes of the stack."""
  for dim, (start, size) in enumerate(zip(starts, sizes, strict=True)):
    view = kernel.plan.view
    if size == view.shape[dim]:
      continue
    place = kernel.plan.stack_place(dim)
    if place is None:
      return None
    cut = functools.partial(
      jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=size, axis=place
    )
    dims = list(view.dims)
    dims[dim] = (Atom(kernel.plan.stack[place], size),)
    kernel = kernel.map(cut).with_plan(view=dataclasses.replace(view, dims=tuple(dims)))
  return kernel


# Of the first operand, which is laid otherwise or cut.
_MOVED = frozenset(('transpose', 'reshape', 'squeeze', 'broadcast_in_dim'))


def _items(kernel: Deferred) -> Deferred | None:
  """What a scan goes through: layers along the first dimension, with the plan of one of them."""
  plan = kernel.plan
  view = plan.view.index((0,), None)
  if plan.view.shape[0] == 1:
    return kernel.with_plan(view=view).map(lambda leaf: leaf[None])
  place = plan.stack_place(0)
  if place is None:
    return None
  stack = tuple(axis for number, axis in enumerate(plan.stack) if number != place)
  return kernel.with_plan(view=view, stack=stack).map(lambda leaf: jnp.moveaxis(leaf, place, 0))


class _Program:
  """Runs a program, and uses deferred kernels where it does.

  Args:
    gather: makes an array whole on every device; None where all are.
  """

  def __init__(self, gather: Gather | None):
    self._gather = gather

  def arrays(self, program: core.Jaxpr | core.ClosedJaxpr, operands: Sequence[Any]) -> list[Any]:
    """What a program returns, as arrays."""
    return list(map(self._whole, self._run(program, operands)))

  def _whole(self, value: Any) -> Any:
    return merge(value, _product, self._gather) if _is_deferred(value) else value

  def _run(self, program: core.Jaxpr | core.ClosedJaxpr, operands: Sequence[Any]) -> list[Any]:
    consts: Sequence[Any] = ()
    if isinstance(program, core.ClosedJaxpr):
      program, consts = program.jaxpr, program.consts
    known = dict(zip(program.constvars, consts, strict=True))
    known |= zip(program.invars, operands, strict=True)

    def value_of(atom: Any) -> Any:
      return atom.val if isinstance(atom, core.Literal) else known[atom]

    for equation in program.eqns:
      results = self._results(equation, [value_of(atom) for atom in equation.invars])
      known |= zip(equation.outvars, results, strict=True)
    return [value_of(atom) for atom in program.outvars]

  def _results(self, equation: core.JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
    """What an equation gives, of values of which some may be deferred."""
    name = equation.primitive.name
    if not any(map(_is_deferred, values)):
      return result_of(equation, values)
    if name in (*CALLS, 'closed_call'):
      return self._run(equation.params['jaxpr'], values)
    if name in _CONTROL:
      return _CONTROL[name](self, equation, values)
    passed = _passed_on(equation, *values)
    return self._use(equation, values) if passed is None else [passed]

  def _use(self, equation: core.JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
    """What an equation gives of kernels; what is gathered is not kept for the way back."""
    found = self._by_rule(equation, values)
    if found is not None:
      return [found]

    def use(*values: Any) -> Sequence[Any]:
      return result_of(equation, list(map(self._whole, values)))

    is_kept = self._gather is None and not has_quantized(values)
    return use(*values) if is_kept else jax.checkpoint(use)(*values)

  def _by_rule(self, equation: core.JaxprEqn, values: Sequence[Any]) -> jax.Array | None:
    """What a product or a lookup gives without a merged kernel; None where no rule applies."""
    params = equation.params
    if equation.primitive.name == 'dot_general':
      place = int(_is_deferred(values[1]))
      kernel, x = values[place], values[1 - place]
      if not _is_deferred(x):
        return multiply(kernel, x, place, params, self._gather)
    if 'slice_sizes' in params and _is_deferred(values[0]):  # gather, dynamic_slice
      indices = list(map(self._whole, values[1:]))

      def take(array: jax.Array, **changed: Any) -> jax.Array:
        return equation.primitive.bind(array, *indices, **{**params, **changed})

      return look_up(values[0], take, params, self._gather)
    return None

  def _checkpoint(self, equation: core.JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
    """A block that is computed again on the way back."""
    params = equation.params

    def block(*values: Any) -> list[Any]:
      return self.arrays(params['jaxpr'], values)

    policy = params['policy'] and functools.partial(_is_kept, params['policy'])
    return jax.checkpoint(block, prevent_cse=params['prevent_cse'], policy=policy)(*values)

  def _scan(self, equation: core.JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
    """A scan, whose constants and items are merged in its body."""
    params = equation.params
    num_consts, num_carry = parts_of_scan(equation)
    consts, rest = self._constants(values[:num_consts]), values[num_consts:]
    carry, stacks = list(map(self._whole, rest[:num_carry])), rest[num_carry:]
    items = [
      (_items(stack) or self._whole(stack)) if _is_deferred(stack) else stack for stack in stacks
    ]

    def body(carry: Any, items: Any) -> Any:
      results = self.arrays(params['jaxpr'], [*consts, *carry, *items])
      return results[:num_carry], results[num_carry:]

    options = {name: params[name] for name in ('length', 'reverse', 'unroll')}
    carry, collected = jax.lax.scan(body, carry, items, **options)
    return [*carry, *collected]

  def _while(self, equation: core.JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
    params = equation.params
    tests, consts = params['cond_nconsts'], params['body_nconsts']
    of_test = self._constants(values[:tests])
    of_body = self._constants(values[tests : tests + consts])
    carry = list(map(self._whole, values[tests + consts :]))
    return jax.lax.while_loop(
      lambda carry: self.arrays(params['cond_jaxpr'], [*of_test, *carry])[0],
      lambda carry: self.arrays(params['body_jaxpr'], [*of_body, *carry]),
      carry,
    )

  def _constants(self, values: Sequence[Any]) -> list[Any]:
    """What each iteration of a loop has; what each would merge the whole of is merged before."""

    def before(value: Any) -> Any:
      is_made_before = _is_deferred(value) and not (self._gather or value.is_quantized)
      plan = value.plan if is_made_before else None
      return value if plan is None or plan.stack or plan.goes_by_output else self._whole(value)

    return list(map(before, values))

  def _cond(self, equation: core.JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
    index, *operands = map(self._whole, values[:1]), *values[1:]
    branches = [
      lambda *operands, program=program: self.arrays(program, operands)
      for program in equation.params['branches']
    ]
    return jax.lax.switch(*index, branches, *operands)


_CONTROL: Mapping[str, Callable[[_Program, core.JaxprEqn, Sequence[Any]], Sequence[Any]]] = {
  'checkpoint': _Program._checkpoint,
  'remat2': _Program._checkpoint,
  'scan': _Program._scan,
  'while': _Program._while,
  'cond': _Program._cond,
}


def _passed_on(equation: core.JaxprEqn, kernel: Any, *indices: Any) -> Deferred | None:
  """What an equation makes of a deferred kernel that goes on as one; None where it uses it."""
  name, params = equation.primitive.name, equation.params
  if not _is_deferred(kernel):
    return None
  view = kernel.plan.view
  if name == 'convert_element_type' and jnp.issubdtype(params['new_dtype'], jnp.floating):
    return kernel.cast(params['new_dtype'])
  if name == 'dynamic_slice':
    return _cut(kernel, indices, params['slice_sizes'])
  if name == 'slice' and not params['strides']:
    starts = params['start_indices']
    return _cut(kernel, starts, np.subtract(params['limit_indices'], starts).tolist())
  is_larger = name == 'broadcast_in_dim' and math.prod(params['shape']) > math.prod(view.shape)
  seen = move_axes(name, params, view) if name in _MOVED and not is_larger else None
  return None if seen is None else kernel.with_plan(view=seen)


def _is_kept(policy: Callable[..., bool], primitive: Any, *args: Any, **params: Any) -> bool:
  """The policy of a `jax.checkpoint`, which keeps nothing that was gathered."""
  equations = getattr(params.get('call_jaxpr'), 'eqns', ())
  is_gathered = any(equation.primitive.name == 'sharding_constraint' for equation in equations)
  return not is_gathered and policy(primitive, *args, **params)


def result_of(equation: core.JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
  """What an equation gives of arrays, a result for each of its outputs."""
  arguments = {
    atom: value
    for atom, value in zip(equation.invars, values, strict=True)
    if not isinstance(atom, core.Literal)
  }
  program = _empty().replace(
    invars=list(arguments), outvars=equation.outvars, eqns=[equation], effects=equation.effects
  )
  return jax.core.eval_jaxpr(program, (), *arguments.values())


@functools.cache
def _empty() -> core.Jaxpr:
  return jax.make_jaxpr(tuple)().jaxpr
