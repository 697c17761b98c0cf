"""What one backward pass says about every allele at once, and how a search makes use of it.

The chosen form of a tensor enters the merged weights linearly: W' = W + W * A + B and b' = b + b * D + E + C @ W. So with the gradient of
the loss by W' and b', the loss of every single change of allele, in every layer, is known to first order by an inner product. The
estimates propose; what is proposed is scored exactly.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from glora_jax.method import equation
from glora_jax.method.adapted import COLLECTION, Adapted
from glora_jax.search.scoring import in_blocks
from glora_jax.tree import get


def make_guide(
  adapted: Adapted,
  preprocess: Callable[[jax.Array], jax.Array] = lambda images: images,
  *,
  fitness: str = 'accuracy',
  block: int = 256,
  **apply_kwargs: Any,
) -> Callable[[Any, Any, jax.Array, jax.Array], jax.Array]:
  """A compiled `(variables, genome, images, labels) -> values`, float32 [rows, 5, codes].

  The differences of a gene's values are first-order estimates of the change of a sum over the images when it alone takes another
  allele: of the cross-entropy for fitness 'loss'; for 'accuracy' of the expected error, 1 - p(label), which unlike the error itself has a
  gradient. Codes that do not exist have the value of the last one. It costs one forward and one backward pass of the folded model.

  Args:
    adapted: what `glora_jax.adapt` returned.
    preprocess: images to inputs of the model.
    fitness: of the search, 'accuracy' or 'loss'.
    block: images evaluated at a time.
    **apply_kwargs: handed on to the model.
  """

  @jax.jit
  def values(variables, genome, images, labels):
    supports = variables[COLLECTION]
    rest = {name: value for name, value in variables.items() if name not in ('params', COLLECTION)}
    folded = adapted.fold(variables, genome)
    batches = in_blocks(preprocess(images), labels, min(block, len(labels)))

    def loss(params, x, y, counts):
      logits = adapted.model.apply({'params': params, **rest}, x, **apply_kwargs).astype(
        jnp.float32
      )
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
      return jnp.sum(counts * (losses if fitness == 'loss' else 1 - jnp.exp(-losses)))

    def add(total, batch):
      return jax.tree.map(jnp.add, total, jax.grad(loss)(folded, *batch)), None

    gradient, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, folded), batches)
    return allele_values(adapted, variables['params'], supports, gradient)

  return values


def allele_values(adapted: Adapted, params: Any, supports: Any, gradient: Any) -> jax.Array:
  """Inner products of every form with the gradient by what it is added to, float32 [rows, 5, codes].

  Args:
    adapted: whose groups are gone through.
    params, supports: of the supernet.
    gradient: of a loss by the merged params.
  """
  codes = adapted.spec.cost_table.shape[-1]
  table = jnp.zeros((len(adapted.spec), 5, codes), jnp.float32)
  for group in adapted.groups:
    for site, part in group.of_members(nn.meta.unbox(get(supports, group.path))):
      module, slopes = (
        nn.meta.unbox(get(params, site.path)),
        nn.meta.unbox(get(gradient, site.path)),
      )
      has_bias = site.bias_shape is not None
      function = functools.partial(_layer_values, ranks=group.space.ranks, codes=codes)
      for _ in site.layout.stack:
        function = jax.vmap(function)
      vectors = lambda tree, site=site, has_bias=has_bias: (
        site.layout.vectors(tree['bias']) if has_bias else None
      )
      kernels = [site.layout.matrices(tree['kernel']) for tree in (module, slopes)]
      found = function(kernels[0], vectors(module), kernels[1], vectors(slopes), part)
      table = table.at[np.array(group.rows)].add(found.reshape(-1, 5, codes))
  return table


def _layer_values(kernel, bias, kernel_slope, bias_slope, supports, *, ranks, codes):
  """[5, codes] of one layer."""
  supports = {name: jnp.asarray(value, jnp.float32) for name, value in supports.items()}
  kernel, kernel_slope = kernel.astype(jnp.float32), kernel_slope.astype(jnp.float32)
  weight = lambda tensor, slope: [
    jnp.sum(slope * equation.weight_form(supports, tensor, jnp.int32(code), ranks))
    for code in range(codes)
  ]
  rows = [weight('A', kernel_slope * kernel), weight('B', kernel_slope)]
  if bias is None or 'E' not in supports:
    rows += [[jnp.float32(0)] * codes] * 3
  else:
    bias, bias_slope = bias.astype(jnp.float32), bias_slope.astype(jnp.float32)
    by_inputs = kernel @ bias_slope
    rows.append(
      [
        jnp.sum(by_inputs * equation.prompt_form(supports, jnp.int32(code), ranks))
        for code in range(codes)
      ]
    )
    for tensor, slope in (('D', bias_slope * bias), ('E', bias_slope)):
      rows.append(
        [
          jnp.sum(slope * equation.flat_form(supports, tensor, jnp.int32(code)))
          for code in range(codes)
        ]
      )
  return jnp.stack([jnp.stack(row) for row in rows])
