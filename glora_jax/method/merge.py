"""Merging supports into kernels and biases: all at once, or where a linen module is called.

`fold` merges all at once, for the plain model. While an adapted model runs, only one merged kernel
is alive at a time: the supports are *grafted* into the params, beside their kernels; an interceptor
finds them there when the module is called, and runs it with its merged kernel and bias. Called
outside of a compiled function, a merge is one program and not twenty.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.method import equation
from glora_jax.method.genomes import Occurring
from glora_jax.method.groups import Group
from glora_jax.method.site import LINEAR_MODULES, Layout, Site, lay_beside
from glora_jax.method.space import TENSORS, WEIGHT_TENSORS, Tensor
from glora_jax.method.supports import SUPPORTS, support_shapes
from glora_jax.tree import flatten, get, replace, update

_PREFIX = 'glora_'  # of the keys in the params under which grafts lie


@functools.partial(jax.jit, static_argnames=('layout', 'ranks', 'product'), inline=True)
def merge_layers(
  kernel: jax.Array,
  bias: jax.Array | None,
  supports: Mapping[str, Any],
  alleles: jax.Array,
  layout: Layout,
  ranks: tuple[int, ...],
  product: equation.Product | None = None,
) -> tuple[jax.Array, jax.Array | None]:
  """`equation.effective` over a kernel of any layout.

  Args:
    kernel: kernel of a layer or of a stack of layers.
    bias: their bias, or None.
    supports: their supports, with the layout's stack axes first.
    alleles: their alleles, int [stack..., 5].
    layout: which axes of the kernel and bias are stack, input and output.
    ranks: LoRA ranks that the codes stand for.
    product: of the two factors of a LoRA, as of `equation.effective`.

  Returns:
    The merged kernel and bias, in their shapes; None without bias.
  """
  effective = functools.partial(equation.effective, ranks=ranks, product=product)
  function = _over_stack(effective, layout)
  vectors = None if bias is None else layout.vectors(bias)
  merged, merged_vectors = function(layout.matrices(kernel), vectors, supports, alleles)
  kernel = layout.kernel(merged, kernel.shape)
  return kernel, None if bias is None else layout.bias(merged_vectors, bias.shape)


@functools.partial(jax.jit, static_argnames=('layout', 'ranks'), inline=True)
def merge_biases(
  kernel: jax.Array,
  bias: jax.Array,
  supports: Mapping[str, Any],
  alleles: jax.Array,
  layout: Layout,
  ranks: tuple[int, ...],
) -> jax.Array:
  """The bias of `merge_layers` alone; arguments as there."""
  function = _over_stack(functools.partial(equation.effective_bias, ranks=ranks), layout)
  vectors = function(layout.matrices(kernel), layout.vectors(bias), supports, alleles)
  return layout.bias(vectors, bias.shape)


def _over_stack(function: Callable[..., Any], layout: Layout) -> Callable[..., Any]:
  """A function of one layer as one of a stack of layers."""
  for _ in layout.stack:
    function = jax.vmap(function)
  return function


def fold(groups: Sequence[Group], params: Any, supports: Any, genome: jax.Array) -> Any:
  """Params with the supports of all groups merged into kernels and biases.

  Args:
    groups: the adapted layers.
    params: parameters of the model; any pytree, whose boxes stay what they are.
    supports: the `glora` collection.
    genome: int [rows, 5]; may be traced.

  Returns:
    Params of the same structure, for the untouched model.
  """
  leaves, changes = flatten(params), {}
  for group in groups:
    alleles = group.alleles(genome)
    for site, part in group.of_members(group.own(supports)):
      merged = merge_layers(
        nn.meta.unbox(leaves[site.kernel_path]),
        nn.meta.unbox(leaves[site.bias_path]) if site.bias_path else None,
        part,
        alleles,
        site.layout,
        group.space.ranks,
        equation.low_rank_product,
      )
      paths = (site.kernel_path, site.bias_path)
      changes |= {path: value for path, value in zip(paths, merged, strict=True) if path}
  return update(params, changes)


@dataclasses.dataclass(frozen=True)
class Graft:
  """What an interceptor must know to merge a graft: static, and the same for all layers alike.

  Attributes:
    layout: layout of the kernel that the module sees.
    ranks: LoRA ranks that the codes stand for.
    occurring: of a fixed subnet, the alleles that occur in the stack; None for any genome.
  """

  layout: Layout
  ranks: tuple[int, ...]
  occurring: Occurring | None = None

  @property
  def key(self) -> str:
    """The graft's key in the params.

    Class-level `nn.jit` reuses traces between models of equal structure: the digest makes
    structures differ where meanings do.
    """
    return _PREFIX + hashlib.sha256(repr(self).encode()).hexdigest()[:16]

  @property
  def used(self) -> tuple[Tensor, ...]:
    """The tensors that take part in some layer of the stack."""
    return TENSORS if self.occurring is None else self.occurring.tensors

  def run(self, call: Call) -> Any:
    """What a linear module returns with the leaves merged into its params."""
    module, kernel, bias = call.module, call.params['kernel'], call.params.get('bias')
    supports, alleles = _unplace(call.leaves, kernel, self)

    # A subclass may do more, and a product of its own (quantized, say) need not split into terms.
    plain = type(module) is nn.Dense and module.dot_general is module.dot_general_cls is None
    arguments = [*call.args, *call.kwargs.values()]  # of any but its one, it says what is wrong
    is_thin = self.occurring is not None and self.occurring.is_thin
    if plain and is_thin and len(arguments) == 1 and call.kwargs.keys() <= {'inputs'}:
      (inputs,) = arguments
      product = _dense_product(module, inputs, kernel, bias)
      part = {n: value for n, value in supports.items() if SUPPORTS[n].tensor in self.used}
      arrays = inputs, kernel, bias, part, alleles
      return equation.thin_layer(product, *arrays, self.ranks, module.precision)

    kernel, bias = merge_layers(kernel, bias, supports, alleles, self.layout, self.ranks)
    return call.with_params(kernel=kernel, **({} if bias is None else {'bias': bias}))


def graft(
  groups: Sequence[Group],
  params: Any,
  supports: Any,
  genome: jax.Array,
  fixed: np.ndarray | None = None,
) -> tuple[Any, dict[str, Graft]]:
  """Params with supports and alleles beside their kernels, stacked as these are.

  They go into `params` itself, since a third-party `nn.scan` may hand on no other collection. What
  the model also reads by other ways than its modules' calls is folded at once. So are biases on
  CPU, where a step takes longer if a scan over layers merges them (1.5 times as long for BitFit),
  and those of a fixed structure; the TPU compiler holds less where they wait.

  Args:
    groups: the adapted layers.
    params: parameters of the model.
    supports: the `glora` collection.
    genome: int [rows, 5]; may be traced.
    fixed: the genome where it is known when tracing.

  Returns:
    The params, and what the key of each graft in them stands for.
  """
  grafts = {}
  shared = [group for group in groups if any(site.shared for site in group.members)]
  params = fold(shared, params, supports, genome)
  for group in groups:
    if group in shared:
      continue
    alleles = group.alleles(genome)
    occurring = None if fixed is None else Occurring.of_alleles(fixed[np.array(group.rows)])
    for site, part in group.of_members(group.own(supports)):
      new = Graft(site.local, group.space.ranks, occurring)
      grafts[new.key] = new
      if group.has_bias and (fixed is not None or equation.platform() == 'cpu'):
        if not set(new.used) <= set(WEIGHT_TENSORS):
          assert site.bias_path is not None
          old = site.kernel(params), get(params, site.bias_path)
          merged = merge_biases(*nn.meta.unbox(old), part, alleles, site.layout, new.ranks)
          params = replace(params, site.bias_path, merged)
        part = {n: value for n, value in part.items() if SUPPORTS[n].tensor in WEIGHT_TENSORS}
      leaves = {'alleles': alleles, **part}
      placed = {name: place(value, site) for name, value in leaves.items()}
      params = replace(params, (*site.kernel_path[:-1], new.key), placed)
  return params, grafts


def place(value: Any, site: Site) -> Any:
  """An array with a site's stack axes first, as it can lie beside the kernel.

  A lifted transform will take its axis off every leaf at the kernel's place, so a leaf has as many
  dimensions.
  """
  return lay_beside(value, site.layout.stack[: len(site.lifts)], len(site.kernel_shape))


class Call(NamedTuple):
  """A call of a linear module beside whose kernel something lies.

  Attributes:
    module: the module.
    params: its parameters, without the leaves.
    leaves: what lies beside its kernel.
    function: the call itself, as an interceptor gets it.
    args: arguments of its call.
    kwargs: further arguments of its call.
  """

  module: nn.Module
  params: Mapping[str, Any]
  leaves: Mapping[str, jax.Array]
  function: Callable[..., Any]
  args: tuple
  kwargs: Mapping[str, Any]

  def with_params(self, **changed: Any) -> Any:
    """What the module returns with some of its parameters changed.

    It runs where it is, and no copy of it: a subclass may have other collections and random
    streams, and other interceptors see one call.
    """
    assert self.module.scope is not None  # it is being called
    collections = self.module.scope._variables
    own = collections['params']
    collections['params'] = {**self.params, **changed}
    try:
      return self.function(*self.args, **self.kwargs)
    finally:
      collections['params'] = own


class Grafted(Protocol):
  """What lies beside a kernel under a key, and what a linear module does with it."""

  def run(self, call: Call) -> Any:
    """What the module returns."""
    ...


def intercept(grafts: Mapping[str, Grafted], next_function, args, kwargs, context) -> Any:
  """Interceptor of module calls: runs a grafted linear module with what lies beside its kernel."""
  module = context.module
  if context.method_name != '__call__' or not isinstance(module, LINEAR_MODULES):
    return next_function(*args, **kwargs)
  params = module.variables.get('params', {})
  key = next((name for name in params if name in grafts), None)
  if key is None:
    return next_function(*args, **kwargs)
  params = nn.meta.unbox(dict(params))
  leaves = params.pop(key)
  return grafts[key].run(Call(module, params, leaves, next_function, args, kwargs))


def _dense_product(
  module: Any, inputs: jax.Array, kernel: jax.Array, bias: jax.Array | None
) -> equation.Product:
  """What a module, an `nn.Dense`, makes of inputs and a kernel like these before it adds its bias.

  It computes in the type that all three have in common, with a bias wider than the rest in its.
  """
  promote = functools.partial(module.promote_dtype, dtype=module.dtype)
  inputs, kernel, _ = jax.eval_shape(promote, inputs, kernel, bias)
  return functools.partial(_product_in, inputs.dtype, kernel.dtype, module.precision)


def _product_in(
  input_type: Any, kernel_type: Any, precision: Any, inputs: jax.Array, kernel: jax.Array
) -> jax.Array:
  last_axis = ((inputs.ndim - 1,), (0,))
  inputs, kernel = inputs.astype(input_type), kernel.astype(kernel_type)
  return jax.lax.dot_general(inputs, kernel, (last_axis, ((), ())), precision=precision)


def _unplace(
  leaves: Mapping[str, jax.Array], kernel: jax.Array, graft: Graft
) -> tuple[dict[str, jax.Array], jax.Array]:
  """Supports and alleles of the kernel that a module sees, with its own stack axes first."""
  stack, inputs, outputs = graft.layout.sizes(kernel.shape)
  # A fixed subnet's storage has its own rank.
  shapes = support_shapes(inputs, outputs, ranks=(-1,), tied=False)
  supports = {
    name: value.reshape(stack + shapes[name]) for name, value in leaves.items() if name != 'alleles'
  }
  alleles = leaves['alleles'].reshape((*stack, 5))
  if not jnp.issubdtype(alleles.dtype, jnp.integer):  # of a model that casts all that it is given
    alleles = alleles.astype(jnp.int8)
  return supports, alleles
