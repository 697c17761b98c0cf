"""What is done with an adapted kernel where a model uses it: one of three rules.

    merge     the kernel with its adapter in it, W' = W + W * A + B; any use will do
    multiply  a product with activations, x W' = (x W) * (1 + A) + (x B_down) B_up: nothing of the
              kernel's size is made, neither for the output nor for the gradients
    look_up   rows of an embedding table, each merged by itself

Until then the kernel is `Deferred`: the base's array, its adapter, and a `Plan` of what the model
has done with it so far. `defer` puts these in the place of kernels, `glora_jax.method.program`
takes them to where they are used, and `fold` merges all of them for the plain model.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

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

Gather = Callable[[jax.Array], jax.Array]  # all-gathers an array: it is replicated afterwards


def defer(
  groups: Sequence[Group],
  params: Any,
  adapter: Any,
  genome: jax.Array,
  fixed: np.ndarray | None = None,
  slot: jax.Array | None = None,
  quantized: Mapping[KeyPath, Any] = types.MappingProxyType({}),
) -> Any:
  """Params with `Deferred` in the place of adapted kernels; biases are merged at once.

  Args:
    groups: the adapted layers.
    params: parameters of the model; any pytree.
    adapter: the `glora` collection.
    genome: int [layers, 5]; may be traced.
    fixed: the genome if it is known when tracing.
    slot: which slot of a pool's adapter is used, if its arrays have an axis of slots after those of
      the stack; None without one.
    quantized: quantized arrays by path, of which `params` has the shapes (`split_quantized`).
  """
  leaves = flatten(params)
  new: dict[KeyPath, Any] = {
    path: Deferred.unadapted(array, leaves[path].dtype) for path, array in quantized.items()
  }
  for group in groups:
    ranks = group.space.ranks
    slots = None if slot is None else jnp.broadcast_to(slot, group.stack_shape)
    for site, of_kernel, of_bias, forms, by_output in group.parts(adapter, genome, fixed):
      kernel = nn.meta.unbox(leaves[site.kernel_path])
      base = quantized.get(site.kernel_path, kernel)
      if of_bias and site.bias_path:
        bias = nn.meta.unbox(leaves[site.bias_path])
        rest = bias, _select_slot(of_bias, slots), forms, site.layout, ranks
        new[site.bias_path] = merge_biases(base, *rest)
      if of_kernel:
        deferred = Deferred.from_kernel(base, of_kernel, forms, site.layout, ranks, by_output)
        deferred = deferred.with_plan(casts=(kernel.dtype,))
        new[site.kernel_path] = dataclasses.replace(deferred, slot=slots)
  return update(params, new)


def fold(groups: Sequence[Group], params: Any, adapter: Any, genome: jax.Array) -> Any:
  """Params with the adapter merged into kernels and biases; arguments as of `defer`.

  Returns:
    Params of the same structure, for the original model.
  """

  def merge_leaf(leaf: Any) -> Any:
    return merge(leaf, equation.low_rank_product) if isinstance(leaf, Deferred) else leaf

  deferred = defer(groups, params, adapter, genome)
  return jax.tree.map(merge_leaf, deferred, is_leaf=lambda leaf: isinstance(leaf, Deferred))


def merge(
  deferred: Deferred, lora_product: equation.Product | None = None, gather: Gather | None = None
) -> jax.Array:
  """The model's array with the adapter in it.

  Args:
    deferred: the kernel.
    lora_product: of the two factors of a LoRA, as of `equation.effective_kernel`.
    gather: all-gathers a sharded array; None if all are replicated.
  """
  plan, kernel = deferred.plan, _materialize(deferred.kernel, gather)
  if deferred.adapter:
    adapter = _select_slot(deferred.adapter, deferred.slot)
    kernel = merge_kernels(kernel, adapter, deferred.forms, plan.layout, plan.ranks, lora_product)
  return plan.cast(plan.unflatten(kernel, range(len(plan.view.dims))))


def multiply(
  deferred: Deferred,
  x: jax.Array,
  place: int,
  params: Mapping[str, Any],
  gather: Gather | None = None,
) -> jax.Array | None:
  """The `dot_general` of activations and an adapted kernel, which is not merged for it.

  Args:
    deferred: the kernel.
    x: activations.
    place: which operand the kernel is, 0 or 1.
    params: parameters of the `dot_general`.
    gather: all-gathers a sharded array, and again on the way back; None if all are replicated.

  Returns:
    The product of a layer, x W', or of a tied head, x W'^T; None if it is neither, or if a layer
    may have a LoRA for A.
  """
  plan = deferred.plan
  kernel_dims = _Dims.of_operand(place, len(plan.view.dims), params)
  x_dims = _Dims.of_operand(1 - place, x.ndim, params)
  is_layer = kernel_dims.lie_in(plan, contracted=plan.inputs, free=plan.outputs)
  is_transposed = kernel_dims.lie_in(plan, contracted=plan.outputs, free=plan.inputs)
  stack = deferred.stack_order(kernel_dims.batch)
  if stack is None or not plan.goes_by_output or not (is_layer or is_transposed):
    return None

  def base_product(x: jax.Array, kernel: Any) -> jax.Array:
    kernel = plan.cast(_materialize(kernel, gather))
    if deferred.is_quantized:  # [inputs..., outputs...], since scales do not reshape with it
      kernel = kernel.reshape(math.prod(kernel.shape[: len(plan.inputs)]), -1)
    last_axis = (x.ndim - 1,), (0 if is_layer else 1,)
    options = {name: params[name] for name in ('precision', 'preferred_element_type')}
    return jax.lax.dot_general(x, kernel, (last_axis, ((), ())), **options)

  # A checkpoint keeps the gathered or dequantized kernel out of what the backward pass needs.
  is_made = gather or deferred.is_quantized
  product = jax.checkpoint(base_product) if is_made else base_product

  def layer_output(x: jax.Array, layer: Deferred) -> jax.Array:
    output = equation.layer_output if is_layer else equation.transposed_output
    adapter = _select_slot(layer.adapter, layer.slot)
    rest = adapter, layer.forms, plan.ranks, params['precision']
    return output(product, x, layer.kernel, *rest)

  # The equation is one of matrices: x [tokens..., in] and W [in, out] of one layer. A `dot_general`
  # may have its axes in any order, several for each of these, and a batch of layers (experts that a
  # model multiplies at once). So both operands are brought into the equation's order, batch first:
  #
  #   layers  [batch..., in, out]              from the kernel  [stack..., inputs..., outputs...]
  #   rows    [batch..., tokens..., summed]    from x, `summed` in the order of the kernel's axes
  #   y       [batch..., tokens..., free]      whose `free` is unflattened at last
  #
  # (`turned` in tests/method/test_program.py has several axes in another order and in parts,
  # `experts_by_einsum` in function_zoo.py has a batch of layers.)
  layers = deferred.by_layer(stack, len(kernel_dims.batch))
  ordered = x.transpose(*x_dims.batch, *x_dims.free, *x_dims.contracted)
  rows = plan.flatten(ordered, kernel_dims.contracted)
  y = over_stack(layer_output, len(kernel_dims.batch))(rows, layers)
  y = plan.unflatten(y, kernel_dims.free, rows.shape[:-1])
  if place == 1:
    return y
  # The free dimensions of the first operand come first, and that is the kernel.
  first_token, first_free = len(x_dims.batch), rows.ndim - 1
  batch, tokens = range(first_token), range(first_token, first_free)
  return y.transpose(*batch, *range(first_free, y.ndim), *tokens)


def look_up(
  deferred: Deferred,
  take: Callable[..., jax.Array],
  params: Mapping[str, Any],
  gather: Gather | None = None,
) -> jax.Array | None:
  """Rows of an adapted table: each is merged by itself, and the table is not.

  Args:
    deferred: the table.
    take: the `gather` or `dynamic_slice` of the model, of another array and with some parameters
      changed.
    params: parameters of that equation.
    gather: as of `multiply`.

  Returns:
    The rows; None if the equation reads anything else.
  """
  plan, view, stack_ndim = deferred.plan, deferred.plan.view, len(deferred.plan.stack)
  axes = [tuple(atom.axis for atom in dim if atom.size > 1) for dim in view.dims]
  is_one_layer = math.prod(deferred.kernel.shape[:stack_ndim]) == 1
  is_table = is_one_layer and axes == [plan.inputs, plan.outputs]
  if not is_table or params['slice_sizes'] != (1, view.shape[1]):
    return None
  # A token beyond the table may read as NaN. That is put in at the end: read from a factor it would
  # make the whole gradient of the other factor NaN (tests/method/test_embeddings.py, "a token
  # beyond the table").
  out_axis, finite = 1, {}
  if 'dimension_numbers' in params:
    out_axis, finite = params['dimension_numbers'].offset_dims[-1], {'fill_value': 0}

  def rows_of(matrix: jax.Array) -> jax.Array:
    return take(matrix, slice_sizes=(1, matrix.shape[1]), **finite)

  def base_rows(kernel: Any) -> jax.Array:
    return rows_of(_materialize(kernel, gather))

  table = deferred.map(lambda leaf: leaf.reshape(leaf.shape[stack_ndim:]))
  is_made = gather or deferred.is_quantized
  base = (jax.checkpoint(base_rows) if is_made else base_rows)(table.kernel)
  layout = Layout((), tuple(dim for dim in range(base.ndim) if dim != out_axis), (out_axis,))

  # The arrays with a number for each token of the vocabulary are read as the table is. Those of a
  # pool [slots, in, ...] are read before the slot is chosen, which would copy all of one.
  with_rows = {name for name in table.adapter if ADAPTER[name].axes[0] == 'in'}
  read = rows_of if table.slot is None else jax.vmap(rows_of)
  adapter = {name: read(v) if name in with_rows else v for name, v in table.adapter.items()}
  adapter = {
    name: layout.matrices(v) if name in with_rows else v
    for name, v in _select_slot(adapter, table.slot).items()
  }
  rows = plan.cast(merge_kernels(base, adapter, table.forms, layout, plan.ranks))
  if params.get('mode') != jax.lax.GatherScatterMode.FILL_OR_DROP:
    return rows
  fill, is_there = params['fill_value'], rows_of(jnp.ones((table.kernel.shape[0], 1))) > 0
  return jnp.where(is_there, rows, jnp.nan if fill is None else fill)


def _materialize(kernel: Any, gather: Gather | None) -> jax.Array:
  """A kernel of the base as it is used: all-gathered and dequantized."""
  return dequantize(jax.tree.map(gather, kernel) if gather else kernel)


def _select_slot(
  adapter: Mapping[str, jax.Array], slot: jax.Array | None
) -> Mapping[str, jax.Array]:
  """The arrays [stack..., ...] of the slots int [stack...], from [stack..., slots, ...]."""
  if slot is None:
    return adapter
  select = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)
  select = over_stack(select, slot.ndim)
  return {name: select(value, slot) for name, value in adapter.items()}


class _Dims(NamedTuple):
  """What a `dot_general` does with the dimensions of one of its operands."""

  contracted: tuple[int, ...]
  batch: tuple[int, ...]
  free: tuple[int, ...]

  @classmethod
  def of_operand(cls, place: int, ndim: int, params: Mapping[str, Any]) -> _Dims:
    contracted, batch = (dims[place] for dims in params['dimension_numbers'])
    return cls(contracted, batch, tuple(n for n in range(ndim) if n not in (*contracted, *batch)))

  def lie_in(self, plan: Plan, contracted: Sequence[int], free: Sequence[int]) -> bool:
    """Whether these axes of the parameter are contracted and free, and no others."""
    return plan.axes(self.contracted) <= {*contracted} and plan.axes(self.free) <= {*free}


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=('kernel', 'adapter', 'forms', 'slot'),
  meta_fields=('plan',),
)
@dataclasses.dataclass(frozen=True)
class Deferred:
  """A kernel on its way to where it is used; a pytree, so that scans and checkpoints accept it.

  Attributes:
    kernel: float [stack..., inputs..., outputs...] in the base's type, or a quantized array.
    adapter: the adapter's arrays of A and B, [stack..., ...]; empty if the array is not adapted.
    forms: int [stack..., 5]; None without an adapter.
    plan: what is static of it.
    slot: of arrays [stack..., slots, ...] those that are used, int [stack...]; None without slots.
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
    """A kernel in the model's own shape, deferred; adapter and forms have stack axes first."""
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
    return deferred.with_plan(casts=(dtype,))

  @property
  def is_quantized(self) -> bool:
    """Whether the kernel is quantized, and dequantized where it is used."""
    return is_quantized(self.kernel)

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the model's array."""
    return self.plan.view.shape

  @property
  def dtype(self) -> np.dtype:
    """Type of the model's array."""
    return [self.kernel.dtype, *self.plan.casts][-1]

  def with_plan(self, **changes: Any) -> Deferred:
    """The same with another plan."""
    return dataclasses.replace(self, plan=dataclasses.replace(self.plan, **changes))

  def cast(self, dtype: Any) -> Deferred:
    """The same in another type: at once if it is only gathered, so that fewer bytes are sent."""
    if self.adapter or self.is_quantized:
      return self.with_plan(casts=(*self.plan.casts, np.dtype(dtype)))
    return self.map(lambda kernel: kernel.astype(dtype)).with_plan(casts=())

  def map(self, function: Callable[[jax.Array], jax.Array]) -> Deferred:
    """The same with a function of the kernel, of each array of the adapter and of the forms."""
    return jax.tree.map(function, self)

  def stack_order(self, batch: Sequence[int]) -> list[int] | None:
    """The axes of the stack: those that are batch dimensions, in their order, then all of size one.

    None if some other axis would remain, or a batch dimension is anything but one axis of the
    stack: that is no batch of layers.
    """
    places = [self.plan.stack_place(dim) for dim in batch]
    sizes = self.kernel.shape[: len(self.plan.stack)]
    order = [place for place in places if place is not None]
    order += [place for place, size in enumerate(sizes) if size == 1]
    return None if None in places or len(order) != len(sizes) else order

  def by_layer(self, order: Sequence[int], batch_ndim: int) -> Deferred:
    """Matrices [batch..., in, out], with the adapter likewise; quantized ones keep all their axes.

    Args:
      order: the axes of the stack, those of the batch first; the others are of size one.
      batch_ndim: number of axes of the batch.
    """

    def batch_first(leaf: jax.Array) -> jax.Array:
      leaf = leaf.transpose(*order, *range(len(order), leaf.ndim))
      return leaf.reshape(*leaf.shape[:batch_ndim], *leaf.shape[len(order) :])

    kernel = self.kernel if self.is_quantized else self.plan.layout.matrices(self.kernel)
    return dataclasses.replace(self, kernel=kernel).map(batch_first)


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is static of a deferred kernel: its axes, and where the model has put them so far.

  Three heads of size 4 from 8 features, in 12 scanned blocks, are a parameter [12, 8, 3, 4] with
  stack (0,), inputs (1,) and outputs (2, 3). When a block has made [8, 12] of its part, the view's
  dimensions are axis 1, and axes 2 and 3 together (`glora_jax.method.trace.view`).

  Attributes:
    stack: the axes that count layers, by their numbers in the parameter.
    inputs: the axes that are summed over.
    outputs: the others.
    view: where they are in the array that the model has made of the parameter so far.
    ranks: LoRA ranks that the codes stand for.
    goes_by_output: whether no layer can have a LoRA for A, so that `multiply` applies.
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

  def axes(self, dims: Sequence[int]) -> set[int]:
    """The axes of the parameter that dimensions of the model's array are made of."""
    return {atom.axis for dim in dims for atom in self.view.dims[dim] if atom.size > 1}

  def stack_place(self, dim: int) -> int | None:
    """The place in `stack` of the one axis that a dimension is; None if it is another, or a part.

    A reshape may have split an axis over several dimensions, or merged it with others.
    """
    atoms = [atom for atom in self.view.dims[dim] if atom.size > 1]
    if len(atoms) != 1 or atoms[0].stride != 1 or atoms[0].axis not in self.stack:
      return None
    axis = atoms[0].axis
    elsewhere = (atom.axis for n, d in enumerate(self.view.dims) if n != dim for atom in d)
    return None if axis in elsewhere else self.stack.index(axis)

  def cast(self, array: jax.Array) -> jax.Array:
    """An array in the types that the model has cast it to, one after another."""
    return functools.reduce(lambda array, dtype: array.astype(dtype), self.casts, array)

  def flatten(self, array: jax.Array, dims: Sequence[int]) -> jax.Array:
    """An array [..., dims of the model's array] as [..., one axis], in the kernel's order."""
    sizes, order = self._atoms(dims)
    lead = array.shape[: array.ndim - len(dims)]
    moved = array.reshape(*lead, *sizes).transpose(_after(len(lead), order))
    return moved.reshape(*lead, math.prod(sizes))

  def unflatten(self, array: jax.Array, dims: Sequence[int], lead: Sequence[int] = ()) -> jax.Array:
    """Inverse of `flatten`, of an array whose first axes have the sizes `lead`."""
    sizes, order = self._atoms(dims)
    atoms = array.reshape(*lead, *(sizes[place] for place in order))
    moved = atoms.transpose(_after(len(lead), np.argsort(order).tolist()))
    return moved.reshape(*lead, *(self.view.shape[dim] for dim in dims))

  def _atoms(self, dims: Sequence[int]) -> tuple[list[int], list[int]]:
    """Sizes of the parts of axes that lie along dimensions, and their order in the kernel."""
    atoms = [atom for dim in dims for atom in self.view.dims[dim] if atom.size > 1]
    axes = (*self.stack, *self.inputs, *self.outputs)
    places = [(axes.index(atom.axis), -atom.stride) for atom in atoms]
    return [atom.size for atom in atoms], sorted(range(len(atoms)), key=places.__getitem__)


