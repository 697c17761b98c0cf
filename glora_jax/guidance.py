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

from glora_jax import reparam, space
from glora_jax.adapt import COLLECTION, Adapted
from glora_jax.merge import get
from glora_jax.scoring import in_blocks
from glora_jax.space import Spec


def make_guide(
    adapted: Adapted, preprocess: Callable[[jax.Array], jax.Array] = lambda images: images, *, fitness: str = 'accuracy', block: int = 256,
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
      logits = adapted.model.apply({'params': params, **rest}, x, **apply_kwargs).astype(jnp.float32)
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
      module, slopes = nn.meta.unbox(get(params, site.path)), nn.meta.unbox(get(gradient, site.path))
      has_bias = site.bias_shape is not None
      function = functools.partial(_layer_values, ranks=group.space.ranks, codes=codes)
      for _ in site.layout.stack:
        function = jax.vmap(function)
      vectors = lambda tree, site=site, has_bias=has_bias: site.layout.vectors(tree['bias']) if has_bias else None
      kernels = [site.layout.matrices(tree['kernel']) for tree in (module, slopes)]
      found = function(kernels[0], vectors(module), kernels[1], vectors(slopes), part)
      table = table.at[np.array(group.rows)].add(found.reshape(-1, 5, codes))
  return table


def _layer_values(kernel, bias, kernel_slope, bias_slope, supports, *, ranks, codes):
  """[5, codes] of one layer."""
  supports = {name: jnp.asarray(value, jnp.float32) for name, value in supports.items()}
  kernel, kernel_slope = kernel.astype(jnp.float32), kernel_slope.astype(jnp.float32)
  weight = lambda tensor, slope: [jnp.sum(slope * reparam.weight_form(supports, tensor, jnp.int32(code), ranks)) for code in range(codes)]
  rows = [weight('A', kernel_slope * kernel), weight('B', kernel_slope)]
  if bias is None or 'E' not in supports:
    rows += [[jnp.float32(0)] * codes] * 3
  else:
    bias, bias_slope = bias.astype(jnp.float32), bias_slope.astype(jnp.float32)
    by_inputs = kernel @ bias_slope
    rows.append([jnp.sum(by_inputs * reparam.prompt_form(supports, jnp.int32(code), ranks)) for code in range(codes)])
    for tensor, slope in (('D', bias_slope * bias), ('E', bias_slope)):
      rows.append([jnp.sum(slope * reparam.bias_form(supports, tensor, jnp.int32(code))) for code in range(codes)])
  return jnp.stack([jnp.stack(row) for row in rows])


def propose_guided(
    rng: np.random.Generator, spec: Spec, parents: np.ndarray, values: np.ndarray, number: int, budget: int | None,
) -> np.ndarray:
  """Children with several changes each, drawn in proportion to what the estimates promise, int8 [number, rows, 5].

  Args:
    rng: decides.
    spec: of the genomes.
    parents: int8 [parent, rows, 5].
    values: of each parent, [parent, rows, 5, codes], see `make_guide`.
    number: of children.
    budget: most trained parameters; a child above it gives up the alleles that are estimated to be worth least for each parameter.
  """
  offered = np.zeros(spec.cost_table.shape, bool)
  np.put_along_axis(offered, spec.offered_table.astype(np.int64), True, axis=-1)
  children = []
  for _ in range(number):
    which = rng.integers(len(parents))
    child, table = parents[which].copy(), values[which]
    current = np.take_along_axis(table, child[..., None].astype(np.int64), -1)
    change = np.where(offered, table - current, np.inf)
    np.put_along_axis(change, child[..., None].astype(np.int64), np.inf, -1)
    temperature = rng.choice([0.03, 0.1, 0.3]) * np.abs(change[np.isfinite(change)]).mean()
    noisy = change / max(temperature, 1e-12) - rng.gumbel(size=change.shape)  # Gumbel noise: draws by exp(-change / temperature)
    best_code, best = noisy.argmin(-1), noisy.min(-1)
    several = int(2 ** rng.integers(0, 6))
    for gene in np.argsort(best, axis=None)[:several]:
      row, tensor = np.unravel_index(gene, best.shape)
      if np.isfinite(best[row, tensor]):
        child[row, tensor] = best_code[row, tensor]
    children.append(give_up(spec, child, table, budget, offered))
  return np.array(children, np.int8).reshape(-1, len(spec), 5)


def give_up(spec: Spec, genome: np.ndarray, values: np.ndarray, budget: int | None, offered: np.ndarray) -> np.ndarray:
  """The genome within the budget: again and again the change to a cheaper allele that costs least loss per parameter saved."""
  if budget is None:
    return genome
  genome, costs = genome.copy(), spec.cost_table
  while space.count_params(spec, genome) > budget:
    index = genome[..., None].astype(np.int64)
    saved = np.take_along_axis(costs, index, -1) - costs
    loss = values - np.take_along_axis(values, index, -1)
    ratio = np.where(offered & (saved > 0), loss / np.maximum(saved, 1), np.inf)
    row, tensor, code = np.unravel_index(ratio.argmin(), ratio.shape)
    genome[row, tensor] = code
  return genome
