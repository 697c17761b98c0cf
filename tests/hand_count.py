"""What a reader of a model counts in it, and the equation applied along the axes that he found.

A kernel's axes are written as a word with a letter for each: `s` counts layers (a stack), `i` is
summed over, `o` is left. Attention's [width, heads, channels] is 'ioo', a stack of experts
[expert, in, out] 'sio', GPT-2's [out, in] 'oi'.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx


class Kernel(NamedTuple):
  """A parameter that rows of a genome stand for.

  Attributes:
    axes: a letter for each axis: 's' stack ('S' around those of 's'), 'i' in, 'o' out.
    bias: path of the bias; None without one.
    bias_axes: a letter for each axis of the bias; by default its stack leads.
  """

  axes: str
  bias: str | None = None
  bias_axes: str | None = None


Kernels = Mapping[str, Kernel]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counted:
  """What else a reader says of a model.

  Attributes:
    uncovered: paths of matrices that no row can stand for; heads are not among them.
    kwargs: keyword arguments of its call.
    options: further arguments of the function that adapts it.
    blind: rows (a regular expression) whose bias cannot change the output.
    tolerance: largest difference of equal outputs, relative to max|y|.
  """

  uncovered: tuple[str, ...] = ()
  kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  blind: str = r'(?!)'
  tolerance: float = 1e-5


@dataclasses.dataclass(frozen=True)
class FunctionExample(Counted):
  """A function of parameters and inputs.

  Attributes:
    apply: called with the parameters and the inputs.
    params: any tree of arrays.
    inputs: positional arguments besides.
    kernels: its kernels by path, counted by hand.
    rows: how many layers they are, counted by hand.
  """

  apply: Callable[..., Any]
  params: Any
  inputs: tuple[Any, ...]
  kernels: Kernels
  rows: int


@dataclasses.dataclass(frozen=True)
class NnxExample(Counted):
  """An NNX model.

  Attributes:
    make: gives the model in evaluation mode; equal ones at every call.
    inputs: positional arguments of its call.
    kernels: its kernels by path, counted by hand; heads are not among them.
    rows: how many layers they are, counted by hand.
  """

  make: Callable[[], nnx.Module]
  inputs: tuple[Any, ...]
  kernels: Kernels
  rows: int


def beside(axes: str, path: str) -> Kernel:
  """A kernel at a path, whose bias stands beside it."""
  parent, _, _ = path.rpartition('/')
  return Kernel(axes, f'{parent}/bias' if parent else 'bias')


def by_name(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by their '/'-joined paths."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def found(adapted: Any) -> dict[str, Kernel]:
  """The kernels that an adapted model's rows stand for, written like those counted by hand.

  The bias's axes are left out: `fold_by_hand` tells whether they were understood.
  """
  kernels = {}
  for group in adapted.places.groups:
    site = group.site
    bias = None if site.bias_path is None else '/'.join(site.bias_path)
    kernels['/'.join(site.kernel_path)] = Kernel(axes_of(site), bias)
  return kernels


def axes_of(site: Any) -> str:
  """A letter for each axis of a kernel."""
  letters = [''] * len(site.kernel_shape)
  for letter, dims in zip(
    'sio', (site.layout.stack, site.layout.inputs, site.layout.outputs), strict=True
  ):
    for dim in dims:
      letters[dim] += letter
  return ''.join(letters)


def expected(kernels: Kernels) -> dict[str, Kernel]:
  """Kernels counted by hand without the axes of their biases, to compare with `found`."""
  return {
    path: Kernel(kernel.axes.replace('S', 's'), kernel.bias) for path, kernel in kernels.items()
  }


def equation(kernel, bias, adapter, forms, ranks):
  """The paper's equation 10 in plain NumPy: W + W * A + B, b + b * D + E + C @ W.

  Constants and vectors that are not shared have storage of their own.
  """
  a, b, c, d, e = (int(form) for form in forms)

  def product(tensor, rank):
    return adapter[f'{tensor}_down'][:, :rank] @ adapter[f'{tensor}_up'][:rank]

  def weight(tensor, code):
    if code > 2:
      return product(tensor, ranks[code - 3])
    first = adapter[f'{tensor}_up'][0]
    own = adapter.get(f'{tensor}_constant', first)[0], adapter.get(f'{tensor}_vector', first)
    return (0.0, *own)[code]

  new_kernel = kernel + kernel * weight('A', a) + weight('B', b)
  if bias is None:
    return new_kernel, None
  prompt = (
    (np.zeros(len(kernel)), adapter.get('C_vector', adapter['C_down'][:, 0]))[c]
    if c < 2
    else product('C', ranks[c - 2])[:, 0]
  )

  def vector(tensor, code):
    full = adapter[tensor]
    return (0.0, adapter.get(f'{tensor}_constant', full)[0], full)[code]

  return new_kernel, bias + bias * vector('D', d) + vector('E', e) + prompt @ kernel


def fold_by_hand(
  kernels: Kernels, params: Mapping[str, Any], adapter: Mapping[str, Any], rows: Any, ranks: Any
) -> dict[str, np.ndarray]:
  """Folded parameters by name, from the axes that were counted by hand.

  Args:
    kernels: the kernels.
    params: all parameters by name.
    supports: the supports by name: a row's name and the support's.
    rows: the forms of each row by its name.
    ranks: the ranks on offer.
  """
  folded = {path: np.asarray(value, np.float64) for path, value in params.items()}
  for path, kernel in kernels.items():
    name = path.removesuffix('/kernel').removesuffix('/weight').removesuffix('/weight')
    own = {
      entry.removeprefix(f'{name}/'): np.asarray(value)
      for entry, value in adapter.items()
      if entry.rpartition('/')[0] == name
    }
    matrices, put_back = _ordered(folded[path], kernel.axes)
    bias_axes = kernel.bias_axes or kernel.axes.replace('i', '').replace('o', '').ljust(
      0 if kernel.bias is None else folded[kernel.bias].ndim, 'o'
    )
    vectors, put_bias_back = (
      (None, None) if kernel.bias is None else _ordered(folded[kernel.bias], bias_axes)
    )
    for index in np.ndindex(matrices.shape[: kernel.axes.lower().count('s')]):
      row = name + (f'[{",".join(map(str, index))}]' if index else '')
      slices = {entry: value[index] for entry, value in own.items()}
      matrices[index], bias = equation(
        matrices[index], None if vectors is None else vectors[index], slices, rows[row], ranks
      )
      if vectors is not None:
        vectors[index] = bias
    folded[path] = put_back(matrices)
    if kernel.bias is not None:
      folded[kernel.bias] = put_bias_back(vectors)
  return folded


def _ordered(value: np.ndarray, axes: str):
  """An array with its axes in the order 's', 'i', 'o', those of 'i' and of 'o' joined, and back."""
  dims = sorted(range(value.ndim), key=lambda dim: 'Ssio'.index(axes[dim]))
  moved = value.transpose(dims)
  stack, inputs = axes.lower().count('s'), axes.count('i')
  sizes = [math.prod(moved.shape[stack:][:inputs])] * (inputs > 0)
  joined = moved.reshape(*moved.shape[:stack], *sizes, -1).copy()

  def put_back(changed: np.ndarray) -> np.ndarray:
    return changed.reshape(moved.shape).transpose(np.argsort(dims))

  return joined, put_back


def randomized_model(make: Callable[[], nnx.Module]) -> nnx.Module:
  """A model with random numbers also where initial values are zero; nothing is compiled."""
  rng = np.random.default_rng(0)
  graph, state = nnx.split(nnx.eval_shape(make))

  def value(path, variable):
    shape, dtype = variable.shape, variable.get_value().dtype
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
      return jax.random.split(jax.random.key(0), shape)
    drawn = rng.normal(0, 0.4, shape)
    drawn = 1 + np.abs(drawn) if path[-1] in ('scale', 'var') else drawn
    return jax.device_put(np.asarray(drawn, dtype))

  flat = [
    (path, variable.replace(value(path, variable))) for path, variable in nnx.to_flat_state(state)
  ]
  return nnx.merge(graph, nnx.from_flat_state(flat))


def unboxed(tree: Any) -> dict[str, Any]:
  """The arrays of a tree by name, out of their boxes."""
  return by_name(nn.meta.unbox(tree))


def registry() -> tuple[dict[str, Callable[[], Any]], Callable[..., Any]]:
  """(The examples of a zoo by name, a decorator that adds one)."""
  examples = {}

  def example(function):
    examples[function.__name__] = function
    return function

  return examples, example


def quick_first(names: Iterable[str], *quick: str) -> Any:
  """A test's parameter `name`: `.ci/full` has those that are not quick."""
  marked = [pytest.param(name, marks=[pytest.mark.full] * (name not in quick)) for name in names]
  return pytest.mark.parametrize('name', marked)


def attend(q, k, v, causal=True):
  """Attention of [batch, time, heads, channels]; fewer heads of keys than of queries will do."""
  repeats = q.shape[2] // k.shape[2]
  k, v = (jnp.repeat(each, repeats, axis=2) for each in (k, v))
  logits = jnp.einsum('btnh,bsnh->bnts', q, k) / np.sqrt(q.shape[-1])
  if causal:
    logits = jnp.where(jnp.tri(q.shape[1], dtype=bool), logits, -1e9)
  return jnp.einsum('bnts,bsnh->btnh', jax.nn.softmax(logits), v)