def _after(number: int, order: Sequence[int]) -> tuple[int, ...]:
  """A permutation that leaves the first axes where they are."""
  return (*range(number), *(number + place for place in order))


@functools.partial(jax.jit, static_argnames=('layout', 'ranks', 'lora_product'), inline=True)
def merge_kernels(
  kernel: jax.Array,
  adapter: Mapping[str, Any],
  forms: jax.Array,
  layout: Layout,
  ranks: tuple[int, ...],
  lora_product: equation.Product | None = None,
) -> jax.Array:
  """The kernel of `equation.effective_kernel`, of any layout.

  Outside of a compiled function a merge is one program and not twenty, hence `jit`; inside of one
  nothing is seen of it (`inline`).

  Args:
    kernel: kernel of a layer or of a stack of layers.
    adapter: the adapter's arrays of A and B, with the layout's stack axes first.
    forms: their forms, int [stack..., 5].
    layout: which axes of the kernel are stack, input and output.
    ranks: LoRA ranks that the codes stand for.
    lora_product: of the two factors of a LoRA, as of `equation.effective_kernel`.

  Returns:
    The merged kernel, in its shape.
  """
  function = functools.partial(equation.effective_kernel, ranks=ranks, lora_product=lora_product)
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
  """The bias of `equation.effective_bias`, of any layout; arguments as of `merge_kernels`."""
  if not is_quantized(kernel):
    function = functools.partial(equation.effective_bias, ranks=ranks)
    vectors = over_stack(function, len(layout.stack))(
      layout.matrices(kernel), layout.vectors(bias), adapter, forms
    )
    return layout.bias(vectors, bias.shape)

  # C @ W reads the kernel. Of a quantized stack one layer at a time is dequantized (a map, not a
  # vmap), and dequantized again on the way back.
  @jax.checkpoint
  def layer(arguments: Any) -> Any:
    kernel, bias, adapter, forms = arguments
    matrix = dequantize(kernel).reshape(-1, bias.size)
    return equation.effective_bias(matrix, bias, adapter, forms, ranks)

  for _ in layout.stack:
    layer = functools.partial(jax.lax.map, layer)
  kernel = repeat_scales(kernel, layout.stack)
  kernel = kernel.transpose(layout.stack + layout.inputs + layout.outputs)
  return layout.bias(layer((kernel, layout.vectors(bias), adapter, forms)), bias.shape)


def over_stack(function: Callable[..., Any], axes: int) -> Callable[..., Any]:
  """A function of one layer as one of a stack of layers with so many axes."""
  for _ in range(axes):
    function = jax.vmap(function)
  return function
