"""What is done with an adapted kernel where a model uses it: merged, by its output, or by rows.

Until then it is `Deferred`: the kernel as it is in the base, with its supports beside it. `fold`
uses all of them at once, for the plain model. Called outside of a compiled function, a merge is one
program and not twenty.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.method import equation
from glora_jax.method.adapter import ADAPTER
from glora_jax.method.groups import Group
from glora_jax.method.quantized import dequantize, is_quantized, repeat_scales
from glora_jax.method.site import Layout
from glora_jax.method.trace.view import View
from glora_jax.tree import KeyPath, flatten, update

Gather = Callable[[jax.Array], jax.Array]  # makes an array whole on every device


@functools.partial(jax.jit, static_argnames=('layout', 'ranks', 'product'), inline=True)
def merge_kernels(
  kernel: jax.Array,
  adapter: Mapping[str, Any],
  forms: jax.Array,
  layout: Layout,
  ranks: tuple[int, ...],
  product: equation.Product | None = None,
) -> jax.Array:
  """The kernel of `equation.effective_kernel`, of any layout.

  Args:
    kernel: kernel of a layer or of a stack of layers.
    adapter: their supports of A and B, with the layout's stack axes first.
    forms: their forms, int [stack..., 5].
    layout: which axes of the kernel and bias are stack, input and output.
    ranks: LoRA ranks that the codes stand for.
    product: of the two factors of a LoRA, as of `equation.effective_kernel`.

  Returns:
    The merged kernel, in its shape.
  """
  function = functools.partial(equation.effective_kernel, ranks=ranks, product=product)
  matrices = layout.matrices(kernel)
  merged = over_stack(function, len(layout.stack))(matrices, adapter, forms)
  return layout.kernel(merged, kernel.shape)


@functools.partial(jax.jit, static_argnames=('layout', 'ranks'), inline=True)
def merge_biases(
  kernel: jax.Array,
  bias: jax.Array,
  adapter: Mapping[str, Any],
  forms: jax.Array,
  layout: Layout,
  ranks: tuple[int, ...],
) -> jax.Array:
  """The merged bias, by the supports of C, D and E; the other arguments as of `merge_kernels`."""
  if not is_quantized(kernel):
    function = functools.partial(equation.effective_bias, ranks=ranks)
    vectors = over_stack(function, len(layout.stack))(
      layout.matrices(kernel), layout.vectors(bias), adapter, forms
    )
    return layout.bias(vectors, bias.shape)

  @jax.checkpoint
  def layer(arguments: Any) -> Any:  # of a stack that is quantized one at a time is taken out
    kernel, bias, adapter, forms = arguments
    matrix = dequantize(kernel).reshape(-1, bias.size)
    return equation.effective_bias(matrix, bias, adapter, forms, ranks)

  for _ in layout.stack:
    layer = functools.partial(jax.lax.map, layer)
  kernel = repeat_scales(kernel, layout.stack).transpose(
    layout.stack + layout.inputs + layout.outputs
  )
  return layout.bias(layer((kernel, layout.vectors(bias), adapter, forms)), bias.shape)


def over_stack(function: Callable[..., Any], axes: int) -> Callable[..., Any]:
  """A function of one layer as one of a stack of layers with so many axes."""
  for _ in range(axes):
    function = jax.vmap(function)
  return function


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is static of a kernel that is not merged yet.

  Attributes:
    stack: the axes that count layers, by their numbers in the parameter.
    inputs: the axes that are summed over.
    outputs: the others.
    view: where they are in the array that the model has made of the parameter so far.
    ranks: LoRA ranks that the codes stand for.
    goes_by_output: whether no layer can have a LoRA for A.
    casts: types that the model has cast it to.
  """

  stack: tuple[int, ...]
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]
  view: View
  ranks: tuple[int, ...]
  goes_by_output: bool
  casts: tuple[np.dtype, ...] = ()

  @property
  def layout(self) -> Layout:
    """That of the kernel itself, [stack..., inputs..., outputs...]."""
    dims = tuple(range(len(self.stack) + len(self.inputs) + len(self.outputs)))
    first, last = len(self.stack), len(self.stack) + len(self.inputs)
    return Layout(dims[:first], dims[first:last], dims[last:])

  def layer_axis(self, dim: int) -> int | None:
    """The place in the stack of the axis that a dimension of the model's array is, or None."""
    own = [atom for atom in self.view.dims[dim] if atom.size > 1]
    is_whole = len(own) == 1 and own[0].stride == 1 and own[0].axis in self.stack
    others = (atom.axis for n, d in enumerate(self.view.dims) if n != dim for atom in d)
    return self.stack.index(own[0].axis) if is_whole and own[0].axis not in others else None

  def flat(self, array: jax.Array, dims: Sequence[int]) -> jax.Array:
    """An array [..., dims of the model's array] as [..., one axis], in the kernel's order."""
    sizes, order = self._parts(dims)
    lead = array.shape[: array.ndim - len(dims)]
    moved = array.reshape(*lead, *sizes).transpose(_after(len(lead), order))
    return moved.reshape(*lead, math.prod(sizes))

  def laid(self, array: jax.Array, dims: Sequence[int], lead: Sequence[int] = ()) -> jax.Array:
    """Inverse of `flat`, of an array whose first axes have the sizes `lead`."""
    sizes, order = self._parts(dims)
    parts = array.reshape(*lead, *(sizes[place] for place in order))
    moved = parts.transpose(_after(len(lead), np.argsort(order).tolist()))
    return moved.reshape(*lead, *(self.view.shape[dim] for dim in dims))

  def _parts(self, dims: Sequence[int]) -> tuple[list[int], list[int]]:
    """Sizes of the parts of axes that lie along dimensions, and which comes when in the kernel."""
    atoms = [atom for dim in dims for atom in self.view.dims[dim] if atom.size > 1]
    axes = (*self.stack, *self.inputs, *self.outputs)
    places = [(axes.index(atom.axis), -atom.stride) for atom in atoms]
    return [atom.size for atom in atoms], sorted(range(len(atoms)), key=places.__getitem__)


