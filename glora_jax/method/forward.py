"""What a loss calls: an adapted model with the structure and the adapter of one training step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.checks import shown
from glora_jax.method.adapted import Adapted
from glora_jax.method.adapter import COLLECTION
from glora_jax.method.groups import Group
from glora_jax.method.space import FLAT_FORMS, WEIGHT_TENSORS
from glora_jax.method.validation import check_loss, is_data
from glora_jax.tree import replace

# `loss(forward, batch, key)` returns the mean over a batch, or that and a dictionary of metrics.
Loss = Callable[[Any, Any, jax.Array], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Forward:
  """Runs an adapted model within a loss: `forward(*inputs, genome=None, **kwargs)`.

  What a Linen model needs besides its inputs is passed as to `model.apply`:
  `forward(x, train=True, rngs={'dropout': key})`. Its other collections, batch statistics for
  instance, are those of the variables and stay so; `mutable=['batch_stats']` returns updated ones.

  Attributes:
    adapted: the adapted model.
    variables: its variables.
    genome: if the structure is free, the one that the step drew, int [layer, 5]. Or several, [path,
      layer, 5]: the inputs are cut into as many equal parts (*paths*) along their first axis, each
      of which runs with its own structure and its own split of the `rngs`.
    dropping: (key, probability) of `dropping_components`; None drops none.
    call: runs the model with this genome and adapter in another way, folded for instance; None for
      `Adapted.apply`.

  Example:
    >>> import flax.linen as nn
    >>> import glora_jax
    >>> x = jnp.ones((2, 3))
    >>> adapted = glora_jax.adapt(nn.Dense(2), x, structure='lora:1')
    >>> params = {'kernel': jnp.ones((3, 2)), 'bias': jnp.zeros(2)}
    >>> forward = Forward(adapted, adapted.init(jax.random.key(0), params))
    >>> forward(x).tolist()
    [[3.0, 3.0], [3.0, 3.0]]
  """

  adapted: Adapted
  variables: Mapping[str, Any]
  genome: Any = None
  dropping: tuple[jax.Array, float] | None = None
  call: Callable[..., Any] | None = None

  def __call__(self, *inputs: Any, genome: Any = None, **kwargs: Any) -> Any:
    """What the model returns.

    Args:
      *inputs: its inputs.
      genome: another genome than the step's, int [layer, 5] or [path, layer, 5]; for a free
        structure only.
      **kwargs: further arguments of the model.

    Raises:
      ValueError: the inputs do not divide into equal paths, or as in `Adapted.apply`.
    """
    if genome is None:
      if self.call is not None:
        return self.call(*inputs, **kwargs)
      genome = self.genome if self.adapted.genome is None else self.adapted.genome
    genome = jnp.asarray(genome)
    if genome.ndim == 2:
      return self._run_one(inputs, kwargs, genome, self.dropping)
    paths, number = len(genome), len(jax.tree.leaves(inputs)[0])
    if not paths or number % paths:
      raise ValueError(
        f'A batch of {number} cannot be cut into {paths} equal paths; change batch_size or '
        'sampling.paths.'
      )
    cut = jax.tree.map(lambda rows: rows.reshape(paths, -1, *rows.shape[1:]), inputs)
    split = functools.partial(jax.random.split, num=paths)
    rngs = jax.tree.map(split, kwargs.pop('rngs', {}))
    dropping = self.dropping and (split(self.dropping[0]), self.dropping[1])

    def of_path(inputs, rngs, genome, drop_key):
      options = {**kwargs, 'rngs': rngs} if rngs else kwargs
      return self._run_one(inputs, options, genome, dropping and (drop_key, dropping[1]))

    # Without rngs or dropping these are {} or None, trees without leaves, which vmap passes on.
    outputs = jax.vmap(of_path)(cut, rngs, genome, dropping and dropping[0])
    return jax.tree.map(lambda part: part.reshape(number, *part.shape[2:]), outputs)

  def _run_one(self, inputs: Any, kwargs: Any, genome: jax.Array, dropping: Any) -> Any:
    """The outputs of the model with one structure."""
    variables, adapted = self.variables, self.adapted
    if dropping:
      adapter = drop_components(
        dropping[0], self.adapter, adapted.places.groups, genome, dropping[1]
      )
      variables = {**variables, COLLECTION: adapter}
    chosen = {'genome': genome} if adapted.genome is None else {}
    return adapted.apply(variables, *inputs, **chosen, **kwargs)

  @property
  def adapter(self) -> Any:
    """The trained tensors of all layers, the collection 'glora'."""
    return self.variables[COLLECTION]

  def with_adapter(self, adapter: Any) -> Forward:
    """This model with another adapter, a noisy one for instance."""
    variables = {**self.variables, COLLECTION: adapter}
    return dataclasses.replace(self, variables=variables, call=None)

  def dropping_components(self, key: jax.Array, probability: float) -> Forward:
    """This model without some rank-one parts of LoRAs; see `drop_components`."""
    return dataclasses.replace(self, dropping=(key, probability), call=None)


def loss_and_metrics(result: Any) -> tuple[jax.Array, Mapping[str, Any]]:
  """Splits what a loss returned into the loss and its metrics.

  Raises:
    TypeError: the metrics are not a dictionary.
    ValueError: the loss or a metric is not one number.
  """
  loss, metrics = result if isinstance(result, tuple) and len(result) == 2 else (result, {})
  if not isinstance(metrics, Mapping):
    raise TypeError(
      f'The loss function returned {shown(result)}; it must return the loss, or the pair (loss, '
      'metrics), metrics a dictionary.'
    )
  for name, value in metrics.items():
    is_number = isinstance(value, jax.Array | np.ndarray | np.generic | float | int)
    if not is_number or jnp.shape(value):
      given = f'{jnp.result_type(value)} {list(jnp.shape(value))}' if is_number else shown(value)
      raise ValueError(f'The metric {shown(name)} is {given}; it must be one number.')
  check_loss(loss)
  return loss, metrics


def check_data(loss: Loss, data: Any) -> None:
  """Raises ValueError if arrays, or a list of batches, are not what a loss with a `check` needs.

  That of `classification()` checks the labels. It learns the number of classes when the model is
  traced, so a label that is too large is found only after that, when it has made the loss NaN.
  """
  if not hasattr(loss, 'check'):
    return
  if isinstance(data, list):
    for batch in data:
      loss.check(batch)
  elif is_data(data):
    loss.check(data)


def drop_components(
  key: jax.Array, adapter: Any, groups: Sequence[Group], genome: Any, probability: float
) -> Any:
  """Drops rank-one parts of LoRAs at random and scales up the others (MLAE).

  Each rank-one part of a LoRA of A or B, a row of the up factor, becomes zero with the probability,
  and is otherwise divided by one minus it. So the mean over keys is the undropped LoRA. Other forms
  are unchanged, even a vector that shares the storage of an up factor.

  Args:
    key: random key. What a layer drops depends only on the key and the layer's row.
    adapter: the `glora` collection.
    groups: the adapted layers.
    genome: int [layer, 5]; may be traced.
    probability: at least 0 and below 1.

  Returns:
    The adapter in the same shapes and dtypes.

  Example:
    >>> import flax.linen as nn
    >>> import glora_jax
    >>> adapted = glora_jax.adapt(nn.Dense(2), jnp.zeros((1, 3)))
    >>> adapter = {'A_up': jnp.ones((4, 2)), 'B_up': jnp.ones((4, 2))}
    >>> genome = jnp.array([[2, 3, 0, 0, 0]])  # a vector for A, a LoRA for B
    >>> dropped = drop_components(jax.random.key(2), adapter, adapted.places.groups, genome, 0.5)
    >>> dropped['A_up'][:, 0].tolist(), dropped['B_up'][:, 0].tolist()
    ([1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 2.0, 0.0])
  """
  for group in groups:
    forms = group.forms(genome)
    row_keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.array(group.rows))
    for column, tensor in enumerate(WEIGHT_TENSORS):
      up = group.arrays(adapter).get(f'{tensor}_up')
      if up is None:
        continue
      draw = functools.partial(_factors, column=column, rank=up.shape[-2], probability=probability)
      factors = jax.vmap(draw)(row_keys).reshape(up.shape[:-1])
      is_lora = forms[..., column] >= len(FLAT_FORMS[tensor])
      factors = jnp.where(is_lora[..., None], factors, 1).astype(up.dtype)
      adapter = replace(adapter, (*group.path, f'{tensor}_up'), up * factors[..., None])
  return adapter


def _factors(row_key: jax.Array, column: int, rank: int, probability: float) -> jax.Array:
  """Factors of the rank-one parts of a tensor of a layer, float [rank]."""
  kept = jax.random.bernoulli(jax.random.fold_in(row_key, column), 1 - probability, (rank,))
  return kept.astype(float) / (1 - probability)
