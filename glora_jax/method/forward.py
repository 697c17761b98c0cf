"""The `forward` of a loss: an adapted model with the structure and adapter of a training step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.checks import shown
from glora_jax.method.adapted import Adapted, Call, check_variables, genome_for, run
from glora_jax.method.adapter import COLLECTION
from glora_jax.method.dropout import Dropout, drop_components
from glora_jax.method.validation import check_loss, is_data

# `loss(forward, batch, key)` returns the mean over a batch, or that and a dictionary of metrics.
Loss = Callable[[Any, Any, jax.Array], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Forward:
  """Runs an adapted model within a loss: `forward(*inputs, genome=None, **kwargs)`.

  A Linen model's other arguments are passed as to `model.apply`, for instance
  `forward(x, train=True, rngs={'dropout': key})`. Its other collections, such as batch statistics,
  come from the variables, which do not change; `mutable=['batch_stats']` returns updated ones.

  Attributes:
    adapted: the adapted model.
    variables: its variables.
    genome: if the structure is free, the one that the step drew, int [layer, 5]. Or several, [path,
      layer, 5]: the inputs are cut into as many equal parts (*paths*) along their first axis, and
      each part runs with its own structure and its own split of the `rngs`.
    of_components: the argument of `dropping_components`; None drops none.
    of_inputs: the argument of `dropping_inputs`; None drops none.
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
  of_components: Dropout | None = None
  of_inputs: Dropout | None = None
  call: Callable[..., Any] | None = None

  def __call__(self, *inputs: Any, genome: Any = None, **kwargs: Any) -> Any:
    """Runs the model, and returns its outputs.

    Args:
      *inputs: its inputs.
      genome: another genome than the step's, int [layer, 5] or [path, layer, 5]; for a free
        structure only.
      **kwargs: further arguments of the model.

    Raises:
      ValueError: the inputs do not divide into equal paths, or as in `Adapted.apply`: a fixed
        structure has a genome already, for instance.
    """
    if genome is None and self.call is not None:
      return self.call(*inputs, **kwargs)
    genome = self.genome if genome is None else genome
    if genome is None or self.adapted.genome is not None:
      genome = genome_for(self.adapted, genome, 'forward')
    genome, dropouts = jnp.asarray(genome), (self.of_components, self.of_inputs)
    if genome.ndim == 2:
      return self._run_one(inputs, kwargs, genome, *dropouts)
    paths, number = len(genome), len(jax.tree.leaves(inputs)[0])
    if not paths or number % paths:
      raise ValueError(
        f'A batch of {number} cannot be cut into {paths} equal paths; change the batch size or '
        'the number of paths.'
      )
    cut = jax.tree.map(lambda rows: rows.reshape(paths, -1, *rows.shape[1:]), inputs)
    split = functools.partial(jax.random.split, num=paths)
    rngs = jax.tree.map(split, kwargs.pop('rngs', {}))

    def of_path(inputs, rngs, genome, dropouts):
      options = {**kwargs, 'rngs': rngs} if rngs else kwargs
      return self._run_one(inputs, options, genome, *dropouts)

    # Without rngs or dropout these are {} or None, trees without leaves, which vmap passes on.
    outputs = jax.vmap(of_path)(cut, rngs, genome, jax.tree.map(split, dropouts))
    return jax.tree.map(lambda part: part.reshape(number, *part.shape[2:]), outputs)

  def _run_one(
    self,
    inputs: Any,
    kwargs: Any,
    genome: jax.Array,
    of_components: Dropout | None,
    of_inputs: Dropout | None,
  ) -> Any:
    """The outputs of the model with one structure."""
    variables, adapted = self.variables, self.adapted
    chosen = {'genome': genome} if adapted.genome is None else {}
    if of_components:
      adapter = drop_components(of_components, self.adapter, adapted.places.groups, genome)
      variables = {**variables, COLLECTION: adapter}
    if of_inputs:
      check_variables(adapted, variables, chosen.get('genome'))
      call = Call(inputs, kwargs)
      return run(adapted, call, variables, genome, adapted.genome, dropout=of_inputs)
    return adapted.apply(variables, *inputs, **chosen, **kwargs)

  @property
  def adapter(self) -> Any:
    """The trained tensors of all layers, the collection 'glora'."""
    return self.variables[COLLECTION]

  def with_adapter(self, adapter: Any) -> Forward:
    """Returns this model with another adapter, a noisy one for instance."""
    variables = {**self.variables, COLLECTION: adapter}
    return dataclasses.replace(self, variables=variables, call=None)

  def dropping_components(self, key: jax.Array, probability: float) -> Forward:
    """Returns this model without some rank-one parts of LoRAs; see `drop_components`."""
    return dataclasses.replace(self, of_components=Dropout(key, probability), call=None)

  def dropping_inputs(self, key: jax.Array, probability: float) -> Forward:
    """Returns this model with dropout on the inputs of LoRAs of B, as PEFT's `lora_dropout`.

    In x B, each number of x is zero with this probability p, and is otherwise divided by 1 - p; x W
    is unchanged. Tables that are looked up have no inputs to drop. A layer that is called several
    times drops the same each time.

    The call raises ValueError for a LoRA of a convolution, or of a kernel that the model uses other
    than as the matrix of a layer.
    """
    return dataclasses.replace(self, of_inputs=Dropout(key, probability), call=None)


def loss_and_metrics(result: Any) -> tuple[jax.Array, Mapping[str, Any]]:
  """Splits the result of a loss function into the loss and its metrics.

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


def check_data(loss: Loss, data: Any, adapted: Adapted) -> None:
  """Raises ValueError if arrays, or a list of batches, do not pass the `check` of a loss.

  That of `classification()` checks the labels. It learns the number of classes when the model is
  traced, so a label that is too large is found only after that, when it has made the loss NaN.
  """
  if not hasattr(loss, 'check'):
    return
  if isinstance(data, list):
    for batch in data:
      loss.check(batch, adapted)
  elif is_data(data):
    loss.check(data, adapted)