def _after(number: int, order: Sequence[int]) -> tuple[int, ...]:
  """A permutation that leaves the first axes where they are."""
  return (*range(number), *(number + place for place in order))


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=('kernel', 'adapter', 'forms', 'slot'),
  meta_fields=('plan',),
)
@dataclasses.dataclass(frozen=True)
class Deferred:
  """A kernel on its way to where it is used; a pytree, which scans and checkpoints take along.

  Attributes:
    kernel: float [stack..., inputs..., outputs...], in its own type, or a quantized array.
    adapter: supports of A and B, [stack..., ...]; none of a quantized array that is not adapted.
    forms: int [stack..., 5]; None without supports.
    plan: what is static of it.
    slot: of supports [stack..., slots, ...] those that are used, int [stack...]; None where there
      are no slots.
  """

  kernel: Any
  adapter: Mapping[str, jax.Array]
  forms: Any
  plan: Plan
  slot: jax.Array | None = None

  @classmethod
  def from_kernel(
    cls,
    kernel: jax.Array,
    adapter: Mapping[str, jax.Array],
    forms: Any,
    layout: Layout,
    ranks: tuple[int, ...],
    goes_by_output: bool,
  ) -> Deferred:
    """A kernel in the model's own shape, deferred; supports and forms have stack axes first."""
    axes = layout.stack, layout.inputs, layout.outputs
    if is_quantized(kernel):
      kernel = repeat_scales(kernel, layout.stack)
    plan = Plan(*axes, View.of((), kernel.shape), ranks, goes_by_output)
    return cls(kernel.transpose(sum(axes, ())), adapter, forms, plan)

  @classmethod
  def unadapted(cls, array: Any, dtype: Any) -> Deferred:
    """An array without an adapter, deferred: it is only gathered or dequantized.

    All its axes are its stack; of a quantized one those are that have a scale at each place.
    """
    sizes = [leaf.shape for leaf in jax.tree.leaves(array)]
    stack = tuple(n for n, size in enumerate(zip(*sizes, strict=True)) if len(set(size)) == 1)
    rest = tuple(n for n in range(array.ndim) if n not in stack)
    deferred = cls.from_kernel(array, {}, None, Layout(stack, (), rest), (), False)
    return deferred.planned(casts=(dtype,))

  @property
  def is_quantized(self) -> bool:
    """Whether the kernel is quantized, and taken out where it is used."""
    return is_quantized(self.kernel)

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the model's array."""
    return self.plan.view.shape

  @property
  def dtype(self) -> np.dtype:
    """Type of the model's array."""
    return [self.kernel.dtype, *self.plan.casts][-1]

  def planned(self, **changes: Any) -> Deferred:
    """The same with another plan."""
    return dataclasses.replace(self, plan=dataclasses.replace(self.plan, **changes))

  def cast(self, dtype: Any) -> Deferred:
    """The same in another type: one that is only gathered at once, so that fewer bytes are sent."""
    if self.adapter or self.is_quantized:
      return self.planned(casts=(*self.plan.casts, np.dtype(dtype)))
    return self.map(lambda kernel: kernel.astype(dtype)).planned(casts=())

  def map(self, function: Callable[[jax.Array], jax.Array]) -> Deferred:
    """The same with a function of the kernel, every support and the forms in their places."""
    return jax.tree.map(function, self)


