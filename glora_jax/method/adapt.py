"""GLoRA on any Flax model, unmodified: discover its layers, carry supports, apply subnets, fold.

The model knows nothing of it. The supports are an ordinary variable collection, `glora`; `apply`
merges them into the kernels either *up front* (fold inside the trace, then call the untouched
model; see `glora_jax.method.merge`) or *lazily* (layer by layer in an interceptor, so that only one
merged kernel is alive at a time; see `glora_jax.method.lazy`).
"""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from glora_jax.method.adapted import Adapted, Merge, name_of
from glora_jax.method.discover import discover
from glora_jax.method.groups import Group, number_rows, spec_of, tie
from glora_jax.method.selection import Selection, Selector, matches
from glora_jax.method.site import Site
from glora_jax.method.space import SearchSpace
from glora_jax.method.validation import check_merge
from glora_jax.tree import Path, flatten, path_name

log = logging.getLogger(__name__)
DEFAULT_HEADS = r'(^|/)(head|classifier|lm_head|output_projection)$'


def adapt(
  model: nn.Module,
  *sample_inputs: Any,
  space: SearchSpace | Mapping[str, SearchSpace] = SearchSpace(),
  select: Selector | None = None,
  heads: Selector | None = DEFAULT_HEADS,
  ties: Sequence[Sequence[str]] = (),
  convs: bool = False,
  merge: Literal['auto', 'up_front', 'lazy'] = 'auto',
  **model_kwargs: Any,
) -> Adapted:
  """Attaches GLoRA to a model.

  Args:
    model: any Flax linen model, or an object that holds one as `module`, as transformers' Flax
      models do; it is not changed.
    *sample_inputs: what the model is called with; only shapes and dtypes matter
      (`jax.ShapeDtypeStruct` will do).
    space: the alleles on offer: one space for all layers, or spaces by regular expression. The
      first that is found in a layer's path is its space, and layers that none is found in are not
      adapted.
    select: which linear layers to adapt, by '/'-joined path: a regular expression (searched),
      several of them, or a function. None takes all that are not heads.
    heads: which modules to train in full, likewise; None for none.
    ties: layers to adapt as one, whose kernels then stand side by side along the output in the
      listed order, with one set of supports and one row. Each tie lists the ends of their paths:
      `('query', 'key', 'value')` ties these three wherever they stand beside each other.
    convs: whether `nn.Conv` counts as a linear layer: of all inputs of a window, in = height *
      width * channels.
    merge: how supports get into the kernels: 'up_front', 'lazy', or 'auto', which is up front on
      CPU and lazy elsewhere, as measured.
    **model_kwargs: further arguments of the call, `train=False` for instance.

  Returns:
    The adapted model.

  Raises:
    ValueError: it is no linen model, does not run on the sample inputs, has no linear layer, none
      that `select` or `space` matches, one that GLoRA cannot express (an unusual `nn.Einsum`), or a
      tie does not fit; the sentence names the paths.

  Example:
    >>> import flax.linen as nn, jax.numpy as jnp
    >>> from glora_jax import SearchSpace, adapt
    >>> class Mlp(nn.Module):
    ...   @nn.compact
    ...   def __call__(self, x):
    ...     return nn.Dense(3, name='head')(nn.relu(nn.Dense(8, name='hidden')(x)))
    >>> adapted = adapt(Mlp(), jnp.zeros((1, 4)), space=SearchSpace(ranks=(2, 4)))
    >>> [layer.name for layer in adapted.spec]
    ['hidden']
  """
  check_merge(merge, ('auto', *get_args(Merge)))
  if merge == 'auto':
    merge = 'up_front' if jax.default_backend() == 'cpu' else 'lazy'
  model = _linen_module(model)
  discovery = discover(model, sample_inputs, model_kwargs)
  return assemble(
    model,
    discovery.variables.get('params', {}),
    [site for site in discovery.sites if convs or site.kind != 'Conv'],
    Selection(space, select, heads, ties),
    refused=discovery.refused,
    merge=merge,
  )


