"""What units are worth by other methods, for the same allocator.

Layer scores are shared out among a layer's rank-one parts like seats (the n-th part counts 1/n), so
that ranks come out in proportion to scores, as these methods give them. They know LoRA alone.
"""

import collections
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.method.adapted import Adapted
from glora_jax.search.allocation import Values

MAX_RANK = 8


class Matrices(NamedTuple):
  """Kernel and gradient of one layer, float [in, out]."""

  kernel: np.ndarray
  gradient: np.ndarray


def gora(layer: Matrices) -> float:
  """GoRA (arXiv 2502.12171): the mean of |W * G|."""
  return float(np.abs(layer.kernel * layer.gradient).mean())


def surgical(layer: Matrices) -> float:
  """Surgical Fine-Tuning (arXiv 2210.11466): the gradient's norm over the weights'."""
  return float(np.linalg.norm(layer.gradient) / np.linalg.norm(layer.kernel))


LAYER_SCORES: dict[str, Callable[[Matrices], float]] = {'gora': gora, 'surgical': surgical}


def layer_values(
  measure: str, adapted: Adapted, params: Any, loss: Callable[[Any, Any], jax.Array], batches: Any
) -> Values:
  """Values of all units by the score of their layers.

  Args:
    measure: name, of `LAYER_SCORES`.
    adapted: the adapted backbone.
    params: its parameters, with a warm head.
    loss: mean loss of `(params, batch)`.
    batches: the training images.
  """
  gradient_fn = jax.jit(jax.grad(loss))
  total = jax.tree.map(jnp.zeros_like, params)
  for batch in batches:
    total = jax.tree.map(jnp.add, total, gradient_fn(params, batch))
  scores = np.zeros(len(adapted.spec))
  for row, layer in _matrices(adapted, params, total):
    scores[row] = LAYER_SCORES[measure](layer)
  return _of_lora(adapted, scores[:, None] / np.arange(1, MAX_RANK + 1))


def eva_values(adapted: Adapted, params: Any, inputs: Any) -> Values:
  """EVA (arXiv 2410.07170): the share of its inputs' variance that each direction explains.

  Args:
    adapted: the adapted backbone.
    params: its parameters.
    inputs: inputs of the model, batch by batch.
  """
  seen: dict[tuple[str, ...], list[np.ndarray]] = collections.defaultdict(list)

  def watch(next_function, args, kwargs, context):
    if isinstance(context.module, nn.Dense) and context.method_name == '__call__':
      rows = args[0].reshape(-1, args[0].shape[-1])
      # Blocks are scanned over, so that only a callback sees their inputs one by one, and in order.
      jax.debug.callback(seen[context.module.path].append, rows.T @ rows, ordered=True)
    return next_function(*args, **kwargs)

  with nn.intercept_methods(watch):
    for batch in inputs:
      adapted.model.clone(remat=None).apply({'params': params}, batch)
  jax.effects_barrier()
  shares = np.zeros((len(adapted.spec), MAX_RANK))
  for group in adapted.groups:
    found = np.asarray(seen[group.path], np.float64).reshape(
      -1, len(group.rows), group.in_features, group.in_features
    )
    variances = np.linalg.eigvalsh(found.sum(0))[:, ::-1]
    shares[list(group.rows)] = (variances / variances.sum(1, keepdims=True))[:, :MAX_RANK]
  return _of_lora(adapted, shares)


def _of_lora(adapted: Adapted, per_parameter: np.ndarray) -> Values:
  """Values of the parts of B alone, from those per parameter, [layer, part]."""
  costs = np.array([layer.in_features + layer.out_features for layer in adapted.spec])
  none = np.zeros(len(costs))
  parts = per_parameter * costs[:, None]
  return Values(none, np.zeros_like(parts), parts, none, none)


def _matrices(adapted: Adapted, params: Any, gradient: Any):
  """(row, its matrices) of every layer; the backbone has no ties."""
  for group in adapted.groups:
    (site,) = group.members
    kernels, gradients = (
      np.asarray(site.layout.matrices(site.kernel(tree))).reshape(
        -1, site.in_features, site.out_features
      )
      for tree in (params, gradient)
    )
    for row, kernel, slope in zip(group.rows, kernels, gradients, strict=True):
      yield row, Matrices(kernel, slope)
