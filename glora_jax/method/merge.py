"""Merging supports into kernels and biases, whatever their layout; folding a whole model.

Called outside of a compiled function, a merge is one program and not twenty.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from glora_jax.method import equation
from glora_jax.method.groups import Group
from glora_jax.method.layout import Layout
from glora_jax.tree import flatten, get, update


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
    for site, part in group.of_members(nn.meta.unbox(get(supports, group.path))):
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
