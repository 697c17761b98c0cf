"""Three rules to compute with an adapted kernel when a model uses it.

    merge     for any use: the kernel with its adapter merged in, W' = W + W * A + B
    multiply  for a product with activations: x W' = (x W) * (1 + A) + (x B_down) B_up. No gradient
              has the kernel's size, and the kernel is merged only where that is faster
              (`equation.layer_output`)
    look_up   for an embedding lookup: only the rows that are read are merged

Until it is used, the kernel is `Deferred`: the base's array, its adapter, and a `Plan`, which
records its axes and how the model has moved and cast it so far. `defer` replaces kernels by
`Deferred`, `glora_jax.method.program` carries these to where they are used, and `fold` merges them
all for the original model.
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
from glora_jax.method.adapter import ADAPTER, FLAT_FORMS, of_tensors
from glora_jax.method.dropout import Dropout
from glora_jax.method.groups import Group
from glora_jax.method.quantized import dequantize, is_quantized, repeat_scales
from glora_jax.method.site import TABLE, Layout, over_stack
from glora_jax.method.trace.view import View
from glora_jax.tree import KeyPath, flatten, update

_ONE_LORA = 0, len(FLAT_FORMS['B']), 0, 0, 0  # the forms of a layer with a LoRA of B alone

Gather = Callable[[jax.Array], jax.Array]  # all-gathers an array: it is replicated afterwards


def defer(
  groups: Sequence[Group],
  params: Any,
  adapter: Any,
  genome: jax.Array,
  fixed: np.ndarray | None = None,
  slot: jax.Array | None = None,
  quantized: Mapping[KeyPath, Any] = types.MappingProxyType({}),
  dropout: Dropout | None = None,
) -> Any:
  """Params with `Deferred` instead of adapted kernels; biases are merged at once.

  Args:
    groups: the adapted layers.
    params: parameters of the model; any pytree.
    adapter: the `glora` collection.
    genome: int [layers, 5]; may be traced.
    fixed: the genome if it is known when tracing.
    slot: which adapter of a pool (`glora_jax.serve`) to use: its arrays have an axis of slots after
      those of the stack. None without a pool.
    quantized: quantized arrays by path; `params` has shapes in their place (`split_quantized`).
    dropout: of the inputs of B's LoRAs; see `Forward.dropping_inputs`.
  """
  leaves = flatten(params)
  new: dict[KeyPath, Any] = {
    path: Deferred.unadapted(array, leaves[path].dtype) for path, array in quantized.items()
  }
  for group in groups:
    ranks = group.space.ranks
    slots = None if slot is None else jnp.broadcast_to(slot, group.stack_shape)
    site, of_kernel, of_bias, forms, by_output = group.part(adapter, genome, fixed)
    kernel = nn.meta.unbox(leaves[site.kernel_path])
    base = quantized.get(site.kernel_path, kernel)
    if of_bias and site.bias_path:
      bias = nn.meta.unbox(leaves[site.bias_path])
      rest = bias, _select_slot(of_bias, slots), forms, site.layout, ranks
      new[site.bias_path] = merge_biases(base, *rest)
    if of_kernel:
      deferred = Deferred.from_kernel(base, of_kernel, forms, site.layout, ranks, by_output)
      deferred = deferred.with_plan(casts=(kernel.dtype,))  # a quantized base has its own type
      deferred = dataclasses.replace(deferred, slot=slots)
      if dropout and 'B_down' in of_kernel and site.kind != TABLE:
        deferred = dataclasses.replace(deferred, dropout=dropout.of_layers(group))
      new[site.kernel_path] = deferred
  return update(params, new)


def fold(groups: Sequence[Group], params: Any, adapter: Any, genome: jax.Array) -> Any:
  """Params with the adapter merged into kernels and biases; arguments as of `defer`.

  Returns:
    Params of the same structure, for the original model.
  """

  def merge_leaf(leaf: Any) -> Any:
    return merge(leaf, equation.low_rank_product) if is_deferred(leaf) else leaf

  deferred = defer(groups, params, adapter, genome)
  return jax.tree.map(merge_leaf, deferred, is_leaf=is_deferred)


def merge(
  deferred: Deferred, lora_product: equation.Product | None = None, gather: Gather | None = None
) -> jax.Array:
  """The model's array with the adapter merged in.

  Args:
    deferred: the kernel.
    lora_product: see `equation.effective_kernel`.
    gather: all-gathers a sharded array; None if all are replicated.
  """
  plan, kernel = deferred.plan, deferred.kernel
  if deferred.watch:
    kernel = deferred.watch(plan.layout, kernel)
  kernel = _materialize(kernel, gather)
  if deferred.dropout:
    raise ValueError(
      f'lora_dropout: {deferred.dropout.layer} is used other than in a product of its kernel with '
      'inputs, so there is nothing to drop; give it no LoRA for B.'
    )
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
  """The `dot_general` of activations and an adapted kernel, without merging the kernel.

  Args:
    deferred: the kernel.
    x: activations.
    place: which operand the kernel is, 0 or 1.
    params: parameters of the `dot_general`.
    gather: all-gathers a sharded array, again in the backward pass; None if all are replicated.

  Returns:
    The product of a layer, x W', or of a tied head, x W'^T. None if the kernel must be merged: the
    product is neither of the two, its batch is not one of layers, or A may be a LoRA. With dropout
    a layer's A may be a LoRA, but a tied head gives None, and `merge` then raises ValueError.
  """
  plan = deferred.plan
  kernel_dims = _Dims.of_operand(place, len(plan.view.dims), params)
  x_dims = _Dims.of_operand(1 - place, x.ndim, params)
  is_layer = kernel_dims.match(plan, contracted=plan.inputs, free=plan.outputs)
  is_transposed = kernel_dims.match(plan, contracted=plan.outputs, free=plan.inputs)
  stack = deferred.stack_order(kernel_dims.batch)
  by_output = plan.goes_by_output and (is_layer or is_transposed)
  if stack is None or not (is_layer if deferred.dropout else by_output):
    return None

  def base_product(x: jax.Array, kernel: Any, of_a: Any = None, forms: Any = None) -> jax.Array:
    kernel = _materialize(kernel, gather)
    if deferred.is_quantized:  # still [inputs..., outputs...]: its scales could not be reshaped
      kernel = kernel.reshape(math.prod(kernel.shape[: len(plan.inputs)]), -1)
    if of_a:
      kernel = equation.effective_kernel(kernel, of_a, forms, plan.ranks)
    kernel = plan.cast(kernel)
    last_axis = (x.ndim - 1,), (0 if is_layer else 1,)
    options = {name: params[name] for name in ('precision', 'preferred_element_type')}
    return jax.lax.dot_general(x, kernel, (last_axis, ((), ())), **options)

  # With a checkpoint, a gathered or dequantized kernel is not saved for the backward pass.
  is_temporary = gather or deferred.is_quantized
  product = jax.checkpoint(base_product) if is_temporary else base_product

  def layer_output(x: jax.Array, layer: Deferred) -> jax.Array:
    output = equation.layer_output if is_layer else equation.transposed_output
    adapter = _select_slot(layer.adapter, layer.slot)
    rest = layer.forms, plan.ranks, params['precision']
    if not layer.dropout:
      return output(product, x, layer.kernel, adapter, *rest)
    dropped, of_product = layer.dropout.drop(x, layer.forms[1]), product
    if not plan.goes_by_output:  # a LoRA for A is merged as always, but without B
      of_a, adapter = of_tensors(adapter, {'A'}), of_tensors(adapter, {'B'})
      of_product = functools.partial(product, of_a=of_a, forms=layer.forms)
    return equation.layer_output(of_product, x, layer.kernel, adapter, *rest, dropped=dropped)

  # The equation needs one layer's matrices, x [tokens..., in] and W [in, out]. A `dot_general` may
  # have several axes for each of these, in any order, and a batch of layers (experts that a model
  # multiplies at once). So both operands are brought into the equation's order, batch first:
  #
  #   layers  [batch..., in, out]                from the kernel  [stack..., inputs..., outputs...]
  #   rows    [batch..., tokens..., contracted]  from x, `contracted` in the kernel's order
  #   y       [batch..., tokens..., free]        its `free` is unflattened last
  #
  # Tests: `turned` in tests/method/test_program.py has several axes, reordered and split;
  # `experts_by_einsum` in tests/method/function_zoo.py has a batch of layers.
  layers = deferred.by_layer(stack, len(kernel_dims.batch))
  ordered = x.transpose(*x_dims.batch, *x_dims.free, *x_dims.contracted)
  rows = plan.flatten(ordered, kernel_dims.contracted)
  y = over_stack(layer_output, len(kernel_dims.batch))(rows, layers)
  y = plan.unflatten(y, kernel_dims.free, rows.shape[:-1])
  if place == 1:
    return y
  # `dot_general` puts the free dimensions of its first operand first: here the kernel's.
  first_token, first_free = len(x_dims.batch), rows.ndim - 1
  batch, tokens = range(first_token), range(first_token, first_free)
  return y.transpose(*batch, *range(first_free, y.ndim), *tokens)


def look_up(
  deferred: Deferred,
  take: Callable[..., jax.Array],
  params: Mapping[str, Any],
  gather: Gather | None = None,
) -> jax.Array | None:
  """Rows of an adapted embedding table, merged without merging the table.

  Args:
    deferred: the table.
    take: applies the model's `gather` or `dynamic_slice` to another array, with some parameters
      changed.
    params: parameters of that equation.
    gather: see `multiply`.

  Returns:
    The rows; None if the equation reads anything else.
  """
  plan, view, stack_ndim = deferred.plan, deferred.plan.view, len(deferred.plan.stack)
  axes = [tuple(atom.axis for atom in dim if atom.size > 1) for dim in view.dims]
  is_one_layer = math.prod(deferred.kernel.shape[:stack_ndim]) == 1
  is_table = is_one_layer and axes == [plan.inputs, plan.outputs]
  if not is_table or params['slice_sizes'] != (1, view.shape[1]):
    return None
  # A token beyond the table may read as NaN. Lookups read 0 for it and NaN is put in at the end,
  # since in one factor it would make the whole gradient of the other NaN
  # (`test_a_token_beyond_the_table` in tests/method/test_chosen_rows.py).
  out_axis, finite = 1, {}
  if 'dimension_numbers' in params:
    out_axis, finite = params['dimension_numbers'].offset_dims[-1], {'fill_value': 0}

  def rows_of(matrix: jax.Array) -> jax.Array:
    return take(matrix, slice_sizes=(1, matrix.shape[1]), **finite)

  def base_rows(kernel: Any) -> jax.Array:
    return rows_of(_materialize(kernel, gather))

  table = deferred.map(lambda leaf: leaf.reshape(leaf.shape[stack_ndim:]))
  is_temporary = gather or deferred.is_quantized
  base = (jax.checkpoint(base_rows) if is_temporary else base_rows)(table.kernel)
  layout = Layout((), tuple(dim for dim in range(base.ndim) if dim != out_axis), (out_axis,))

  # Arrays with a row for each token of the vocabulary are looked up like the table. A pool's
  # [slots, in, ...] are looked up before the slot is selected, which would copy all of its rows.
  with_rows = {name for name in table.adapter if ADAPTER[name].axes[0] == 'in'}
  read = rows_of if table.slot is None else jax.vmap(rows_of)
  adapter = {name: read(v) if name in with_rows else v for name, v in table.adapter.items()}
  adapter = {
    name: layout.matrices(v) if name in with_rows else v
    for name, v in _select_slot(adapter, table.slot).items()
  }
  forms, ranks = table.forms, plan.ranks
  if 'B_ids' in adapter:
    # A lookup in a table of the rows' numbers says which rows are read. On these, B is a LoRA whose
    # `down` has a 1 where the row that is read is a chosen one.
    numbers = layout.matrices(rows_of(jnp.arange(table.kernel.shape[0])[:, None]))
    adapter['B_down'] = numbers == adapter.pop('B_ids')
    forms, ranks = jnp.array(_ONE_LORA), adapter['B_up'].shape[:1]
  rows = plan.cast(merge_kernels(base, adapter, forms, layout, ranks))
  if params.get('mode') != jax.lax.GatherScatterMode.FILL_OR_DROP:
    return rows
  # Looked up in a table of ones, a token within the table reads 1, one beyond it 0.
  fill, is_within = params['fill_value'], rows_of(jnp.ones((table.kernel.shape[0], 1))) > 0
  return jnp.where(is_within, rows, jnp.nan if fill is None else fill)


def _materialize(kernel: Any, gather: Gather | None) -> jax.Array:
  """The base's kernel, all-gathered and dequantized."""
  return dequantize(jax.tree.map(gather, kernel) if gather else kernel)