def _linen_module(model: Any) -> nn.Module:
  """The linen module that a user gave or that an object of his holds.

  Raises:
    ValueError: there is none.
  """
  if isinstance(model, nn.Module):
    return model
  nnx = sys.modules.get('flax.nnx')  # loaded if the model is of it
  name = model.__name__ if isinstance(model, type) else type(model).__name__
  if nnx is not None and isinstance(model, nnx.Module):
    raise ValueError(
      f'{name} is an NNX model, and glora_jax.adapt takes linen ones; call '
      'glora_jax.nnx.attach(model, *inputs).'
    )
  module = getattr(model, 'module', None)
  if not isinstance(module, nn.Module):
    raise ValueError(
      f'{name} is no instance of a linen model; for a function of parameters and inputs there is '
      'glora_jax.adapt_function(apply, params, *inputs).'
    )
  return module


def assemble(
  model: Any,
  params: Any,
  sites: Sequence[Site],
  selection: Selection,
  *,
  refused: Mapping[str, str] = types.MappingProxyType({}),
  merge: Merge = 'up_front',
) -> Adapted:
  """The second half of `adapt`: chooses among linear modules that were found, by whatever means.

  Args:
    model: anything with the `apply` of a linen model.
    params: its parameters, or their shapes.
    sites: its linear modules, in order.
    selection: what of them is adapted.
    refused: why other linear modules cannot be adapted, by path.
    merge: how supports get into the kernels; 'lazy' needs a linen model.

  Returns:
    The adapted model.

  Raises:
    ValueError: nothing is left to adapt, or the selection does not fit; see `adapt`.
  """
  name = name_of(model)
  flat = flatten(params)
  heads = frozenset(path for path in flat if _in_a_head(path, selection))
  if selection.heads is not None and not heads:
    log.info(
      'No module of %s matches heads=%r; only supports will be trained.', name, selection.heads
    )
  for path, reason in refused.items():
    if selection.space_of(path) is not None and not selection.is_head(path):
      raise ValueError(f'{path} cannot be adapted: {reason}. Leave it out with select.')

  candidates = [site for site in sites if site.kernel_path not in heads]
  if not candidates and not refused:
    raise ValueError(
      f'{name} has no linear layer that GLoRA can adapt besides its heads (nn.Dense, '
      'nn.DenseGeneral and nn.Einsum; convs=True adds nn.Conv).'
    )
  groups = _groups(name, candidates, selection)
  bare = [group.name for group in groups if not group.has_bias]
  if bare:
    log.warning('No C, D, E for the %d layers without bias: %s.', len(bare), ', '.join(bare))
  shapes = {path: jax.tree.leaves(value)[0] for path, value in flat.items()}
  return Adapted(model, spec_of(groups), groups, heads, merge, shapes)


def _in_a_head(path: Path, selection: Selection) -> bool:
  """Whether a parameter, or a module that it lies in, however deep, is trained in full."""
  return any(selection.is_head(path_name(path[: end + 1])) for end, _ in enumerate(path))


def _groups(model: str, candidates: Sequence[Site], selection: Selection) -> tuple[Group, ...]:
  """The sets of supports of the candidates that are selected, with their rows.

  Raises:
    ValueError: no candidate is selected, or a pattern or tie fits none.
  """
  listed = ', '.join(site.name for site in candidates) or 'none besides the heads'
  spaces = {
    site.name: space for site in candidates if (space := selection.space_of(site.name)) is not None
  }
  chosen = [site for site in candidates if site.name in spaces]
  if not chosen:
    raise ValueError(
      f'select={selection.select!r} matches no linear layer of {model}; there are: {listed}.'
    )
  for site in chosen:
    if not jnp.issubdtype(site.dtype, jnp.floating):
      raise ValueError(
        f'{site.name} has a kernel of {site.dtype}, and supports are merged into floating-point '
        "ones; leave it out with select, or give quantized parameters to init as qwix's arrays."
      )
  for pattern in selection.spaces:
    if not any(matches(pattern, site.name) for site in chosen):
      raise ValueError(
        f"space: the pattern '{pattern}' matches no selected linear layer of {model}; "
        f'there are: {listed}.'
      )
  return number_rows(
    [
      Group(members, members[0].rows, spaces[members[0].name])
      for members in tie(chosen, selection.ties)
    ]
  )
