"""Weights that are too large for one device: laid over several, and gathered where they are used.

A compiler that only knows how weights lie would rather send activations, and gather all images on
every device. So a model's program is run equation by equation: what is made of a weight elementwise
stays in parts, also when it is scanned over, and is gathered for the product that it goes into. On
the way back it is gathered again, and so never kept.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax.extend import core
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from glora_jax.mesh import FSDP, put, replicate, replicated, require_mesh
from glora_jax.method.sample import is_array
from glora_jax.method.trace.events import parts_of_scan, shape_of

if TYPE_CHECKING:
  from glora_jax.method.adapted import Adapted

MIN_BYTES = 2**20  # of an array that is worth sharding


def shard_arrays(mesh: Mesh, tree: Any, min_bytes: int = MIN_BYTES) -> Any:
  """A tree with its large arrays sharded over devices, and the others whole on every one.

  Args:
    mesh: devices. Where it has an axis 'fsdp', arrays are sharded over that, and over all devices
      where it has none.
    tree: tree of arrays.
    min_bytes: size from which on an array is sharded, along its largest axis that fits; see
      `sharded_axis`.

  Raises:
    ValueError: there are large arrays, and the devices divide no axis of any.
  """
  large = [leaf for leaf in jax.tree.leaves(tree) if _bytes(leaf) >= min_bytes]
  _, devices = _parts(mesh)
  if large and all(sharded_axis(np.shape(leaf), devices) is None for leaf in large):
    raise ValueError(
      f'{devices} devices divide no axis of the frozen weights, the largest of which is '
      f'{np.shape(max(large, key=_bytes))}; shard them over another number.'
    )

  def place(leaf):
    is_large = _bytes(leaf) >= min_bytes
    return put(leaf, sharded(mesh, np.shape(leaf)) if is_large else replicated(mesh))

  return jax.tree.map(place, tree)


def sharded(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
  """The sharding of a large array of this shape; see `shard_arrays`."""
  names, devices = _parts(mesh)
  axis = sharded_axis(shape, devices)
  return replicated(mesh) if axis is None else NamedSharding(mesh, P(*[None] * axis, names))


def _parts(mesh: Mesh) -> tuple[tuple[str, ...], int]:
  """(axes that large arrays are sharded over, their number of devices)."""
  names = (FSDP,) if FSDP in mesh.axis_names else mesh.axis_names
  return names, math.prod(mesh.shape[name] for name in names)


def _bytes(leaf: Any) -> int:
  return math.prod(np.shape(leaf)) * leaf.dtype.itemsize


def sharded_axis(shape: tuple[int, ...], devices: int) -> int | None:
  """The largest axis that the number of devices divides, of equal ones the last.

  Of three or more axes the first does not count: scanned blocks are stacked there, and a scan would
  wait for a single device at every step.

  Returns:
    The axis; None where no axis fits.
  """
  first = 1 if len(shape) > 2 else 0
  fitting = [axis for axis in range(first, len(shape)) if shape[axis] % devices == 0]
  return max(fitting, key=lambda axis: (shape[axis], axis), default=None)


def shard(
  adapted: Adapted,
  variables: Mapping[str, Any],
  mesh: Mesh,
  *,
  min_bytes: int = MIN_BYTES,
) -> tuple[Adapted, dict[str, Any]]:
  """Lays the frozen weights of an adapted model over devices, a part on each.

  What is trained is whole on every device. The model gathers its weights a layer at a time, and
  again on the way back, so that no device ever holds all of them; results are those of one device
  but for rounding. `fit`, `allocate`, `make_scorer` and all others that take a mesh are given this
  one, and deal batches to all of its axes.

  Args:
    adapted: what `adapt`, `adapt_function` or `glora_jax.nnx.adapt` returned.
    variables: its variables, or their shapes. Arrays of NumPy go from the host to their places, so
      that the base need not fit one device.
    mesh: devices with axes of any names. Where one is called 'fsdp', weights are sharded over that
      alone, and each of its groups of devices holds a copy: what is gathered stays within a group.
    min_bytes: size from which on an array is sharded.

  Returns:
    (the model, its variables on the devices).

  Raises:
    ValueError: `mesh` is none, the variables lack a collection, or the devices divide no weight.

  Example:
    >>> import glora_jax, jax, jax.numpy as jnp
    >>> params = {'w': jnp.ones((8, 512)), 'head': jnp.ones((512, 3))}
    >>> def mlp(params, x):
    ...   return jnp.tanh(x @ params['w']) @ params['head']
    >>> adapted = glora_jax.adapt_function(mlp, params, jnp.ones((1, 8)))
    >>> variables = adapted.init(jax.random.key(0), params)
    >>> auto = (jax.sharding.AxisType.Auto,) * 2
    >>> mesh = jax.make_mesh((1, jax.device_count()), ('data', 'fsdp'), axis_types=auto)
    >>> adapted, variables = glora_jax.shard(adapted, variables, mesh, min_bytes=1)
    >>> adapted.mesh.axis_names, variables['params']['w'].shape
    (('data', 'fsdp'), (8, 512))
  """
  require_mesh(mesh)
  trainable, frozen = adapted.split(variables)
  placed = adapted.join(replicate(mesh, trainable), shard_arrays(mesh, frozen, min_bytes=min_bytes))
  return dataclasses.replace(adapted, mesh=mesh), placed


class _InParts(NamedTuple):
  """A value of a program of which every device keeps a part."""

  array: jax.Array


def call_gathering(
  function: Callable[[Any, Any], Any],
  params: Any,
  inputs: Any,
  mesh: Mesh | None,
  *,
  lays_gradients: bool,
) -> Any:
  """What a function of weights and inputs returns; see `gathering`.

  Args:
    function: of weights and inputs; what it returns is a tree of arrays.
    params: tree of weights.
    inputs: any tree. Where a loop goes over them, weights are gathered in it and not before it.
    mesh: devices that the weights are sharded over; None where each holds them whole.
    lays_gradients: see `gathering`.
  """
  if mesh is None:
    return function(params, inputs)
  arrays, rebuild = _arrays_of((params, inputs))
  params, inputs = rebuild(_tied(arrays))
  return gathering(
    lambda params: function(params, inputs), params, mesh, lays_gradients=lays_gradients
  )


@jax.custom_jvp
def _tied(arrays: list[Any]) -> Any:
  """Arrays, of which a compiler takes none out of a loop that some come from."""
  return jax.lax.optimization_barrier(arrays)


@_tied.defjvp
def _tied_tangents(primals: Any, tangents: Any) -> Any:
  return _tied(*primals), tangents[0]  # also of keys and whole numbers, which have none


def gathering(
  function: Callable[[Any], Any], params: Any, mesh: Mesh, *, lays_gradients: bool = False
) -> Any:
  """What a function of weights returns, which are gathered a layer at a time.

  Args:
    function: of a tree of weights; what it returns is a tree of arrays.
    params: any tree of weights.
    mesh: devices that the weights are sharded over.
    lays_gradients: whether gradients by them lie in parts, too: where those of all layers are
      there at once.
  """
  arrays, rebuild = _arrays_of(params)

  def of_arrays(*arrays: Any) -> Any:
    return function(rebuild(arrays))

  program, shapes = jax.make_jaxpr(of_arrays, return_shape=True)(*arrays)
  # Of what is whole anyway, gathering is nothing.
  operands = [_InParts(array) if np.ndim(array) > 1 else array for array in arrays]
  results = _Gatherer(gather_over(mesh, lays_gradients)).run(program, operands)
  return jax.tree.unflatten(jax.tree.structure(shapes), results)


def _arrays_of(tree: Any) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
  """The arrays of a tree, and what makes the tree of others in their places."""
  leaves, structure = jax.tree.flatten(tree)
  places = [place for place, leaf in enumerate(leaves) if is_array(leaf)]

  def rebuild(arrays: Sequence[Any]) -> Any:
    given = dict(zip(places, arrays, strict=True))
    return jax.tree.unflatten(
      structure, [given.get(place, leaf) for place, leaf in enumerate(leaves)]
    )

  return [leaves[place] for place in places], rebuild


def _is_kept(policy: Callable[..., bool], primitive: Any, *args: Any, **params: Any) -> bool:
  """The policy of a `jax.checkpoint`, which keeps nothing that was gathered."""
  equations = getattr(params.get('call_jaxpr'), 'eqns', ())
  is_gathered = any(equation.primitive.name == 'sharding_constraint' for equation in equations)
  return not is_gathered and policy(primitive, *args, **params)


@functools.cache
def gather_over(mesh: Mesh, lays_gradients: bool = False) -> Callable[[jax.Array], jax.Array]:
  """What makes an array whole on every device, and lays the gradient by it in parts if asked to."""

  @jax.custom_jvp
  def gather(array):
    return jax.lax.with_sharding_constraint(array, replicated(mesh))

  @gather.defjvp
  def _(primals, tangents):
    (array,), (tangent,) = primals, tangents
    if not lays_gradients:
      return gather(array), tangent
    return gather(array), jax.lax.with_sharding_constraint(tangent, sharded(mesh, array.shape))

  return gather


class _Gatherer:
  """Runs a program, and gathers weights where it uses them.

  Args:
    gather: makes an array whole on every device.
    is_block: whether the program is that of a block that is computed again on the way back.
  """

  def __init__(self, gather: Callable[[jax.Array], jax.Array], is_block: bool = False):
    self._gather = gather
    self._is_block = is_block

  def run(self, program: core.Jaxpr | core.ClosedJaxpr, operands: Sequence[Any]) -> list[Any]:
    """What a program returns, whole."""
    return list(map(self._whole, self._run(program, operands)))

  def _whole(self, value: Any) -> Any:
    return self._gather(value.array) if isinstance(value, _InParts) else value

  def _run(self, program: core.Jaxpr | core.ClosedJaxpr, operands: Sequence[Any]) -> list[Any]:
    consts: Sequence[Any] = ()
    if isinstance(program, core.ClosedJaxpr):
      program, consts = program.jaxpr, program.consts
    known = dict(zip(program.constvars, consts, strict=True))
    known |= zip(program.invars, operands, strict=True)

    def value_of(atom: Any) -> Any:
      return atom.val if isinstance(atom, core.Literal) else known[atom]

    for equation in program.eqns:
      values = [value_of(atom) for atom in equation.invars]
      results = self._results(equation, values)
      known |= zip(equation.outvars, results, strict=True)
    return [value_of(atom) for atom in program.outvars]

  def _results(self, equation: core.JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
    """What an equation gives, of values of which some may be in parts."""
    if not any(isinstance(value, _InParts) for value in values):
      return _alone(equation, values)
    name = equation.primitive.name
    if name in _CALLS:
      return self._run(equation.params['jaxpr'], values)
    if name in _CONTROL:
      return _CONTROL[name](self, equation, values)
    if _stays_in_parts(equation, values):
      return [_InParts(array) for array in _alone(equation, _taken_apart(values)[1])]
    return self._use(equation, values)

  def _use(self, equation: core.JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
    """What an equation gives of gathered weights, which are not kept for the way back."""
    in_parts, arrays = _taken_apart(values)

    def use(*arrays: Any) -> Sequence[Any]:
      return _alone(equation, list(map(self._whole, _put_together(in_parts, arrays))))

    return use(*arrays) if self._is_block else jax.checkpoint(use)(*arrays)

  def _checkpoint(self, equation: core.JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
    """A block that is computed again on the way back."""
    params = equation.params
    in_parts, arrays = _taken_apart(values)

    def block(*arrays: Any) -> list[Any]:
      gatherer = _Gatherer(self._gather, is_block=True)
      return gatherer.run(params['jaxpr'], _put_together(in_parts, arrays))

    policy = params['policy'] and functools.partial(_is_kept, params['policy'])
    return jax.checkpoint(block, prevent_cse=params['prevent_cse'], policy=policy)(*arrays)

  def _scan(self, equation: core.JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
    """A scan, whose constants and slices stay in parts outside of its body."""
    params = equation.params
    num_consts, num_carry = parts_of_scan(equation)
    consts, rest = values[:num_consts], values[num_consts:]
    carry, scanned = list(map(self._whole, rest[:num_carry])), rest[num_carry:]
    in_parts, scanned = _taken_apart(scanned)

    def body(carry: Any, slices: Any) -> Any:
      operands = [*consts, *carry, *_put_together(in_parts, slices)]
      results = self.run(params['jaxpr'], operands)
      return results[:num_carry], results[num_carry:]

    options = {name: params[name] for name in ('length', 'reverse', 'unroll')}
    carry, results = jax.lax.scan(body, carry, scanned, **options)
    return [*carry, *results]

  def _while(self, equation: core.JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
    """A loop of unknown length, likewise."""
    params = equation.params
    tests, consts = params['cond_nconsts'], params['body_nconsts']
    of_test, of_body = values[:tests], values[tests : tests + consts]
    carry = list(map(self._whole, values[tests + consts :]))

    def test(carry: Any) -> Any:
      return self.run(params['cond_jaxpr'], [*of_test, *carry])[0]

    def body(carry: Any) -> Any:
      return self.run(params['body_jaxpr'], [*of_body, *carry])

    return jax.lax.while_loop(test, body, carry)

  def _cond(self, equation: core.JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
    """A choice, in whose branches weights are gathered."""
    index, *operands = values
    branches = [
      functools.partial(self.run, program, operands) for program in equation.params['branches']
    ]
    return jax.lax.switch(index, branches)


_CALLS = ('jit', 'pjit')  # primitives that do no more than call a program
_CONTROL: Mapping[str, Callable[[_Gatherer, core.JaxprEqn, Sequence[Any]], Sequence[Any]]] = {
  'checkpoint': _Gatherer._checkpoint,
  'remat2': _Gatherer._checkpoint,
  'scan': _Gatherer._scan,
  'while': _Gatherer._while,
  'cond': _Gatherer._cond,
}
# Of the first operand, which is cut or laid otherwise.
_REARRANGED = frozenset(
  """
  convert_element_type copy copy_p dynamic_slice expand_dims reshape slice squeeze transpose
  """.split()  # noqa: SIM905, more readable than a list
)
_ELEMENTWISE = frozenset('add div mul neg select_n sub'.split())  # noqa: SIM905


def _stays_in_parts(equation: core.JaxprEqn, values: Sequence[Any]) -> bool:
  """Whether every device can make its part of a result of its parts of the operands."""
  name = equation.primitive.name
  if name in _REARRANGED:
    return isinstance(values[0], _InParts)
  if name in _ELEMENTWISE:
    shape = shape_of(equation.outvars[0])
    return all(value.array.shape == shape for value in values if isinstance(value, _InParts))
  return name == 'dot_general' and _has_vector(equation)


def _has_vector(equation: core.JaxprEqn) -> bool:
  """Whether a product is one with a vector, C @ W for instance, which is cheap in parts."""
  contracted, batch = equation.params['dimension_numbers']
  sizes = [
    math.prod(
      size
      for axis, size in enumerate(shape_of(operand))
      if axis not in contracted_axes and axis not in batch_axes
    )
    for operand, contracted_axes, batch_axes in zip(equation.invars, contracted, batch, strict=True)
  ]
  return min(sizes) == 1


def _alone(equation: core.JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
  """What an equation gives of arrays."""
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


def _taken_apart(values: Sequence[Any]) -> tuple[list[bool], list[Any]]:
  """Which of some values are in parts, and all of them as arrays."""
  in_parts = [isinstance(value, _InParts) for value in values]
  arrays = [value.array if isinstance(value, _InParts) else value for value in values]
  return in_parts, arrays


def _put_together(in_parts: Sequence[bool], arrays: Sequence[Any]) -> list[Any]:
  """Inverse of `_taken_apart`."""
  return [_InParts(array) if kept else array for kept, array in zip(in_parts, arrays, strict=True)]
