"""A walk over a jaxpr, equation by equation, also in scans, loops, branches and calls."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jax.extend import core

from glora_jax.method.trace.events import (
  Events,
  Position,
  Step,
  Value,
  join,
  origins_of,
  parts_of_scan,
  shape_of,
)
from glora_jax.method.trace.primitives import (
  Handler,
  add,
  keep,
  look_up,
  multiply,
  other,
  rearrange,
  scale,
  slice_at,
  split,
)


def walk(
  jaxpr: core.Jaxpr | core.ClosedJaxpr, values: Sequence[Value], position: Position
) -> list[Value]:
  """The values of a program's results.

  Args:
    jaxpr: the program.
    values: the values of its arguments.
    position: where it is run; `position.events` records how it uses parameters.
  """
  program = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
  known = dict(zip(program.invars, values, strict=True))
  for number, equation in enumerate(program.eqns):
    operands = [_value_of(variable, known) for variable in equation.invars]
    handler = _HANDLERS.get(equation.primitive.name) or (call if _body(equation) else other)
    results = handler(Step(equation, operands, position.within(number)))
    known.update(zip(equation.outvars, results, strict=True))
  return [_value_of(variable, known) for variable in program.outvars]


def _value_of(variable: core.Var | core.Literal, known: Mapping[core.Var, Value]) -> Value:
  if not isinstance(variable, core.Literal):
    return known.get(variable, Value())  # constants of a closed jaxpr are not known
  if np.ndim(variable.val):
    return Value()
  is_integer = isinstance(variable.val, (int, np.integer))
  return Value(number=int(variable.val) if is_integer else None)


def _body(equation: core.JaxprEqn) -> core.Jaxpr | core.ClosedJaxpr | None:
  """The program that a call runs on its operands, whatever the name of the primitive.

  It is the one parameter that is a program of the operands' shapes and the results', so calls of
  other libraries are followed, too.
  """
  for value in equation.params.values():
    if isinstance(value, (core.Jaxpr, core.ClosedJaxpr)):
      program = value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
      inside, outside = (
        [[*map(shape_of, variables)] for variables in (jaxpr.invars, jaxpr.outvars)]
        for jaxpr in (program, equation)
      )
      if inside == outside:
        return value
  return None


def call(step: Step) -> list[Value]:
  """jit, remat, custom_jvp, custom_vjp: the program in them, on the same operands."""
  body = _body(step.equation)
  assert body is not None
  return walk(body, step.operands, step.position)


def branch(step: Step) -> list[Value]:
  """`cond`: every branch, one after another."""
  which, *operands = step.operands
  branches = list(step.params['branches'])
  if len(branches) == 2:
    branches.reverse()  # first the branch that is run if the condition is true
  results = [
    walk(body, operands, step.position.within(number)) for number, body in enumerate(branches)
  ]
  joined = []
  for values in zip(*results, strict=True):
    value = functools.reduce(join, values)
    depends = which.depends and value.view is None
    joined.append(Value(True, origins=value.origins) if depends else value)
  return joined


def loop(step: Step) -> list[Value]:
  """`while`: the condition, and the body with its results."""
  tests, consts = step.params['cond_nconsts'], step.params['body_nconsts']
  of_test, of_body = step.operands[:tests], step.operands[tests : tests + consts]
  test, body = step.params['cond_jaxpr'], step.params['body_jaxpr']
  carry = _fixed_point(step, body, of_body, step.operands[tests + consts :], [])
  walk(test, [*of_test, *carry], step.position.within(0))
  walk(body, [*of_body, *carry], step.position.within(1))
  return carry


def _fixed_point(
  step: Step, body, consts: Sequence[Value], carry: Sequence[Value], items: Sequence[Value]
) -> list[Value]:
  """The values of a loop's carry that hold in every iteration.

  The body is walked, without recording, until the knowledge before an iteration also holds after
  it. That ends, since `join` can only forget views and numbers and add origins.
  """
  silent = step.position._replace(events=Events())
  current = [dataclasses.replace(value, number=None, product=None, layer=None) for value in carry]
  while True:
    after = walk(body, [*consts, *current, *items], silent)[: len(carry)]
    following = [join(*values) for values in zip(current, after, strict=True)]
    if following == current:
      return current
    current = following


def scan(step: Step) -> list[Value]:
  """`scan`: the body once, with one item of every stack that it goes through."""
  params = step.params
  consts, carried = parts_of_scan(step.equation)
  start = consts + carried
  stacks = step.operands[start:]
  scope = step.position.scope
  items = [  # along the first axis
    dataclasses.replace(
      stack,
      view=stack.view and stack.view.index((0,), scope),
      product=None,
      number=None,
      layer=None,
    )
    for stack in stacks
  ]
  invariant, initial = step.operands[:consts], step.operands[consts:start]
  carry = _fixed_point(step, params['jaxpr'], invariant, initial, items)
  scans = (*step.position.scans, (scope, params['length']))
  inside = step.position._replace(scans=scans)
  results = walk(params['jaxpr'], [*invariant, *carry, *items], inside)
  # If the body returns the items of a stack, the result is the stack: parameters may pass through.
  stack_of = {item.view: stack for item, stack in zip(items, stacks, strict=True) if item.view}
  collected = []
  for value in results[carried:]:
    origins = () if value.depends else origins_of([value], 'stacked by a scan')
    stacked = Value(value.depends, origins=origins)
    collected.append(stack_of.get(value.view, stacked) if value.view else stacked)
  return [*carry, *collected]


_HANDLERS: Mapping[str, Handler] = {
  **dict.fromkeys(
    ('transpose', 'reshape', 'broadcast_in_dim', 'squeeze', 'slice', 'rev'),
    rearrange,
  ),
  **dict.fromkeys(('dot_general', 'ragged_dot_general', 'conv_general_dilated'), multiply),
  **dict.fromkeys(('add', 'add_any'), add),
  **dict.fromkeys(('mul', 'div', 'neg'), scale),
  **dict.fromkeys(
    (
      *('convert_element_type', 'copy', 'copy_p', 'reduce_precision', 'name', 'device_put'),
      *('sharding_constraint', 'optimization_barrier', 'reshard', 'mesh_cast', 'pvary', 'pcast'),
    ),
    keep,
  ),
  **dict.fromkeys(('split', 'unstack'), split),
  'dynamic_slice': slice_at,
  'gather': look_up,
  'scan': scan,
  'while': loop,
  'cond': branch,
  # Their programs see other arrays than their operands.
  **dict.fromkeys(('pallas_call', 'shard_map', 'custom_partitioning'), other),
}
