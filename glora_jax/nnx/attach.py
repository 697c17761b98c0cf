"""GLoRA on a live NNX model, which stays an instance of its class and keeps all its state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
from flax import nnx

from glora_jax.limits import listed
from glora_jax.method.adapt import DEFAULT_HEADS, assemble
from glora_jax.method.adapted import Adapted
from glora_jax.method.quantized import check_unquantized
from glora_jax.method.sample import check_key
from glora_jax.method.selection import Selection, Selector
from glora_jax.method.space import SearchSpace
from glora_jax.nnx.finding import find, runs
from glora_jax.nnx.frozen import require_module
from glora_jax.nnx.functional import params
from glora_jax.nnx.insertion import insert
from glora_jax.nnx.owners import check_plain
from glora_jax.nnx.variables import Genome, ParamGenome

Model = TypeVar('Model', bound=nnx.Module)


def attach(  # noqa: PLR0913
  model: Model,
  *inputs: Any,
  space: SearchSpace | Mapping[str, SearchSpace] = SearchSpace(),
  select: Selector | None = None,
  heads: Selector | None = DEFAULT_HEADS,
  ties: Sequence[Sequence[str]] = (),
  convs: bool = False,
  split: Mapping[str, int] | None = None,
  key: jax.Array | nnx.Rngs | None = None,
  **kwargs: Any,
) -> Model:
  """Attaches GLoRA to an NNX model that stays alive.

  What comes back is called like the model, its submodules and other methods too. Its dropout
  streams, batch statistics, caches, `train()` and `eval()` are its own. Every subnet of it is the
  model as it was, until its supports are trained; it starts as the largest subnet on offer.

  Args:
    model: any NNX model; it is not changed, and its arrays are shared. What `nnx.eval_shape` makes
      gets its supports, and its other values from `nnx.update`.
    *inputs: what it is called with; only shapes and dtypes matter.
    space: the alleles on offer; see `glora_jax.adapt`. Nothing is stored for tensors that are none.
    select: which linear layers to adapt, by the attributes' names joined by '/'; see
      `glora_jax.adapt`.
    heads: which modules to train in full, likewise; None for none.
    ties: layers to adapt as one; see `glora_jax.adapt`.
    convs: whether convolutions count as linear layers.
    split: axes of kernels' outputs that count layers, by a regular expression that is found in the
      kernel's name.
    key: random key of the supports, or `nnx.Rngs`; None for always the same one.
    **kwargs: further arguments of the call.

  Returns:
    A model of the same class, with supports beside its parameters (`glora_jax.nnx.Support`), its
    heads as `glora_jax.nnx.Head` and its genome as `glora_jax.nnx.Genome`.

  Raises:
    ValueError: the model is attached already, has no linear layer, or none that `select` or `space`
      matches; or a tie does not fit, or an argument is of another type. What the model itself
      raises on these inputs passes through.

  Example:
    >>> import glora_jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> class Mlp(nnx.Module):
    ...   def __init__(self, rngs):
    ...     self.hidden = nnx.Linear(4, 8, rngs=rngs)
    ...     self.dropout = nnx.Dropout(0.5, rngs=rngs)
    ...     self.head = nnx.Linear(8, 3, rngs=rngs)
    ...   def __call__(self, x):
    ...     return self.head(self.dropout(nnx.relu(self.hidden(x))))
    >>> mlp, x = Mlp(nnx.Rngs(0)), jnp.ones((1, 4))
    >>> model = glora_jax.nnx.attach(mlp, x)
    >>> isinstance(model, Mlp), [layer.name for layer in glora_jax.nnx.spec(model)]
    (True, ['hidden'])
    >>> bool((model(x) == model(x)).all())  # dropout is alive
    False
    >>> model.eval()
    >>> mlp.eval()
    >>> bool(jnp.allclose(model(x), mlp(x)))
    True
  """
  require_module(model, 'attach')
  check_plain(model)
  check_unquantized(type(model).__name__, model)
  selection = Selection(space, select, heads, ties, convs)
  random = _as_key(key)
  found = find(model, inputs, kwargs, convs=convs, split=split or {})
  adapted = assemble(model, params(model), found.sites, selection, found=found)
  attached = _with_supports(model, adapted, random, Genome)
  if any(group.stack_shape for group in adapted.groups) and not runs(attached, inputs, kwargs):
    # Some models scan over `nnx.Param` alone, or along an axis of its own.
    return _with_supports(model, adapted, random, ParamGenome)
  return attached


def _as_key(key: jax.Array | nnx.Rngs | None) -> jax.Array:
  """A random key of whatever a user gave."""
  if key is None:
    return jax.random.key(0)
  if isinstance(key, nnx.Rngs):
    if not {'params', 'default'} & set(key):
      raise ValueError(
        f'key is an nnx.Rngs of {listed(key) or "nothing"}, and supports are drawn from params, or '
        'from the default; give nnx.Rngs(0), or one with params=0.'
      )
    return key.params()
  check_key(key)
  return key


def _with_supports(
  model: Model, adapted: Adapted, key: jax.Array, genome_type: type[Genome]
) -> Model:
  """A copy of a model that is attached."""
  attached = nnx.clone(model)
  insert(attached, adapted, key, genome_type)
  return attached
