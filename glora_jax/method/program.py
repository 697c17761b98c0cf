"""Runs a model's program with adapted kernels: each is merged at its use.

A function of parameters and inputs is traced, and its jaxpr is evaluated equation by equation, as
`jax.core.eval_jaxpr` does. Instead of an adapted kernel there is a `Deferred`. An equation does one
of three things with it:

    it moves the kernel    casts, transposes, reshapes, slices of a stack: the result is `Deferred`
    it has a program       calls, scans, loops, branches, checkpoints: the program is run the same
                           way, with `Deferred` among its operands
    it uses the kernel     anything else: a rule of `glora_jax.method.rules` applies

So the forward pass holds one merged kernel at a time, and usually none where `multiply` applies. A
gradient keeps each merged kernel for the backward pass, unless a `jax.checkpoint` merges it again.

Two more kinds of arrays go the same way, adapted or not. Sharded weights (`glora_jax.shard`) are
all-gathered where they are used, a layer at a time, and again in the backward pass. A compiler that
only knows their sharding would rather send activations, and all-gather all images on every device.
Quantized arrays are dequantized where they are used.
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
from glora_jax.method.rules import Deferred, Gather, is_deferred, look_up, merge, multiply
from glora_jax.method.sample import is_array
from glora_jax.method.sharding import gather_over
from glora_jax.method.trace.events import parts_of_scan
from glora_jax.method.trace.primitives import move_axes, selection
from glora_jax.method.trace.view import Atom

# Primitives that do no more than call a jaxpr, and the parameter that has it.
_CALLS = {'jit': 'jaxpr', 'pjit': 'jaxpr', 'closed_call': 'call_jaxpr'}


def call(
  function: Callable[[Any, Any], Any],
  params: Any,
  inputs: Any,
  mesh: Mesh | None = None,
  *,
  defer: Callable[[Any], Any] | None = None,
  shard_gradients: bool = False,
) -> Any:
  """Returns `function(params, inputs)`, with weights merged and gathered where they are used.

  Args:
    function: of weights and inputs.
    params: tree of weights.
    inputs: any tree. If a loop goes over them, weights are gathered in it and not before it.
    mesh: devices that the weights are sharded over; None if they are replicated.
    defer: replaces weights with `Deferred`; None for none.
    shard_gradients: whether gradients by sharded weights are sharded, too: needed if those of all
      layers are in memory at once.
  """
  if mesh is not None:
    arrays, rebuild = arrays_of((params, inputs))
    params, inputs = rebuild(_barrier(arrays))
  params = params if defer is None else defer(params)

  def of_params(params: Any) -> Any:
    return function(params, inputs)

  if mesh is None:
    return _run(of_params, params)
  params = jax.tree.map(_defer_matrix, params, is_leaf=is_deferred)
  return _run(of_params, params, gather_over(mesh, shard_gradients))


# `call` may be within a loop over inputs, of a gradient that is accumulated for instance. Weights
# are loop-invariant there, and so is their all-gather, which a compiler would hoist: all weights
# would be gathered at once. Behind one barrier with the inputs, which are others in each iteration,
# they are not invariant. (PRNG keys and integers come along, and have no tangents of their type:
# the derivative of the barrier itself would fail.)
@jax.custom_jvp
def _barrier(arrays: list[Any]) -> Any:
  """Weights and inputs behind one barrier, so that no all-gather is hoisted out of a loop."""
  return jax.lax.optimization_barrier(arrays)


@_barrier.defjvp
def _barrier_jvp(primals: Any, tangents: Any) -> Any:
  return _barrier(*primals), tangents[0]


def _defer_matrix(leaf: Any) -> Any:
  """A weight that may be sharded, deferred; anything else unchanged."""
  is_weight = is_array(leaf) and not is_deferred(leaf) and leaf.ndim >= 2
  return Deferred.unadapted(leaf, leaf.dtype) if is_weight else leaf


def _run(function: Callable[[Any], Any], params: Any, gather: Gather | None = None) -> Any:
  """Calls a function of weights, some of which are `Deferred`."""
  deferred, rebuild_params = arrays_of(params, is_deferred)
  if not deferred:
    return function(params)

  # `make_jaxpr` needs a function that returns arrays alone, but a model may return anything beside
  # them (NNX modules, strings). So the function is traced for its arrays, and the rest of its
  # result is kept from the trace, as a function that puts arrays back into it.
  rebuild_result: Callable[[Sequence[Any]], Any] = list

  def arrays_alone(arrays: Sequence[Any]) -> list[Any]:
    nonlocal rebuild_result
    result, rebuild_result = arrays_of(function(rebuild_params(arrays)))
    return result

  shapes = [jax.ShapeDtypeStruct(value.shape, value.dtype) for value in deferred]
  program = jax.make_jaxpr(arrays_alone)(shapes)
  # A model may also return the weights that it got, as NNX's calls do within a scan: unused results
  # are removed, so that the weights are not merged for them (tests/method/test_program.py,
  # `handed_on`).
  used, _ = dce_jaxpr(program.jaxpr, [True] * len(program.out_avals), instantiate=True)
  return rebuild_result(_Interpreter(gather).arrays(program.replace(jaxpr=used), deferred))


def arrays_of(
  tree: Any, belongs: Callable[[Any], bool] = is_array
) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
  """The arrays of a tree, or other leaves, and a function that replaces them."""
  leaves, structure = jax.tree.flatten(tree, is_leaf=is_deferred)
  places = [place for place, leaf in enumerate(leaves) if belongs(leaf)]

  def rebuild(arrays: Sequence[Any]) -> Any:
    new = dict(zip(places, arrays, strict=True))
    return structure.unflatten([new.get(place, leaf) for place, leaf in enumerate(leaves)])

  return [leaves[place] for place in places], rebuild


class _Interpreter:
  """Evaluates a jaxpr, of whose operands some are `Deferred`.

  Args:
    gather: all-gathers a sharded array; None if all are replicated.
  """

  def __init__(self, gather: Gather | None):
    self._gather = gather
    self._calls: dict[core.ClosedJaxpr, Callable[..., list[Any]]] = {}

  def arrays(self, program: core.Jaxpr | core.ClosedJaxpr, operands: Sequence[Any]) -> list[Any]:
    """Runs a program, and returns arrays."""
    return list(map(self._merge, self._run(program, operands)))

  def _run(self, program: core.Jaxpr | core.ClosedJaxpr, operands: Sequence[Any]) -> list[Any]:
    """Runs a program; a kernel that it returns unused stays deferred."""
    consts: Sequence[Any] = ()
    if isinstance(program, core.ClosedJaxpr):
      program, consts = program.jaxpr, program.consts
    known = dict(zip(program.constvars, consts, strict=True))
    known |= zip(program.invars, operands, strict=True)

    def value_of(atom: Any) -> Any:
      return atom.val if isinstance(atom, core.Literal) else known[atom]

    for equation in program.eqns:
      results = self._evaluate(equation, [value_of(atom) for atom in equation.invars])
      known |= zip(equation.outvars, results, strict=True)
    return [value_of(atom) for atom in program.outvars]

  def _evaluate(self, equation: core.JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
    """The results of an equation: of arrays, or by one of the three ways above."""
    name = equation.primitive.name
    if not any(map(is_deferred, values)):
      return _evaluate_arrays(equation, values)
    if name in _CALLS:
      return self._call(equation.params[_CALLS[name]], values)
    if name in _CONTROL:
      return _CONTROL[name](self, equation, values)
    moved = _move(equation, *values)
    return self._use(equation, values) if moved is None else [moved]

  def _call(self, program: core.ClosedJaxpr, values: Sequence[Any]) -> list[Any]:
    """Runs a program that is called; its trace is used again where the model calls it again."""
    if program not in self._calls:
      run = functools.partial(self._run, program)
      self._calls[program] = jax.jit(lambda *values: run(values), inline=True)
    return self._calls[program](*values)

  def _use(self, equation: core.JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
    """The results of an equation that uses kernels: by a rule, or of merged ones."""
    with jax.named_scope(str(equation.source_info.name_stack)):  # the module's, for profiles
      result = self._by_rule(equation, values)
    if result is not None:
      return [result]

    def use(*values: Any) -> Sequence[Any]:
      return _evaluate_arrays(equation, list(map(self._merge, values)))

    # Gathered and dequantized arrays are not kept for the backward pass, but made again.
    is_kept = self._gather is None and not has_quantized(values)
    return use(*values) if is_kept else jax.checkpoint(use)(*values)

  def _by_rule(self, equation: core.JaxprEqn, values: Sequence[Any]) -> Any:
    """A product or a lookup without a merged kernel; None if no such rule applies."""
    params = equation.params
    if any(is_deferred(value) and value.watch for value in values):
      return None
    if equation.primitive.name == 'dot_general':
      place = int(is_deferred(values[1]))
      kernel, x = values[place], values[1 - place]
      if not is_deferred(x):
        return multiply(kernel, x, place, params, self._gather)
    if 'slice_sizes' in params and is_deferred(values[0]):  # gather, dynamic_slice
      indices = list(map(self._merge, values[1:]))

      def take(array: jax.Array, **changed: Any) -> jax.Array:
        return equation.primitive.bind(array, *indices, **{**params, **changed})

      # Sharded experts are all-gathered once, not for each token that selects them.
      layers = None if self._gather else _select(values[0], indices[0], params)
      return layers or look_up(values[0], take, params, self._gather)
    return None

  def _merge(self, value: Any) -> Any:
    """The array that a deferred kernel stands for; any other value unchanged."""
    lora_product = _lora_product if self._gather else None
    return merge(value, lora_product, self._gather) if is_deferred(value) else value

  # Equations that have programs. JAX's own transformation is called anew, with a function that runs
  # the program: so gradients, batching and compilation are JAX's. Its operands may be `Deferred`,
  # which is a pytree; its programs must return arrays. Whether a kernel is merged before or inside
  # decides how much memory a step needs.

  def _checkpoint(self, equation: core.JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
    """Kernels go in deferred: for the backward pass the base's array is saved, none merged."""
    params = equation.params

    def block(*values: Any) -> list[Any]:
      return self.arrays(params['jaxpr'], values)

    policy = params['policy'] and functools.partial(_is_saveable, params['policy'])
    return jax.checkpoint(block, prevent_cse=params['prevent_cse'], policy=policy)(*values)

  def _scan(self, equation: core.JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
    """A stack goes in deferred, one layer of it an iteration, and each is merged in the body.

    The carry has to have the same type before and after an iteration, so a kernel in it is merged
    before the loop. So is a stack whose layers are not along its first dimension.
    """
    params = equation.params
    num_consts, num_carry = parts_of_scan(equation)
    consts, rest = self._loop_invariants(values[:num_consts]), values[num_consts:]
    carry, stacks = list(map(self._merge, rest[:num_carry])), rest[num_carry:]
    items = [
      (_scanned(stack) or self._merge(stack)) if is_deferred(stack) else stack for stack in stacks
    ]

    def body(carry: Any, items: Any) -> Any:
      results = self.arrays(params['jaxpr'], [*consts, *carry, *items])
      return results[:num_carry], results[num_carry:]

    options = {name: params[name] for name in ('length', 'reverse', 'unroll')}
    carry, collected = jax.lax.scan(body, carry, items, **options)
    return [*carry, *collected]

  def _while(self, equation: core.JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
    """As for a scan, but without stacked inputs; the condition may use kernels, too."""
    params = equation.params
    of_condition, of_body = params['cond_nconsts'], params['body_nconsts']
    cond_consts = self._loop_invariants(values[:of_condition])
    body_consts = self._loop_invariants(values[of_condition : of_condition + of_body])
    carry = list(map(self._merge, values[of_condition + of_body :]))
    return jax.lax.while_loop(
      lambda carry: self.arrays(params['cond_jaxpr'], [*cond_consts, *carry])[0],
      lambda carry: self.arrays(params['body_jaxpr'], [*body_consts, *carry]),
      carry,
    )

  def _cond(self, equation: core.JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
    """Kernels go into all branches deferred; the branch that is run merges those it uses."""
    index, *operands = map(self._merge, values[:1]), *values[1:]
    branches = [
      lambda *operands, program=program: self.arrays(program, operands)
      for program in equation.params['branches']
    ]
    return jax.lax.switch(*index, branches, *operands)

  def _loop_invariants(self, values: Sequence[Any]) -> list[Any]:
    """The operands that each iteration of a loop reads.

    A kernel without a stack is merged before the loop, since every iteration would merge it again.
    These go in deferred: a stack, since an iteration uses only one of its layers; a kernel that
    `multiply` need not merge; one that is gathered or dequantized, since the result would be kept
    during the whole loop; and one with dropout, which needs the inputs of the product.
    """

    def is_merged_before(value: Any) -> bool:
      if not is_deferred(value) or self._gather or value.is_quantized or value.dropout:
        return False
      return not (value.plan.stack or value.plan.goes_by_output)

    return [self._merge(value) if is_merged_before(value) else value for value in values]


_CONTROL: Mapping[str, Callable[[_Interpreter, core.JaxprEqn, Sequence[Any]], Sequence[Any]]] = {
  'checkpoint': _Interpreter._checkpoint,
  'remat2': _Interpreter._checkpoint,
  'scan': _Interpreter._scan,
  'while': _Interpreter._while,
  'cond': _Interpreter._cond,
}


def _lora_product(down: jax.Array, up: jax.Array) -> jax.Array:
  """The product of a LoRA's factors for a sharded base: on CPU a sum of outer products.

  It needs no array of the kernel's size: sharded over eight devices a step needs 33 MiB instead of
  43. On TPU a matrix product needs less. A base that is not sharded has matrix products, since sums
  made scoring through a program 1.6 times as slow.
  """
  return jax.lax.platform_dependent(down, up, cpu=low_rank_product, default=matrix_product)


def _is_saveable(policy: Callable[..., bool], primitive: Any, *args: Any, **params: Any) -> bool:
  """The policy of a `jax.checkpoint`, which saves nothing that was all-gathered.

  `gather_over` is a `custom_jvp`, and a policy is asked about its call as a whole, in which the
  all-gather is a `sharding_constraint`.
  """
  equations = getattr(params.get('call_jaxpr'), 'eqns', ())
  is_gathered = any(equation.primitive.name == 'sharding_constraint' for equation in equations)
  return not is_gathered and policy(primitive, *args, **params)


def _move(equation: core.JaxprEqn, kernel: Any, *indices: Any) -> Deferred | None:
  """A deferred kernel after an equation that only moves or casts it; None if it uses it."""
  name, params = equation.primitive.name, equation.params
  if not is_deferred(kernel):
    return None
  view = kernel.plan.view
  if name == 'convert_element_type' and jnp.issubdtype(params['new_dtype'], jnp.floating):
    return kernel.cast(params['new_dtype'])
  if name == 'sharding_constraint':  # of a parameter, which is sharded like this already
    return kernel
  if name == 'dynamic_slice':
    return _slice(kernel, indices, params['slice_sizes'])
  if name == 'slice' and not params['strides']:
    starts = params['start_indices']
    return _slice(kernel, starts, np.subtract(params['limit_indices'], starts).tolist())
  is_larger = name == 'broadcast_in_dim' and math.prod(params['shape']) > math.prod(view.shape)
  moved = move_axes(name, params, view) if name in _MOVES and not is_larger else None
  return None if moved is None else kernel.with_plan(view=moved)


_MOVES = frozenset(('transpose', 'reshape', 'squeeze', 'broadcast_in_dim'))


def _slice(kernel: Deferred, starts: Sequence[Any], sizes: Sequence[int]) -> Deferred | None:
  """A slice along axes of the stack, of the kernel and its adapter; None along other axes."""
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


def _select(kernel: Deferred, indices: jax.Array, params: Mapping[str, Any]) -> Deferred | None:
  """The layers of a stack that a `gather` selects by a list of numbers, as `weights[experts]` does.

  None if it selects anything else, may fill in NaN, or if the product would merge the selected
  kernels: many tokens select the same expert, so these are more layers than the stack has.
  """
  plan, place = kernel.plan, kernel.plan.stack_place(0)
  is_merged = not (plan.goes_by_output or kernel.dropout)
  if place is None or is_merged or indices.shape[1:] != (1,):
    return None
  is_take = selection(params, kernel.shape) == (0, [*range(1, len(kernel.shape))])
  if not is_take or params['mode'] == jax.lax.GatherScatterMode.FILL_OR_DROP:
    return None
  numbers = jnp.maximum(indices[:, 0], 0)
  layers = kernel.map(functools.partial(jnp.take, indices=numbers, axis=place, mode='clip'))
  if layers.dropout:
    layers = dataclasses.replace(layers, dropout=layers.dropout.of_each(layers.forms.shape[:-1]))
  dims = ((Atom(plan.stack[place], len(numbers)),), *plan.view.dims[1:])
  return layers.with_plan(view=dataclasses.replace(plan.view, dims=dims))


def _scanned(kernel: Deferred) -> Deferred | None:
  """A stack for `jax.lax.scan`: each leaf has the layers first, and the plan is that of one layer.

  So the leaves have an axis more than the plan says, until the scan has removed it. If the first
  dimension has size one, it may be no axis of the stack (a reshape may have added it), so the
  leaves get a new axis for it. None if the first dimension is anything else than a stack axis.
  """
  plan = kernel.plan
  view = plan.view.index((0,), None)
  if plan.view.shape[0] == 1:
    return kernel.with_plan(view=view).map(lambda leaf: leaf[None])
  place = plan.stack_place(0)
  if place is None:
    return None
  stack = tuple(axis for number, axis in enumerate(plan.stack) if number != place)
  return kernel.with_plan(view=view, stack=stack).map(lambda leaf: jnp.moveaxis(leaf, place, 0))


def _evaluate_arrays(equation: core.JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
  """The results of an equation of arrays, one for each of its outputs.

  It is run as a program of one equation, so that JAX itself evaluates the primitive as in
  `eval_jaxpr`: sub-programs, effects, several results.
  """
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