def defer(
  groups: Sequence[Group],
  params: Any,
  adapter: Any,
  genome: jax.Array,
  fixed: np.ndarray | None = None,
  slot: jax.Array | None = None,
  quantized: Mapping[KeyPath, Any] = types.MappingProxyType({}),
) -> Any:
  """Params with biases merged, and in the place of adapted kernels what is still to be merged.

  Args:
    groups: the adapted layers.
    params: parameters of the model; any pytree.
    adapter: the `glora` collection.
    genome: int [rows, 5]; may be traced.
    fixed: the genome where it is known when tracing.
    slot: which of supports with an axis of slots after the stack's are used; None without one.
    quantized: quantized arrays by path, of which `params` has the shapes (`split_quantized`).
  """
  leaves = flatten(params)
  new: dict[KeyPath, Any] = {
    path: Deferred.unadapted(array, leaves[path].dtype) for path, array in quantized.items()
  }
  for group in groups:
    ranks = group.space.ranks
    own_slot = None if slot is None else jnp.broadcast_to(slot, group.stack_shape)
    for site, of_kernel, of_bias, forms, by_output in group.parts(adapter, genome, fixed):
      kernel = nn.meta.unbox(leaves[site.kernel_path])
      array = quantized.get(site.kernel_path, kernel)
      if of_bias and site.bias_path:
        bias = nn.meta.unbox(leaves[site.bias_path])
        rest = bias, _picked(of_bias, own_slot), forms, site.layout, ranks
        new[site.bias_path] = merge_biases(array, *rest)
      if of_kernel:
        deferred = Deferred.from_kernel(array, of_kernel, forms, site.layout, ranks, by_output)
        deferred = deferred.planned(casts=(kernel.dtype,))
        new[site.kernel_path] = dataclasses.replace(deferred, slot=own_slot)
  return update(params, new)


def _picked(adapter: Mapping[str, jax.Array], slot: jax.Array | None) -> Mapping[str, jax.Array]:
  """The supports of one slot, each layer's where there are several."""
  if slot is None:
    return adapter
  pick = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)
  pick = over_stack(pick, slot.ndim)
  return {name: pick(value, slot) for name, value in adapter.items()}


def fold(groups: Sequence[Group], params: Any, adapter: Any, genome: jax.Array) -> Any:
  """Params with all supports merged into kernels and biases; arguments as of `defer`.

  Returns:
    Params of the same structure, for the untouched model.
  """

  def folded(leaf: Any) -> Any:
    return merged(leaf, equation.low_rank_product) if isinstance(leaf, Deferred) else leaf

  deferred = defer(groups, params, adapter, genome)
  return jax.tree.map(folded, deferred, is_leaf=lambda leaf: isinstance(leaf, Deferred))


def merged(
  deferred: Deferred, product: equation.Product | None = None, gather: Gather | None = None
) -> jax.Array:
  """The model's array, with the supports in it.

  Args:
    deferred: the kernel.
    product: of the two factors of a LoRA, as of `equation.effective_kernel`.
    gather: makes an array whole on every device; None where all are.
  """
  plan, kernel = deferred.plan, _whole(deferred.kernel, gather)
  if deferred.adapter:
    arrays = kernel, _picked(deferred.adapter, deferred.slot), deferred.forms
    kernel = merge_kernels(*arrays, plan.layout, plan.ranks, product)
  return _cast(plan, plan.laid(kernel, range(len(plan.view.dims))))


def _whole(kernel: Any, gather: Gather | None) -> jax.Array:
  """A kernel as it is used: gathered from devices, and taken out of a quantized array."""
  return dequantize(jax.tree.map(gather, kernel) if gather else kernel)


def _cast(plan: Plan, array: jax.Array) -> jax.Array:
  return functools.reduce(lambda array, dtype: array.astype(dtype), plan.casts, array)


