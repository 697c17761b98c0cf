"""A walk over a jaxpr, equation by equation, also in scans, loops, branches and calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jax.extend import core

from glora_jax.method.trace.events import (
  Event,
  Place,
  Scan,
  Step,
  Value,
  joined,
  origins_of,
  parts_of_scan,
  shape_of,
)
from glora_jax.method.trace.primitives import (
  Handler,
  added,
  looked_up,
  multiplied,
  other,
  rearranged,
  scaled,
  sliced_at,
  split_up,
  unchanged,
)


class Walk(NamedTuple):
  """What a walk found.

  Attributes:
    results: what is known of the program's results.
    events: how parameters are used, in execution order.
  """

  results: list[Value]
  events: list[Event]


def walk(jaxpr: core.Jaxpr | core.ClosedJaxpr, values: Sequence[Value], place: Place) -> Walk:
  """Goes through a program once.

  Args:
    jaxpr: the program.
    values: what is known of its arguments.
    place: where it is run.
  """
  program = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
  known = dict(zip(program.invars, values, strict=True))
  events: list[Event] = []
  for number, equation in enumerate(program.eqns):
    operands = [_value_of(variable, known) for variable in equation.invars]
    step = Step(equation, operands, place.within(number), events)
    results = _handler(equation)(step)
    known.update(zip(equation.outvars, results, strict=True))
  return Walk([_value_of(variable, known) for variable in program.outvars], events)


def _value_of(variable: core.Var | core.Literal, known: Mapping[core.Var, Value]) -> Value:
  if not isinstance(variable, core.Literal):
    return known.get(variable, Value())  # constants are not listed
  is_number = np.ndim(variable.val) == 0 and isinstance(variable.val, (int, np.integer))
  return Value(number=int(variable.val)) if is_number else Value()


def _handler(equation: core.JaxprEqn) -> Handler:
  name = equation.primitive.name
  if name in _CONTROL:
    return _CONTROL[name]
  if name in _ARRAYS:
    return _ARRAYS[name]
  return other if name in _CLOSED or _body(equation) is None else call


def _body(equation: core.JaxprEqn) -> core.Jaxpr | core.ClosedJaxpr | None:
  """The program that a call runs on its operands as they are."""
  for value in equation.params.values():
    if isinstance(value, (core.Jaxpr, core.ClosedJaxpr)):
      program = value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
      own = [*map(shape_of, program.invars), None, *map(shape_of, program.outvars)]
      if own == [*map(shape_of, equation.invars), None, *map(shape_of, equation.outvars)]:
        return value
  return None


def call(step: Step) -> list[Value]:
  """jit, remat, custom_jvp, custom_vjp: the program in them, on the same operands."""
  body = _body(step.equation)
  assert body is not None
  return _run(step, body, step.operands, step.place)


def _run(step: Step, body, values: Sequence[Value], place: Place) -> list[Value]:
  found = walk(body, values, place)
  step.events.extend(found.events)
  return found.results


def branch(step: Step) -> list[Value]:
  """`cond`: every branch, one after another."""
  which, *operands = step.operands
  branches = list(step.params['branches'])
  if len(branches) == 2:
    branches.reverse()  # first what is run if the condition is true
  results = [
    _run(step, body, operands, step.place.within(number)) for number, body in enumerate(branches)
  ]
  found = []
  for number, (value, *others) in enumerate(zip(*results, strict=True)):
    token = (step.place.scope, number)
    for other_value in others:
      value = joined(value, other_value, token)
    depends = which.depends and value.view is None
    found.append(Value(depends=True, token=token) if depends else value)
  return found


def loop(step: Step) -> list[Value]:
  """`while`: the condition, and the body with what it returns."""
  tests, consts = step.params['cond_nconsts'], step.params['body_nconsts']
  of_test, of_body = step.operands[:tests], step.operands[tests : tests + consts]
  carry = _steady(step, step.params['body_jaxpr'], of_body, step.operands[tests + consts :], [])
  _run(step, step.params['cond_jaxpr'], [*of_test, *carry], step.place.within(0))
  _run(step, step.params['body_jaxpr'], [*of_body, *carry], step.place.within(1))
  return _after(step, carry)


def _steady(
  step: Step, body, consts: Sequence[Value], carry: Sequence[Value], items: Sequence[Value]
) -> list[Value]:
  """What is known of a loop's carry in every iteration."""
  tokens = [(step.place.scope, 'carry', number) for number in range(len(carry))]
  current = [dataclasses.replace(value, number=None, product=None, layer=None) for value in carry]
  while True:
    found = walk(body, [*consts, *current, *items], step.place).results[: len(carry)]
    following = [joined(*values) for values in zip(current, found, tokens, strict=True)]
    if following == current:
      return current
    current = following


def _after(step: Step, carry: Sequence[Value]) -> list[Value]:
  """What is known of a loop's carry at its end, where its numbers are others than inside."""
  return [
    dataclasses.replace(value, token=(step.place.scope, number))
    for number, value in enumerate(carry)
  ]


def scan(step: Step) -> list[Value]:
  """`scan`: the body once, with one item of what it goes through."""
  params = step.params
  consts, carried = parts_of_scan(step.equation)
  start = consts + carried
  stacks = step.operands[start:]
  place = step.place
  items = [  # one along the first axis of each
    dataclasses.replace(
      stack,
      view=stack.view and stack.view.indexed(0, place.scope),
      product=None,
      number=None,
      layer=None,
      token=(place.scope, 'item', number),
    )
    for number, stack in enumerate(stacks)
  ]
  carry = _steady(step, params['jaxpr'], step.operands[:consts], step.operands[consts:start], items)
  inside = dataclasses.replace(place, scans=(*place.scans, Scan(place.scope, params['length'])))
  results = _run(step, params['jaxpr'], [*step.operands[:consts], *carry, *items], inside)
  wholes = {item.view: stack for item, stack in zip(items, stacks, strict=True) if item.view}
  collected = []
  for number, value in enumerate(results[carried:]):
    origins = () if value.depends else origins_of([value], 'stacked by a scan')
    stacked = Value(value.depends, origins=origins, token=(place.scope, 'stack', number))
    collected.append(wholes.get(value.view, stacked) if value.view else stacked)
  return [*_after(step, carry), *collected]


_ARRAYS: Mapping[str, Handler] = {
  **dict.fromkeys(('transpose', 'reshape', 'broadcast_in_dim', 'squeeze', 'slice'), rearranged),
  **dict.fromkeys(('dot_general', 'ragged_dot_general', 'conv_general_dilated'), multiplied),
  **dict.fromkeys(('add', 'add_any'), added),
  **dict.fromkeys(('mul', 'div', 'neg'), scaled),
  **dict.fromkeys(
    (
      *('convert_element_type', 'copy', 'copy_p', 'reduce_precision', 'name', 'device_put'),
      *('sharding_constraint', 'optimization_barrier', 'reshard', 'mesh_cast', 'pvary', 'pcast'),
    ),
    unchanged,
  ),
  **dict.fromkeys(('split', 'unstack'), split_up),
  'dynamic_slice': sliced_at,
  'gather': looked_up,
}
_CONTROL: Mapping[str, Handler] = {'scan': scan, 'while': loop, 'cond': branch}
# Their programs see other arrays than their operands.
_CLOSED = frozenset({'pallas_call', 'shard_map', 'custom_partitioning'})
