"""A kernel of a model (`Site`), and which of its axes are stack, inputs and outputs (`Layout`)."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.tree import KeyPath, get

TABLE = 'Embed'  # kind of a site whose rows are looked up
LINEAR_MODULES = (nn.Dense, nn.DenseGeneral, nn.Einsum, nn.Conv)


@dataclasses.dataclass(frozen=True)
class Layout:
  """Which dimensions of a kernel and its bias are stack, input and output.

  Attributes:
    stack: dimensions of the kernel that count layers.
    inputs: dimensions of the kernel that are summed over.
    outputs: all other dimensions of the kernel, in the order in which the bias has them.
    bias_stack: dimensions of the bias that count layers; its others are outputs.

  Example:
    >>> heads = Layout(stack=(), inputs=(0,), outputs=(1, 2))  # [in, heads, width]
    >>> heads.matrices(jnp.ones((4, 2, 3))).shape
    (4, 6)
  """

  stack: tuple[int, ...]
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]
  bias_stack: tuple[int, ...] = ()

  def without_stack(self, places: Collection[int]) -> Layout:
    """The layout inside transforms that remove the axes at some places of the stack."""
    removed = [self.stack[place] for place in places]
    bias_removed = [self.bias_stack[place] for place in places if self.bias_stack]
    return Layout(
      stack=_without(removed, self.stack),
      inputs=_without(removed, self.inputs),
      outputs=_without(removed, self.outputs),
      bias_stack=_without(bias_removed, self.bias_stack),
    )

  def sizes(self, shape: Sequence[int]) -> tuple[tuple[int, ...], int, int]:
    """Of a kernel of the given shape: sizes of the stack's axes, a layer's inputs and outputs."""
    inputs, outputs = ([shape[dim] for dim in dims] for dims in (self.inputs, self.outputs))
    return tuple(shape[dim] for dim in self.stack), math.prod(inputs), math.prod(outputs)

  def matrices(self, kernel: jax.Array) -> jax.Array:
    """The kernel as [stack..., in, out]."""
    stack, inputs, outputs = self.sizes(kernel.shape)
    ordered = kernel.transpose(self.stack + self.inputs + self.outputs)
    return ordered.reshape((*stack, inputs, outputs))

  def kernel(self, matrices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Inverse of `matrices`, for a kernel of the given shape."""
    return _put_back(matrices, self.stack + self.inputs + self.outputs, shape)

  def vectors(self, bias: jax.Array) -> jax.Array:
    """The bias as [stack..., out]."""
    ordered = bias.transpose(self._bias_order(bias.ndim))
    return ordered.reshape(*ordered.shape[: len(self.bias_stack)], -1)

  def bias(self, vectors: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Inverse of `vectors`, for a bias of the given shape."""
    return _put_back(vectors, self._bias_order(len(shape)), shape)

  def _bias_order(self, ndim: int) -> tuple[int, ...]:
    return self.bias_stack + tuple(dim for dim in range(ndim) if dim not in self.bias_stack)


def _without(removed: Sequence[int], dims: Sequence[int]) -> tuple[int, ...]:
  """The dimensions that are not removed, counted without those that are."""
  return tuple(dim - sum(other < dim for other in removed) for dim in dims if dim not in removed)


def _put_back(values: jax.Array, order: Sequence[int], shape: tuple[int, ...]) -> jax.Array:
  """An array of the given shape from one whose dimensions were put in an order and merged."""
  return values.reshape([shape[dim] for dim in order]).transpose(np.argsort(order))


def linear_layout(module: nn.Module, *args: Any, **kwargs: Any) -> Layout | None:
  """How the `kernel` and `bias` of a linear module are laid out.

  Args:
    module: one of `LINEAR_MODULES`, or of a class derived from one.
    *args: arguments of its call, of which the second one of an `nn.Einsum` matters, `einsum_str`.
    **kwargs: further arguments of its call.

  Returns:
    The layout of the parameters that the module itself sees; None for an `nn.Einsum` that is not a
    linear layer.
  """
  if isinstance(module, nn.Dense):
    return Layout((), (0,), (1,))
  if isinstance(module, nn.Conv):
    spatial = 1 if isinstance(module.kernel_size, int) else len(module.kernel_size)
    return Layout((), tuple(range(spatial + 1)), (spatial + 1,))
  if isinstance(module, nn.Einsum):
    equation = (args[1] if len(args) > 1 else kwargs.get('einsum_str')) or module.einsum_str
    assert equation is not None  # Flax has rejected the call without one
    return _einsum_layout(equation.replace(' ', ''))
  assert isinstance(module, nn.DenseGeneral)
  stack = _axis_count(module.batch_dims)
  inputs_end = stack + _axis_count(module.axis)
  dims = tuple(range(inputs_end + _axis_count(module.features)))
  return Layout(dims[:stack], dims[stack:inputs_end], dims[inputs_end:], dims[:stack])


def _axis_count(sizes: int | Sequence[int]) -> int:
  """How many axes a module's argument stands for."""
  return 1 if isinstance(sizes, int) else len(sizes)


def _einsum_layout(equation: str) -> Layout | None:
  """The layout of an einsum's kernel; None if it is not a linear layer."""
  operands, result = equation.split('->')
  inputs, kernel = operands.split(',')
  stack = [letter for letter in kernel if letter in inputs and letter in result]
  fan_in = [letter for letter in kernel if letter in inputs and letter not in result]
  fan_out = [letter for letter in result if letter in kernel and letter not in inputs]
  letters = {*stack, *fan_in, *fan_out}
  is_linear = fan_in and fan_out and set(kernel) == letters and len(kernel) == len(letters)
  if '.' in kernel or not is_linear:
    return None
  # Flax gives the bias the kernel's letters in the order of the result.
  bias = [letter for letter in result if letter in kernel]
  return Layout(
    stack=_positions(stack, kernel),
    inputs=_positions(fan_in, kernel),
    outputs=_positions(fan_out, kernel),
    bias_stack=_positions(stack, bias),
  )


def _positions(letters: Iterable[str], among: Sequence[str]) -> tuple[int, ...]:
  return tuple(among.index(letter) for letter in letters)


@dataclasses.dataclass(frozen=True)
class Site:
  """One kernel of the model, which may be a stack of layers, with its bias.

  Attributes:
    kernel_path: path of the kernel in the params.
    bias_path: path of the bias; None without bias.
    kernel_shape: shape of the kernel, with all stack axes.
    dtype: data type of the kernel.
    layout: layout of the parameters with all stack axes: first those that lifted transforms added,
      outermost first, then the module's own.
    kind: name of the module's class, or the kind of its product in the program ('Dot', 'Conv').
    is_convolution: whether it is a convolution, also of a subclass.
    is_grouped: whether it is a convolution of groups of channels, also of single ones (depthwise).
    is_tied: whether it is a table that is also multiplied by, as tied heads do.
    rows: rows of its layers among all layers of the model, in the order of the flattened stack;
      those of a genome are counted among the adapted layers alone (see `number_rows`).
    nests: whether the kernel's module contains other layers, too (see `with_disjoint_paths`).
  """

  kernel_path: KeyPath
  bias_path: KeyPath | None
  kernel_shape: tuple[int, ...]
  dtype: np.dtype
  layout: Layout
  kind: str = 'Dense'
  is_convolution: bool = False
  is_grouped: bool = False
  is_tied: bool = False
  rows: tuple[int, ...] = ()
  nests: bool = False

  @property
  def path(self) -> KeyPath:
    """Path of its arrays in the `glora` collection: the kernel's, or its module's.

    One called `kernel` or `weight` stands for its module, unless that contains other layers.
    """
    is_a_module = self.kernel_path[-1:] in (('kernel',), ('weight',)) and not self.nests
    return self.kernel_path[:-1] if is_a_module else self.kernel_path

  @property
  def name(self) -> str:
    """The '/'-joined path; a model that is one linear module has none, and is named by its kind."""
    return '/'.join(self.path) or self.kind

  @property
  def stack_shape(self) -> tuple[int, ...]:
    """Sizes of the stack's axes; () for a single layer."""
    return self.layout.sizes(self.kernel_shape)[0]

  @property
  def in_features(self) -> int:
    """Inputs of each layer."""
    return self.layout.sizes(self.kernel_shape)[1]

  @property
  def out_features(self) -> int:
    """Outputs of each layer."""
    return self.layout.sizes(self.kernel_shape)[2]

  @property
  def has_bias(self) -> bool:
    """Whether the module has a bias."""
    return self.bias_path is not None

  def kernel(self, params: Any) -> jax.Array:
    """The kernel in a model's params, out of its box."""
    return nn.meta.unbox(get(params, self.kernel_path))

  def bias(self, params: Any) -> jax.Array | None:
    """The bias in a model's params, out of its box; None without bias."""
    return None if self.bias_path is None else nn.meta.unbox(get(params, self.bias_path))

  def axis_names(
    self, names: Sequence[Any], axes: Sequence[str | None]
  ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Names of the kernel's axes for sharding, and those of an array with axes 'in' and 'out'.

    Other axes of the array have no name, and neither have inputs or outputs of several axes.

    Args:
      names: the kernel's, which may be fewer than its axes.
      axes: names of the array's axes.
    """
    names = (*names, *(None,) * (len(self.kernel_shape) - len(names)))
    dims: dict[str | None, tuple[int, ...]] = {
      'in': self.layout.inputs,
      'out': self.layout.outputs,
    }
    return names, tuple(
      names[dims[axis][0]] if len(dims.get(axis, ())) == 1 else None for axis in axes
    )


def with_disjoint_paths(sites: Sequence[Site]) -> list[Site]:
  """The sites, none of whose paths is the beginning of another's.

  If a module with a kernel contains other layers, its site gets the kernel's path.
  """
  beginnings = {site.path[:end] for site in sites for end in range(len(site.path))}
  return [dataclasses.replace(site, nests=site.path in beginnings) for site in sites]


Item = TypeVar('Item')
Loop = tuple[Hashable, int]  # its identity, and its number of iterations


def interleave(
  items: Iterable[tuple[Item, Sequence[Loop]]], numbers: tuple[int, ...] = ()
) -> Iterator[tuple[Item, tuple[int, ...]]]:
  """Items in the order in which they run, with the numbers of the iterations.

  A loop runs all its items in iteration 0, then all in iteration 1, and so on. That is the order of
  the stack, also if a scan runs in reverse: rows of saved genomes have this order.

  Args:
    items: the calls, in the order of the program, each with the loops around it, outermost first.
    numbers: the iterations that all these items are in; () outside of loops.
  """
  level = len(numbers)
  for loop, together in itertools.groupby(items, lambda item: (*item[1], None)[level]):
    inside = list(together)
    if loop is None:
      yield from ((item, numbers) for item, _ in inside)
    else:
      for number in range(loop[1]):
        yield from interleave(inside, (*numbers, number))


def align_stack(value: Any, axes: Sequence[int], ndim: int) -> Any:
  """Moves the stack's axes of an array to their positions in a kernel.

  Args:
    value: array [stack..., rest...].
    axes: positions of the stack's axes in the kernel.
    ndim: number of dimensions of the result; new ones have size one.
  """
  value = value.reshape((*value.shape, *(1,) * (ndim - value.ndim)))
  if list(axes) == list(range(len(axes))):
    return value
  return jnp.moveaxis(value, range(len(axes)), axes)


def over_stack(function: Callable[..., Any], axes: int) -> Callable[..., Any]:
  """Maps a function of one layer over a stack of layers with this number of axes."""
  for _ in range(axes):
    function = jax.vmap(function)
  return function