def _select_slot(
  adapter: Mapping[str, jax.Array], slot: jax.Array | None
) -> Mapping[str, jax.Array]:
  """The arrays of a slot, int [stack...], from [stack..., slots, ...]; all arrays if it is None."""
  if slot is None:
    return adapter
  select = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)
  select = over_stack(select, slot.ndim)
  return {name: select(value, slot) for name, value in adapter.items()}


class _Dims(NamedTuple):
  """The roles of an operand's dimensions in a `dot_general`."""

  contracted: tuple[int, ...]
  batch: tuple[int, ...]
  free: tuple[int, ...]

  @classmethod
  def of_operand(cls, place: int, ndim: int, params: Mapping[str, Any]) -> _Dims:
    contracted, batch = (dims[place] for dims in params['dimension_numbers'])
    return cls(contracted, batch, tuple(n for n in range(ndim) if n not in (*contracted, *batch)))

  def match(self, plan: Plan, contracted: Sequence[int], free: Sequence[int]) -> bool:
    """Whether it contracts no axes of the parameter but `contracted`, and keeps none but `free`."""
    return plan.axes(self.contracted) <= {*contracted} and plan.axes(self.free) <= {*free}


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=('kernel', 'adapter', 'forms', 'slot', 'dropout', 'watch'),
  meta_fields=('plan',),
)
@dataclasses.dataclass(frozen=True)
class Deferred:
  """A kernel on its way to its use; a pytree, so that scans and checkpoints accept it.

  Attributes:
    kernel: float [stack..., inputs..., outputs...] in the base's type, or a quantized array.
    adapter: the adapter's arrays of A and B, [stack..., ...]; empty if the array is not adapted.
    forms: int [stack..., 5]; None without an adapter.
    plan: its static part.
    slot: the slot to use of arrays [stack..., slots, ...], int [stack...]; None without slots.
    dropout: dropout of the inputs of B's LoRAs, with keys [stack...]; None for none.
    watch: a function of the layout and the kernel that returns the kernel and watches its gradient,
      a `jax.tree_util.Partial` of arrays [stack..., ...]; None for none.
  """

  kernel: Any
  adapter: Mapping[str, jax.Array]
  forms: Any
  plan: Plan
  slot: jax.Array | None = None
  dropout: Dropout | None = None
  watch: Any = None

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

    All its axes are its stack; if it is quantized, those that have a scale for each index.
    """
    shapes = [leaf.shape for leaf in jax.tree.leaves(array)]
    stack = tuple(n for n, sizes in enumerate(zip(*shapes, strict=True)) if len(set(sizes)) == 1)
    rest = tuple(n for n in range(array.ndim) if n not in stack)
    deferred = cls.from_kernel(array, {}, None, Layout(stack, (), rest), (), False)
    return deferred.with_plan(casts=(dtype,))

  @property
  def is_quantized(self) -> bool:
    """Whether the kernel is quantized, and so dequantized when it is used."""
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
    """The kernel with some fields of its plan changed."""
    return dataclasses.replace(self, plan=dataclasses.replace(self.plan, **changes))

  def cast(self, dtype: Any) -> Deferred:
    """The kernel in another type; one that is only gathered is cast now, to send fewer bytes."""
    if self.adapter or self.watch or self.is_quantized:
      return self.with_plan(casts=(*self.plan.casts, np.dtype(dtype)))
    return self.map(lambda kernel: kernel.astype(dtype)).with_plan(casts=())

  def map(self, function: Callable[[jax.Array], jax.Array]) -> Deferred:
    """Applies a function to the kernel, each array of the adapter, forms, slot and keys."""
    return jax.tree.map(function, self)

  def stack_order(self, batch: Sequence[int]) -> list[int] | None:
    """The stack's axes in an order: the batch dimensions as given, then all axes of size one.

    Of experts [1, 4, in, out] with the stack (0, 1), multiplied in a batch along dimension 1, it is
    [1, 0].

    None if the product has no batch of layers: if these are not all axes of the stack, or a batch
    dimension is not exactly one of them.
    """
    places = [self.plan.stack_place(dim) for dim in batch]
    sizes = self.kernel.shape[: len(self.plan.stack)]
    order = [place for place in places if place is not None]
    order += [place for place, size in enumerate(sizes) if size == 1]
    return None if None in places or len(order) != len(sizes) else order

  def by_layer(self, order: Sequence[int], batch_ndim: int) -> Deferred:
    """Kernel [batch..., in, out], the adapter likewise; if quantized, it keeps its other axes.

    Args:
      order: the axes of the stack, those of the batch first; the others are of size one.
      batch_ndim: number of axes of the batch.
    """

    def batch_first(leaf: jax.Array) -> jax.Array:
      leaf = leaf.transpose(*order, *range(len(order), leaf.ndim))
      return leaf.reshape(*leaf.shape[:batch_ndim], *leaf.shape[len(order) :])

    kernel = self.kernel if self.is_quantized else self.plan.layout.matrices(self.kernel)
    return dataclasses.replace(self, kernel=kernel).map(batch_first)


def is_deferred(value: Any) -> bool:
  """Whether a value is a kernel on its way to its use."""
  return isinstance(value, Deferred)


@dataclasses.dataclass(frozen=True)
class Plan:
  """The static part of a deferred kernel: its axes, and their positions in the model's array.

  Three heads of size 4 from 8 features, in 12 scanned blocks, are a parameter [12, 8, 3, 4] with
  stack (0,), inputs (1,) and outputs (2, 3). When a block has reshaped its slice to [8, 12], the
  view's two dimensions are axis 1, and axes 2 and 3 merged (`glora_jax.method.trace.view`).

  Attributes:
    stack: the axes that count layers, by their numbers in the parameter.
    inputs: the axes that are summed over.
    outputs: the others.
    view: their positions in the model's array, which it has computed from the parameter so far.
    ranks: LoRA ranks that the codes stand for.
    goes_by_output: whether tracing knows that no layer has a LoRA for A; then `multiply` applies.
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
    """The layout of `Deferred.kernel`, [stack..., inputs..., outputs...]."""
    dims = tuple(range(len(self.stack) + len(self.inputs) + len(self.outputs)))
    first, last = len(self.stack), len(self.stack) + len(self.inputs)
    return Layout(dims[:first], dims[first:last], dims[last:])

  def axes(self, dims: Sequence[int]) -> set[int]:
    """The axes of the parameter that some dimensions of the model's array are made of."""
    return {atom.axis for dim in dims for atom in self.view.dims[dim] if atom.size > 1}

  def stack_place(self, dim: int) -> int | None:
    """The index in `stack` of the axis that is a dimension; None if it is not one whole stack axis.

    A reshape may have split an axis into several dimensions, or merged it with others.
    """
    atoms = [atom for atom in self.view.dims[dim] if atom.size > 1]
    if len(atoms) != 1 or atoms[0].stride != 1 or atoms[0].axis not in self.stack:
      return None
    axis = atoms[0].axis
    elsewhere = (atom.axis for n, d in enumerate(self.view.dims) if n != dim for atom in d)
    return None if axis in elsewhere else self.stack.index(axis)

  def cast(self, array: jax.Array) -> jax.Array:
    """Casts an array as the model has cast the kernel, step by step, since each may round."""
    return functools.reduce(lambda array, dtype: array.astype(dtype), self.casts, array)

  def flatten(self, array: jax.Array, dims: Sequence[int]) -> jax.Array:
    """Merges an array's last axes, `dims` of the model's array, into one in the kernel's order.

    Example:
      >>> view = View.of((), (8, 3, 4))  # [in, head, size]
      >>> turned = dataclasses.replace(view, dims=view.dims[::-1])  # the model's [size, head, in]
      >>> plan = Plan((), (0,), (1, 2), turned, (2,), True)
      >>> y = jnp.zeros((5, 4, 3))  # a product of five tokens with it, [token, size, head]
      >>> flat = plan.flatten(y, (0, 1))  # [token, head * size], as W' has its columns
      >>> flat.shape, plan.unflatten(flat, (0, 1), (5,)).shape
      ((5, 12), (5, 4, 3))
    """
    sizes, order = self._atoms(dims)
    lead = array.shape[: array.ndim - len(dims)]
    moved = array.reshape(*lead, *sizes).transpose(_after(len(lead), order))
    return moved.reshape(*lead, math.prod(sizes))

  def unflatten(self, array: jax.Array, dims: Sequence[int], lead: Sequence[int] = ()) -> jax.Array:
    """Inverse of `flatten`, for an array whose first axes have the sizes `lead`."""
    sizes, order = self._atoms(dims)
    atoms = array.reshape(*lead, *(sizes[place] for place in order))
    moved = atoms.transpose(_after(len(lead), np.argsort(order).tolist()))
    return moved.reshape(*lead, *(self.view.shape[dim] for dim in dims))

  def _atoms(self, dims: Sequence[int]) -> tuple[list[int], list[int]]:
    """Sizes of the atoms that some dims are made of, and the order that the kernel has them in."""
    atoms = [atom for dim in dims for atom in self.view.dims[dim] if atom.size > 1]
    axes = (*self.stack, *self.inputs, *self.outputs)
    places = [(axes.index(atom.axis), -atom.stride) for atom in atoms]
    return [atom.size for atom in atoms], sorted(range(len(atoms)), key=places.__getitem__)


def _after(number: int, order: Sequence[int]) -> tuple[int, ...]:
  """The permutation that keeps the first axes and puts those after them in an order."""
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
  """`equation.effective_kernel` for a kernel of any layout.

  `jit` makes a merge outside of a compiled function one program instead of twenty; inside of one,
  `inline` leaves no trace of it.

  Args:
    kernel: kernel of a layer or of a stack of layers.
    adapter: the adapter's arrays of A and B, with the layout's stack axes first.
    forms: their forms, int [stack..., 5].
    layout: which axes of the kernel are stack, input and output.
    ranks: LoRA ranks that the codes stand for.
    lora_product: see `equation.effective_kernel`.

  Returns:
    The merged kernel, in the kernel's shape.
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
  """`equation.effective_bias` for a bias of any layout; arguments are those of `merge_kernels`."""
  if not is_quantized(kernel):
    function = functools.partial(equation.effective_bias, ranks=ranks)
    vectors = over_stack(function, len(layout.stack))(
      layout.matrices(kernel), layout.vectors(bias), adapter, forms
    )
    return layout.bias(vectors, bias.shape)

  # C @ W reads the kernel. A quantized stack is dequantized one layer at a time (by `lax.map`, not
  # `vmap`), and again in the backward pass.
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
