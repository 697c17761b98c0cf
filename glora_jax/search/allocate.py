"""A structure from one gradient: the forms to train in each layer, without a supernet.

`allocate` is the procedure. `sketch` and `taps` compute the gradient, `unit_scores` scores all
units by it, `priors` pools these scores with those of other losses (`transfer` keeps some in a
file), `choice` chooses by score, and `allocation` has the result.
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from threadpoolctl import threadpool_limits

from glora_jax.checks import validate
from glora_jax.mesh import require_mesh, settle
from glora_jax.method.adapted import Adapted, check_variables
from glora_jax.method.adapter import COLLECTION
from glora_jax.method.draws import check_budget
from glora_jax.method.groups import Group
from glora_jax.method.sample import check_key
from glora_jax.method.validation import check_list_of_batches, check_only_arrays, is_data
from glora_jax.search.allocation import Allocation
from glora_jax.search.choice import choose, require_something, trace_curve
from glora_jax.search.errors import NoGradientError
from glora_jax.search.priors import CLEAR, NOISE, check_priors, pool, prior_weight
from glora_jax.search.sketch import Loss, Mean, Pass
from glora_jax.search.transfer import Transfer
from glora_jax.search.unit_scores import (
  LayerGradients,
  UnitScores,
  align_factors,
  mean_scores,
  score_units,
  xavier_norm,
)
from glora_jax.tree import KeyPath, on_host, update

log = logging.getLogger(__name__)

Priors = Allocation | Transfer | Sequence[Allocation | Transfer]
Prior = Priors | Callable[[], Priors | None]


def allocate(
  adapted: Adapted,
  variables: Mapping[str, Any],
  loss: Loss,
  batches: Iterable[Any],
  *,
  budget: int | None = None,
  key: jax.Array,
  max_rank: int = 8,
  mesh: jax.sharding.Mesh | None = None,
  rho: float = 2.0,
  floor: bool = True,
  prior: Prior | None = None,
  progress: bool = True,
) -> Allocation:
  """Chooses from one gradient which layers to train, in which form and with which rank.

  One pass over the batches computes the mean gradient of the loss at the base model. It gives every
  unit (a vector, or one rank of a LoRA) a score (`search.unit_scores`). Units with the highest
  score per parameter are chosen until the budget is full (`search.choice`). This trains no supernet
  and needs no validation images.

  Of the forms in the search space (`method.equation`) it considers none, vector and LoRA for A,
  none and LoRA for B, and none and vector for C and E. A layer gets at most one of C and E, and C
  only if it has fewer inputs than outputs. In a space with only LoRAs of B it gives every layer its
  rank.

  Args:
    adapted: the adapted model.
    variables: its variables, from `Adapted.init`, with a trained head (`linear_probe`): under a
      random head the scores are unreliable. Gradients are computed at the base model with this
      head.
    loss: `loss(forward, batch, key)`, see `fit`; metrics are not used.
    batches: a list or another iterable of batches, trees of arrays [batch, ...], as in `fit`; a
      data set must be cut into batches first. Each is read once. Each shape is compiled separately,
      so use one. Eight or more show how much of the gradient is noise.
    budget: maximum number of trained parameters, without heads; None for the knee of the curve of
      score by budget.
    key: random key.
    max_rank: largest rank that is considered in a layer.
    mesh: devices that every batch is split over along its first axis; None for one device.
    rho: largest rank of a layer, as a multiple of the rank that the budget buys in every layer;
      rounded up.
    floor: whether all layers get the vectors of A and E first, if the budget is at least 1.5 times
      their cost.
    prior: an allocation on the same model with another loss and more or clearer examples, of any
      budget, transferred scores (`search.transfer`), or a list of several with equal weight; its
      scores are pooled with those of this loss (`search.priors`). Which layers matter depends
      mostly on the backbone, so a task with a noisy gradient gains. Or a function that returns one
      of these or None, called only if this loss's gradient is too noisy.
    progress: whether to show a bar.

  Returns:
    The allocation: `genome`, `variables` to train it from, and the reasons.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: an argument is out of range, the variables or a prior belong to another model, the
      space has no form that is considered, or the budget is too small for any unit. Also if there
      are no batches (or one, with a prior), if a loss or gradient is not finite, or if no layer has
      a gradient.

  Example:
    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> import glora_jax
    >>> class Mlp(nn.Module):
    ...   @nn.compact
    ...   def __call__(self, x):
    ...     return nn.Dense(2, name='head')(nn.relu(nn.Dense(8, name='hidden')(x)))
    >>> x = jax.random.normal(jax.random.key(0), (64, 4))
    >>> batches = [(x[i : i + 8], (x[i : i + 8, 0] > 0).astype(int)) for i in range(0, 64, 8)]
    >>> space = glora_jax.SearchSpace((1, 2), A=('none', 'vector'), C='none', D='none')
    >>> adapted = glora_jax.adapt(Mlp(), x, space=space)
    >>> variables = adapted.init(jax.random.key(1), Mlp().init(jax.random.key(2), x)['params'])
    >>> loss = glora_jax.classification()
    >>> allocation = glora_jax.allocate(
    ...   adapted, variables, loss, batches, budget=12, key=jax.random.key(3), progress=False
    ... )
    >>> allocation.count_params() <= 12
    True
    >>> fixed = adapted.fix(allocation.genome)  # train it from allocation.variables
  """
  max_rank = validate(max_rank, int, 'max_rank', least=1)
  rho = validate(rho, float, 'rho', above=0)
  validate(floor, bool, 'floor')
  if mesh is not None:
    require_mesh(mesh)
  check_key(key)
  _check_model(adapted, variables, loss)
  _check_batches(batches)
  budget = check_budget(budget)
  require_something(adapted.spec, budget)
  ranks = min(max_rank, max(max(layer.space.ranks) for layer in adapted.spec))
  priors = () if callable(prior) else check_priors(adapted.spec, prior, ranks)

  base = {**variables, 'params': adapted.full_precision(variables['params'])}
  one_pass = Pass(adapted, base, loss, ranks, key, mesh)
  mean, signal = one_pass.run(batches, progress)
  # On two busy cores 48 decompositions of a ViT-B take 3.6 s with BLAS' threads, 0.25 s without.
  with threadpool_limits(1, 'blas'):
    scores, adapter = _read_gradient(one_pass, mean, variables[COLLECTION])
  if not any(field.any() for field in scores):
    raise NoGradientError(
      'No adapted layer has a gradient: either the head is all zeros (train it first, as a linear '
      'probe), or it is certain of every label (train it for fewer epochs).'
    )

  if callable(prior) and signal is not None and signal < CLEAR:
    priors = check_priors(adapted.spec, prior(), ranks)
  borrowed = _weight_of(priors, signal)
  if priors:
    scores = pool(scores, mean_scores([each.scores for each in priors]), borrowed)

  curve = trace_curve(adapted.spec, scores)
  proposed = budget is None
  if budget is None:
    budget = int(curve.params[curve.knee])
    log.info('No budget given: using the knee of the curve, %s parameters.', f'{budget:,}')
  genome = choose(adapted.spec, scores, budget, rho=rho, floor=floor)
  start = {**variables, COLLECTION: settle(mesh, adapter)}
  return Allocation(genome, start, adapted.spec, scores, curve, budget, proposed, signal, borrowed)


def _read_gradient(one_pass: Pass, mean: Mean, adapter: Any) -> tuple[UnitScores, Any]:
  """(scores of all units, the adapter with down factors along the gradient's directions)."""
  by_row: dict[int, UnitScores] = {}
  aligned: dict[KeyPath, jax.Array] = {}
  # NumPy's decompositions release the interpreter lock, so threads share the layers of a group.
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
    for group, read in one_pass.readers(mean):
      layers = list(threads.map(read, range(len(group.rows))))
      norm = xavier_norm(group.in_features, max(group.space.ranks))
      for row, layer in zip(group.rows, layers, strict=True):
        by_row[row] = score_units(layer, one_pass.max_rank, norm)
      aligned |= _align(group, adapter, layers, norm)
  nothing = UnitScores(*map(np.zeros_like, next(iter(by_row.values()))))  # without a choice
  ordered = [by_row.get(row, nothing) for row in range(len(one_pass.adapted.spec))]
  scores = UnitScores(*(np.stack(field) for field in zip(*ordered, strict=True)))
  return scores, update(adapter, aligned)


def _align(
  group: Group, adapter: Any, gradients: Sequence[LayerGradients], norm: float
) -> dict[KeyPath, jax.Array]:
  """A group's arrays with the down factors along the gradients' singular vectors."""
  arrays, stack_ndim = group.arrays(adapter), len(group.stack_shape)
  by_layer = {
    name: on_host(array).reshape(-1, *array.shape[stack_ndim:]) for name, array in arrays.items()
  }
  aligned = []
  for index, layer in enumerate(gradients):
    directions = {'B_down': layer.kernel.vectors}
    if layer.scaled_kernel is not None:
      directions['A_down'] = layer.scaled_kernel.vectors
    layer_arrays = {name: array[index] for name, array in by_layer.items()}
    aligned.append(align_factors(layer_arrays, directions, norm))
  stacked = {name: np.stack([layer[name] for layer in aligned]) for name in arrays}
  return {
    (*group.path, name): jnp.asarray(stacked[name].reshape(array.shape), array.dtype)
    for name, array in arrays.items()
  }


def _weight_of(priors: Sequence[Allocation | Transfer], signal: float | None) -> float:
  """Weight of the priors, which is logged; warns if a noisy gradient has none."""
  if not priors:
    if signal is not None and signal < NOISE:
      log.warning(
        'Only %.3f of the squared gradient is signal, so the scores are unreliable: train the head '
        'for fewer epochs, before it fits the examples (in a run allocation.head_epochs), give '
        'more batches (a smaller training.batch_size), or pass a prior (allocation.prior).',
        max(signal, 0.0),
      )
    return 0.0
  if signal is None:
    raise ValueError(
      'One batch does not show how much of the gradient is noise, and so how much weight the prior '
      'gets; pass several batches.'
    )
  weight = prior_weight(signal, float(np.mean([prior.signal or 0.0 for prior in priors])))
  log.info(
    '%.3f of the squared gradient is signal, so the weight of the prior is %.0f%%.',
    max(signal, 0.0),
    100 * weight,
  )
  return weight


def _check_batches(batches: Any) -> None:
  """Checks that these are batches, and not a data set that `fit` would cut into batches."""
  if is_data(batches) or hasattr(batches, 'batches'):
    raise ValueError(
      f'batches is a data set ({type(batches).__name__}), but allocate needs it cut into batches: '
      'pass a list, such as [(x[i : i + 32], y[i : i + 32]) for i in range(0, len(x), 32)].'
    )
  validate(batches, Iterable, 'batches')
  check_list_of_batches(batches)


def _check_model(adapted: Any, variables: Any, loss: Any) -> None:
  """Checks that these are an adapted model with a free structure, its variables, and a function."""
  validate(adapted, Adapted, 'adapted')
  if adapted.genome is not None:
    raise ValueError(
      'allocate chooses a structure, but this model has a fixed one; pass adapted.fix(None), with '
      'variables from its init.'
    )
  check_variables(adapted, variables)
  check_only_arrays('variables', variables)
  validate(loss, Callable, 'loss')
