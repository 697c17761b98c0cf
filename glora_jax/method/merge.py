"""Merging supports into a model's kernels: up front in the params tree, or lazily by grafting and intercepting.

A `Group` is one set of supports: those of one linear module, or of several tied ones, whose kernels then stand side by side
along the output as one virtual layer.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.method import equation
from glora_jax.method.discover import Site
from glora_jax.method.groups import Group
from glora_jax.method.layout import LINEAR_MODULES, Layout
from glora_jax.tree import get, replace

_GRAFT = 'glora_'  # prefix of the key that lazy merging grafts beside a kernel


@dataclasses.dataclass(frozen=True)
class Form:
  """What an interceptor must know to merge a graft: static, and the same for all layers of that layout.

  Attributes:
    layout: of the kernel that the module sees.
    ranks: that allele codes stand for.
    union: of a fixed subnet, the alleles of each tensor that occur in the stack; None for any genome.
  """

  layout: Layout
  ranks: tuple[int, ...]
  union: tuple[tuple[int, ...], ...] | None = None

  @property
  def key(self) -> str:
    """Class-level `nn.jit` reuses traces between models of equal structure: this makes structures differ where meanings do."""
    return _GRAFT + hashlib.sha256(repr(self).encode()).hexdigest()[:16]


def merge_kernel(
  kernel: jax.Array,
  bias: jax.Array | None,
  supports: Mapping[str, Any],
  alleles: jax.Array,
  layout: Layout,
  ranks: tuple[int, ...],
) -> tuple[jax.Array, jax.Array | None]:
  """`reparam.effective` over a kernel of any layout; supports and alleles have the layout's stack axes first."""
  function = _over_stack(functools.partial(equation.effective, ranks=ranks), layout)
  matrices, vectors = function(
    layout.matrices(kernel), None if bias is None else layout.vectors(bias), supports, alleles
  )
  return layout.kernel(matrices, kernel.shape), None if bias is None else layout.bias(
    vectors, bias.shape
  )


def merge_bias(
  kernel: jax.Array,
  bias: jax.Array,
  supports: Mapping[str, Any],
  alleles: jax.Array,
  layout: Layout,
  ranks: tuple[int, ...],
) -> jax.Array:
  """The bias of `merge_kernel` alone."""
  function = _over_stack(functools.partial(equation.effective_bias, ranks=ranks), layout)
  return layout.bias(
    function(layout.matrices(kernel), layout.vectors(bias), supports, alleles), bias.shape
  )


def _over_stack(function, layout):
  for _ in layout.stack:
    function = jax.vmap(function)
  return function


def fold(groups: tuple[Group, ...], params: Any, supports: Any, genome: jax.Array) -> Any:
  """Params with the supports of all groups merged into kernels and biases."""
  for group in groups:
    alleles = group.alleles(genome)
    for site, part in group.of_members(nn.meta.unbox(get(supports, group.path))):
      module = get(params, site.path)
      bias = nn.meta.unbox(module['bias']) if site.bias_shape is not None else None
      merged = merge_kernel(
        nn.meta.unbox(module['kernel']), bias, part, alleles, site.layout, group.space.ranks
      )
      for name, value in zip(('kernel', 'bias'), merged, strict=True):
        if value is not None:
          params = replace(params, (*site.path, name), value)
  return params


def graft(
  groups: tuple[Group, ...],
  params: Any,
  supports: Any,
  genome: jax.Array,
  fixed: np.ndarray | None = None,
) -> tuple[Any, dict[str, Form]]:
  """Params with supports and alleles beside their kernels, stacked as these are, and what each graft's key stands for.

  They go into `params` itself, since a third-party `nn.scan` may hand on no other collection. `fixed` is the genome where it is
  known when tracing: its biases are merged here already, and C, D and E stay behind, since a BitFit step on CPU takes about 1.5 times as long
  where a scan over layers merges them.
  """
  forms = {}
  shared = tuple(group for group in groups if any(site.shared for site in group.members))
  params = fold(shared, params, supports, genome)
  for group in groups:
    if group in shared:
      continue
    alleles = group.alleles(genome)
    union = (
      None
      if fixed is None
      else tuple(tuple(sorted(set(column.tolist()))) for column in fixed[np.array(group.rows)].T)
    )
    for site, part in group.of_members(nn.meta.unbox(get(supports, group.path))):
      form = Form(site.local, group.space.ranks, union)
      forms[form.key] = form
      if fixed is not None and group.has_bias:
        if union[2:] != ((0,),) * 3:
          module = {
            name: nn.meta.unbox(get(params, (*site.path, name))) for name in ('kernel', 'bias')
          }
          merged = merge_bias(
            **module, supports=part, alleles=alleles, layout=site.layout, ranks=form.ranks
          )
          params = replace(params, (*site.path, 'bias'), merged)
        part = {name: value for name, value in part.items() if name[0] in 'AB'}
      leaves = {'alleles': alleles, **part}
      params = replace(
        params,
        (*site.path, form.key),
        {name: _place(value, site) for name, value in leaves.items()},
      )
  return params, forms


def _place(value, site: Site):
  """Moves the lifted stack axes of a support from the front to where the kernel has them."""
  lifted = len(site.lifts)
  # The lifted transform will take its axis off every leaf at the kernel's place, so a leaf must have as many dimensions.
  value = value.reshape(value.shape + (1,) * (site.local_ndim - (value.ndim - lifted)))
  for level in reversed(range(lifted)):
    value = jnp.moveaxis(value, level, level + site.lifts[level])
  return value


def intercept(forms: Mapping[str, Form], next_function, args, kwargs, context):
  """Interceptor of lazy merging: runs a grafted linear module with its merged kernel and bias."""
  module = context.module
  if context.method_name != '__call__' or not isinstance(module, LINEAR_MODULES):
    return next_function(*args, **kwargs)
  params = module.variables.get('params', {})
  key = next((name for name in params if name in forms), None)
  if key is None:
    return next_function(*args, **kwargs)
  form, params = forms[key], nn.meta.unbox(dict(params))
  leaves, kernel, bias = params.pop(key), params['kernel'], params.get('bias')
  stack = tuple(kernel.shape[d] for d in form.layout.stack)
  size = lambda dims: math.prod(kernel.shape[d] for d in dims)
  shapes = equation.support_shapes(
    size(form.layout.inputs), size(form.layout.outputs), form.ranks, tied=False
  )
  supports = {
    name: value.reshape(stack + shapes[name]) for name, value in leaves.items() if name != 'alleles'
  }
  alleles = leaves['alleles'].reshape((*stack, 5))
  run = lambda module, params: module.clone(parent=None).apply({'params': params}, *args, **kwargs)

  # A subclass may do more, and a product of its own (quantized, say) need not split into terms.
  plain = type(module) is nn.Dense and module.dot_general is None and module.dot_general_cls is None
  if form.union is not None and plain and max(form.union[0]) < 3:
    takes = [alleles_of != (0,) for alleles_of in form.union]
    product = run(module.clone(use_bias=False), {'kernel': kernel})
    inputs = args[0] if args else kwargs['inputs']
    return equation.thin_output(
      inputs, product, bias, supports, alleles, form.ranks, scales=takes[0], shifts=takes[1]
    )

  params['kernel'], bias = merge_kernel(kernel, bias, supports, alleles, form.layout, form.ranks)
  if bias is not None:
    params['bias'] = bias
  return run(module, params)
