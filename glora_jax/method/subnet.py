"""One subnet of an adapted model, fixed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from glora_jax.method import storage
from glora_jax.method.space import FLAT_FORMS
from glora_jax.method.supports import COLLECTION
from glora_jax.method.validation import check_collections
from glora_jax.tree import Path, partition

if TYPE_CHECKING:
  from glora_jax.method.adapted import Adapted


class Call(NamedTuple):
  """Arguments of a model's `apply` besides its variables."""

  args: tuple[Any, ...]
  kwargs: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Subnet:
  """One subnet of an adapted model with its genome fixed: GLoRA's parametrization, no search.

  Its `apply` computes only the terms that are there. In an `nn.Dense` whose A is not a LoRA no
  gradient has the kernel's size: a scale acts on the output, and a LoRA term of B is two thin
  products, or goes into the kernel where that is as exact and takes less time (`method.equation`).
  Where some A is a LoRA, kernels must be merged, as the adapted model merges them.

  Attributes:
    adapted: the adapted model.
    genome: canonical genome, int8 [rows, 5].

  Example:
    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> from glora_jax import adapt, preset
    >>> adapted = adapt(nn.Dense(3), jnp.zeros((1, 4)))
    >>> params = {'kernel': jnp.ones((4, 3)), 'bias': jnp.zeros(3)}
    >>> variables = adapted.init(jax.random.key(0), params)
    >>> subnet = adapted.fix(preset(adapted.spec, 'bitfit'))
    >>> subnet.count_params()
    3
    >>> trainable, frozen = subnet.split(variables)
    >>> trainable
    {'params': {}, 'glora': {'E': Array([0., 0., 0.], dtype=float32)}}
    >>> subnet.apply(subnet.join(trainable, frozen), jnp.ones((1, 4))).tolist()
    [[4.0, 4.0, 4.0]]
  """

  adapted: Adapted
  genome: np.ndarray

  def apply(self, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    """What `adapted.apply(..., genome=genome)` returns, within rounding.

    Args:
      variables: variables from `Adapted.init`, after training for instance.
      *args: inputs of the model.
      **kwargs: further arguments, as of `Adapted.apply`; there is no choice of `merge`.

    Returns:
      The model's outputs, and its updated collections where some are mutable.
    """
    has_interceptors = isinstance(self.adapted.model, nn.Module)  # an NNX model has none
    thin = has_interceptors and self.genome[:, 0].max() < len(FLAT_FORMS['A'])
    merge = 'lazy' if thin else self.adapted.merge
    check_collections(variables)
    storage.check_storage(self.adapted.groups, variables[COLLECTION], self.genome)
    genome = jnp.asarray(self.genome)
    return self.adapted.run(Call(args, kwargs), variables, genome, merge, fixed=self.genome)

  def fold(self, variables: Mapping[str, Any]) -> Any:
    """Plain params for the untouched model."""
    return self.adapted.fold(variables, self.genome)

  def count_params(self) -> int:
    """Trained parameters, heads not counted."""
    return self.adapted.count_params(self.genome)

  def split(self, variables: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trainable, frozen) as of `Adapted.split`, with only the supports that the genome reads.

    They are cut to the largest LoRA rank that the genome uses in each group of layers, and so are
    those that it does not read. What is joined again is this subnet's storage, and no other's with
    higher ranks.

    Raises:
      ValueError: the variables are of another model or search space, or were cut to a subnet with
        lower ranks.
    """
    trainable, frozen = self.adapted.split(variables)
    supports = storage.cut(self.adapted.groups, trainable[COLLECTION], self.genome)
    read, unread = partition(supports, self._paths_read().__contains__)
    return {**trainable, COLLECTION: read}, {**frozen, COLLECTION: unread}

  def join(self, trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `split`, but for what that has cut off: forms and ranks that the genome lacks.

    So the result is for this genome, and no longer for others.
    """
    return self.adapted.join(trainable, frozen)

  def _paths_read(self) -> set[Path]:
    """Paths of the supports of which the genome reads a part."""
    return {
      (*group.path, name)
      for group in self.adapted.groups
      for row in group.rows
      for name in group.used_parts(self.genome[row].tolist())
    }