def by_output(
  deferred: Deferred,
  x: jax.Array,
  place: int,
  params: Mapping[str, Any],
  gather: Gather | None = None,
) -> jax.Array | None:
  """What `dot_general` gives of activations and a merged kernel, without one.

  Args:
    deferred: the kernel.
    x: activations.
    place: which of the operands the kernel is.
    params: parameters of the equation.
    gather: makes an array whole on every device, again on the way back; None where all are.

  Returns:
    The product, also of a tied head, which sums over what are the kernel's outputs; None where a
    layer may have a LoRA for A, or the product is no layer's.
  """
  plan, view = deferred.plan, deferred.plan.view
  contracted, batched = params['dimension_numbers']
  own, others = [contracted[place], batched[place]], [contracted[1 - place], batched[1 - place]]
  own.append([dim for dim in range(len(view.dims)) if dim not in (*own[0], *own[1])])
  others.append([dim for dim in range(x.ndim) if dim not in (*others[0], *others[1])])
  layers = [plan.layer_axis(dim) for dim in own[1]]
  axes_of = [{a.axis for dim in dims for a in view.dims[dim] if a.size > 1} for dims in own]
  ones = [n for n, size in enumerate(deferred.kernel.shape[: len(plan.stack)]) if size == 1]
  axes = [set(plan.inputs), set(plan.outputs)]
  is_layer, is_transposed = (
    axes_of[0] <= first and axes_of[2] <= last for first, last in (axes, axes[::-1])
  )
  if not (plan.goes_by_output and (is_layer or is_transposed) and None not in layers):
    return None
  order = [*(place for place in layers if place is not None), *ones]
  if len(order) != len(plan.stack):
    return None

  def product(x: jax.Array, matrix: Any) -> jax.Array:
    matrix = _cast(plan, _whole(matrix, gather))
    if deferred.is_quantized:
      matrix = matrix.reshape(math.prod(matrix.shape[: len(plan.inputs)]), -1)
    options = {name: params[name] for name in ('precision', 'preferred_element_type')}
    dims = (x.ndim - 1,), (0 if is_layer else 1,)
    return jax.lax.dot_general(x, matrix, (dims, ((), ())), **options)

  def layer(x: jax.Array, one: Deferred) -> jax.Array:
    run = jax.checkpoint(product) if gather or one.is_quantized else product
    by_form = equation.layer_output if is_layer else equation.transposed_output
    arguments = run, x, one.kernel, _picked(one.adapter, one.slot), one.forms
    return by_form(*arguments, plan.ranks, params['precision'])

  lead = [x.shape[dim] for dim in (*others[1], *others[2])]
  matrices = deferred
  if not deferred.is_quantized:
    matrices = dataclasses.replace(deferred, kernel=plan.layout.matrices(deferred.kernel))
  moved = matrices.map(
    lambda leaf: leaf.transpose(*order, *range(len(order), leaf.ndim)).reshape(
      *lead[: len(layers)], *leaf.shape[len(order) :]
    )
  )
  x = plan.flat(x.transpose(*others[1], *others[2], *others[0]), own[0])
  y = plan.laid(over_stack(layer, len(layers))(x, moved), own[2], lead)
  if place == 1:
    return y
  free = range(len(layers), len(lead))  # the kernel's outputs come before what is left of x
  return y.transpose(*range(len(layers)), *range(len(lead), y.ndim), *free)


def by_rows(
  deferred: Deferred,
  take: Callable[..., jax.Array],
  params: Mapping[str, Any],
  gather: Gather | None = None,
) -> jax.Array | None:
  """The rows that a lookup takes of a merged table, merged by themselves and not as a table.

  Args:
    deferred: the table.
    take: the `gather` or `dynamic_slice` of another array, with some of its parameters changed.
    params: parameters of the equation.
    gather: as of `by_output`.

  Returns:
    The rows; None where the equation takes anything else.
  """
  plan, view, stack = deferred.plan, deferred.plan.view, len(deferred.plan.stack)
  axes = [tuple(atom.axis for atom in dim if atom.size > 1) for dim in view.dims]
  is_table = axes == [plan.inputs, plan.outputs] and math.prod(deferred.kernel.shape[:stack]) == 1
  if not is_table or params['slice_sizes'] != (1, view.shape[1]):
    return None
  width, filled = 1, {}  # where a row lies in the result
  if 'dimension_numbers' in params:
    width = params['dimension_numbers'].offset_dims[-1]
    filled = {'fill_value': 0}  # of NaN, the gradient by a factor would be NaN, too

  def rows(matrix: jax.Array) -> jax.Array:
    return take(matrix, slice_sizes=(1, matrix.shape[1]), **filled)

  table = deferred.map(lambda leaf: leaf.reshape(leaf.shape[stack:]))
  is_made = gather or deferred.is_quantized
  base = jax.checkpoint(lambda kernel: rows(_whole(kernel, gather))) if is_made else rows
  found = base(table.kernel)
  layout = Layout((), tuple(dim for dim in range(found.ndim) if dim != width), (width,))
  of_slots = rows if table.slot is None else jax.vmap(rows)
  by_row = {name for name in table.adapter if ADAPTER[name].axes[0] == 'in'}
  own = {name: of_slots(v) if name in by_row else v for name, v in table.adapter.items()}
  own = _picked(own, table.slot)
  adapter = {name: layout.matrices(v) if name in by_row else v for name, v in own.items()}
  merged = _cast(plan, merge_kernels(found, adapter, table.forms, layout, plan.ranks))
  if params.get('mode') != jax.lax.GatherScatterMode.FILL_OR_DROP:
    return merged
  fill, is_there = params['fill_value'], rows(jnp.ones((table.kernel.shape[0], 1))) > 0
  return jnp.where(is_there, merged, jnp.nan if fill is None else fill)
