"""GLoRA on any Flax model, unmodified: discover its linear layers, carry their supports, apply subnets, fold them away.

The model knows nothing of it. The supports are an ordinary variable collection, `glora`; `apply` merges them into the
kernels either *up front* (fold inside the trace, then call the untouched model) or *lazily* (layer by layer in an
interceptor, so that only one merged kernel is alive at a time); see `merge`.
"""

from __future__ import annotations

import logging
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from glora_jax.method.adapted import Adapted
from glora_jax.method.discover import Site, discover
from glora_jax.method.groups import Group, number_rows, tie
from glora_jax.method.space import Layer, SearchSpace, Spec
from glora_jax.tree import flatten, path_name

log = logging.getLogger(__name__)
DEFAULT_HEADS = r'(^|/)(head|classifier|lm_head|output_projection)$'

Selector = str | Sequence[str] | Callable[[str], bool]


def adapt(
  model: nn.Module,
  *sample_inputs: Any,
  space: SearchSpace | Mapping[str, SearchSpace] = SearchSpace(),
  select: Selector | None = None,
  heads: Selector | None = DEFAULT_HEADS,
  ties: Sequence[Sequence[str]] = (),
  convs: bool = False,
  merge: str = 'auto',
  **model_kwargs: Any,
) -> Adapted:
  """Attaches GLoRA to a model.

  Args:
    model: any Flax linen model; it is not changed.
    *sample_inputs: what it is called with; only shapes and dtypes matter (`jax.ShapeDtypeStruct` will do).
    space: the alleles on offer; one space for all layers, or spaces by regular expression: the first that is found in a
      layer's path is its space, and layers that none is found in are not adapted.
    select: which linear layers to adapt, by '/'-joined path: a regular expression (searched), several of them, or a function.
      None takes all that are not heads.
    heads: which modules to train in full, likewise; None for none.
    ties: layers to adapt as one, whose kernels then stand side by side along the output in the listed order, with one set of
      supports and one row. Each tie lists the ends of their paths: `('query', 'key', 'value')` ties these three wherever they
      stand beside each other.
    convs: whether `nn.Conv` counts as a linear layer: of all inputs of a window, in = height * width * channels.
    merge: 'up_front', 'lazy', or 'auto': up front on CPU, lazy elsewhere, as measured.
    **model_kwargs: further arguments of the call, `train=False` for instance.

  Returns:
    An `Adapted`.

  Raises:
    ValueError: the model does not run on the sample inputs, has no linear layer, none that `select` or `space` matches, one
      that GLoRA cannot say (an unusual `nn.Einsum`), or a tie does not fit; the sentence names the paths.

  Example:
    >>> adapted = adapt(nn.Dense(3), jnp.zeros((1, 4)))
    >>> variables = adapted.init(jax.random.key(0), nn.Dense(3).init(jax.random.key(1), jnp.zeros((1, 4)))['params'])
    >>> adapted.apply(variables, jnp.ones((2, 4)), genome=jnp.zeros((1, 5), jnp.int8)).shape
    (2, 3)
  """
  if merge not in ('auto', 'up_front', 'lazy'):
    raise ValueError(f"merge='{merge}' is unknown; it is 'auto', 'up_front' or 'lazy'.")
  if merge == 'auto':
    merge = 'up_front' if jax.default_backend() == 'cpu' else 'lazy'
  variables, found, refused = discover(model, sample_inputs, model_kwargs)
  found = [site for site in found if convs or site.kind != 'Conv']
  return assemble(
    model,
    variables.get('params', {}),
    found,
    refused,
    space=space,
    select=select,
    heads=heads,
    ties=ties,
    merge=merge,
  )


def assemble(
  model: Any,
  params: Any,
  found: Sequence[Site],
  refused: Mapping[str, str] = types.MappingProxyType({}),
  *,
  space: SearchSpace | Mapping[str, SearchSpace],
  select: Selector | None,
  heads: Selector | None,
  ties: Sequence[Sequence[str]] = (),
  merge: str = 'up_front',
) -> Adapted:
  """The second half of `adapt`: chooses among linear layers that were found, by whatever means.

  Args:
    model: anything with the `apply` of a linen model.
    params: its parameters, or their shapes.
    found, refused: see `discover`.
    space, select, heads, ties, merge: see `adapt`; 'lazy' needs a linen model.
  """
  name = type(model).__name__
  params = flatten(params)
  is_head = _matcher(heads)
  head_paths = frozenset(
    path for path in params if any(is_head(path_name(path[:n])) for n in range(1, len(path)))
  )
  if heads is not None and not head_paths:
    log.info('No module of %s matches heads=%r; only supports will be trained.', name, heads)

  candidates = [site for site in found if (*site.path, 'kernel') not in head_paths]
  if not candidates and not refused:
    raise ValueError(
      f'{name} has no linear layer that GLoRA can adapt besides its heads (nn.Dense, nn.DenseGeneral and nn.Einsum; '
      'convs=True adds nn.Conv).'
    )
  spaces = dict(space) if isinstance(space, Mapping) else {'': space}
  space_of = lambda path: next(
    (spaces[pattern] for pattern in spaces if _matcher(pattern)(path)), None
  )
  wanted = _matcher(select) if select is not None else lambda path: True
  for path, reason in refused.items():
    if wanted(path) and space_of(path) is not None and not is_head(path):
      raise ValueError(f'{path} cannot be adapted: {reason}. Leave it out with select.')
  chosen = [site for site in candidates if wanted(site.name) and space_of(site.name) is not None]
  listed = ', '.join(site.name for site in candidates) or 'none besides the heads'
  if not chosen:
    raise ValueError(f'select={select!r} matches no linear layer of {name}; there are: {listed}.')
  for pattern in spaces:
    if not any(_matcher(pattern)(site.name) for site in chosen):
      raise ValueError(
        f"space: the pattern '{pattern}' matches no selected linear layer of {name}; there are: {listed}."
      )

  groups = number_rows(
    [Group(members, members[0].rows, space_of(members[0].name)) for members in tie(chosen, ties)]
  )
  bare = [group.name for group in groups if not group.has_bias]
  if bare:
    log.warning('No C, D, E for the %d layers without bias: %s.', len(bare), ', '.join(bare))
  layers = {}
  for group in groups:
    for index, row in group.slices():
      label = group.name + (f'[{",".join(map(str, index))}]' if index else '')
      layers[row] = Layer(label, group.in_features, group.out_features, group.has_bias, group.space)
  spec = Spec(tuple(layers[row] for row in range(len(layers))))
  return Adapted(
    model,
    spec,
    groups,
    head_paths,
    merge,
    {path: jax.tree.leaves(value)[0] for path, value in params.items()},
  )


def _matcher(selector: Selector | None) -> Callable[[str], bool]:
  if selector is None:
    return lambda name: False
  if callable(selector):
    return selector
  patterns = [selector] if isinstance(selector, str) else list(selector)
  try:
    compiled = [re.compile(pattern) for pattern in patterns]
  except re.error as error:
    raise ValueError(
      f'{selector!r} is not a regular expression, or a list of them: {error}.'
    ) from error
  return lambda name: any(pattern.search(name) for pattern in compiled)
