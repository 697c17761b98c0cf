"""Attaches GLoRA to any Linen model, unmodified, or to a pure function.

The adapter is an ordinary variable collection, `glora`. `apply` merges it into each kernel where
the model's program uses the kernel, one after another (see `glora_jax.method.program`). The tensors
A to E are those of the equation in `glora_jax.method.equation`.
"""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from glora_jax.checks import listed, shown
from glora_jax.method.adapted import Adapted, Places, name_of
from glora_jax.method.coverage import log_uncovered
from glora_jax.method.groups import Group, number_rows, spec_of
from glora_jax.method.modules import discover
from glora_jax.method.presets import Structure, read_choice
from glora_jax.method.quantized import check_unquantized
from glora_jax.method.sample import is_array
from glora_jax.method.selection import (
  Embeddings,
  Heads,
  Selection,
  Selector,
  exactly,
  is_to_words,
  matches,
  unmatched,
)
from glora_jax.method.site import TABLE, Site, with_disjoint_paths
from glora_jax.method.space import SearchSpace, Spaces
from glora_jax.method.trace.events import HEAD, NOT_SELECTED, TO_WORDS
from glora_jax.method.trace.find import Found, find
from glora_jax.tree import KeyPath, flatten, map_with_path, path_name

log = logging.getLogger(__name__)
DEFAULT_HEADS = r'(^|/)(head|(pre_)?classifier|score|qa_outputs)$'


def adapt(
  model: nn.Module,
  *sample_inputs: Any,
  structure: Structure | None = None,
  space: Spaces | None = None,
  scale: float | None = None,
  select: Selector | None = None,
  heads: Selector | None = DEFAULT_HEADS,
  convs: bool = False,
  embeddings: Embeddings = False,
  **model_kwargs: Any,
) -> Adapted:
  """Attaches GLoRA to a model.

  Args:
    model: any Linen model, or an object that holds one as `module`, as transformers' Flax
      models do; it is not changed.
    *sample_inputs: example inputs of the model; only shapes and dtypes matter
      (`jax.ShapeDtypeStruct` will do).
    structure: the structure to train: a preset's name ('lora:8', 'bitfit',
      'scale_shift_lora:4@attn'), a genome, choices by layer, or the path of an adapter;
      see `Adapted.fix`. None is 'lora:8'; with a `space` it leaves the structure free, for a
      supernet or a search.
    space: the search space: one for all layers, or several by regular expression. A layer gets the
      first space whose expression is found in its path; layers without a match are not adapted.
      None is the smallest space that has the structure.
    scale: factor on LoRAs of B (see `method.equation`), alpha / rank in other libraries; None for
      the search space's scale, by default 1.
    select: which linear layers to adapt, by '/'-joined path: a regular expression (searched; a
      string or compiled), several of them, or a function. None selects all that are not heads or
      output layers to words, which are called lm_head or output_projection.
    heads: which modules or parameters to train in full: a name, a path or its end ('fc',
      'decoder/fc'), a regular expression, several of these, or a function; None for none. The log
      lists the heads. By default modules called head, classifier, pre_classifier, score or
      qa_outputs.
    convs: whether to adapt `nn.Conv`, as a linear layer with in = height * width * channels of its
      window.
    embeddings: whether to adapt tables that are looked up, as by `nn.Embed`: linear layers of
      one-hot inputs, without a bias. A tied head, which multiplies by the table again, shares its
      adapter. Instead of True, ids of tokens (`tokenizer.convert_tokens_to_ids(['<a>', '<b>'])`) or
      a mask of the vocabulary: only these rows of the table are trained; `structure`, `select` and
      `scale` apply to the other layers. For some of several tables, a dictionary from a name (a
      regular expression) to ids or a mask: `{'wte': [3, 5]}`.
    **model_kwargs: further arguments of the call, `train=False` for instance.

  Returns:
    The adapted model.

  Raises:
    TypeError: the model is not a Linen model, or another argument has the wrong type.
    ValueError: the model has no linear layer (or no table for `embeddings`, or the table lacks a
      row), or `select`, `space` or explicit `heads` match nothing; the message names the paths.
      Errors of the model itself on the sample inputs pass through.

  Example:
    >>> import flax.linen as nn, jax.numpy as jnp
    >>> from glora_jax import SearchSpace, adapt
    >>> class Mlp(nn.Module):
    ...   @nn.compact
    ...   def __call__(self, x):
    ...     return nn.Dense(3, name='head')(nn.relu(nn.Dense(8, name='hidden')(x)))
    >>> adapt(Mlp(), jnp.zeros((1, 4)))
    <Adapted Mlp: 1 layer, 96 parameters>
    >>> adapted = adapt(Mlp(), jnp.zeros((1, 4)), space=SearchSpace(ranks=(2, 4)))
    >>> [layer.name for layer in adapted.spec], adapted.fix('lora:2').count_params()
    (['hidden'], 24)
  """
  structure, space = read_choice(structure, space)
  selection = Selection(space, scale, select, heads, convs, embeddings)
  model = _linen_module(model)
  params, found = discover(model, sample_inputs, model_kwargs, convs, selection.embeddings)
  return assemble(model, params, found, selection, structure)


def _linen_module(model: Any) -> nn.Module:
  """The Linen module that a model is, or holds as `module`.

  Raises:
    TypeError: there is none.
  """
  module = linen_module_of(model)
  if module is not None:
    return module
  nnx = sys.modules.get('flax.nnx')  # imported already if the model is an NNX model
  name = model.__name__ if isinstance(model, type) else type(model).__name__
  if nnx is not None and isinstance(model, nnx.Module):
    raise TypeError(
      f'{name} is an NNX model, and glora_jax.adapt needs a Linen model; call '
      'glora_jax.nnx.attach(model, *inputs).'
    )
  raise TypeError(
    f'expected an instance of a Linen model, got {name}; for a function of parameters and inputs '
    'call glora_jax.adapt_function(apply, params, *inputs).'
  )


def linen_module_of(model: Any) -> nn.Module | None:
  """The Linen module that a model is, or holds as `module`; None if there is none."""
  held = (model, getattr(model, 'module', None))
  return next((each for each in held if isinstance(each, nn.Module)), None)


def assemble(
  model: Any, params: Any, found: Found, selection: Selection, structure: Any
) -> Adapted:
  """Adapts the selected linear layers: the second half of `adapt`.

  Args:
    model: anything with the `apply` of a Linen model.
    params: its parameters, or their shapes.
    found: its linear layers; those outside of Linen's linear modules are used only if there are no
      others besides heads and tables.
    selection: which of them to adapt.
    structure: the structure to fix, see `Adapted.fix`; None leaves it free.

  Returns:
    The adapted model.

  Raises:
    ValueError: nothing is left to adapt, or the selection does not fit; see `adapt`.
  """
  name = name_of(model)
  flat = flatten(params)
  heads = selection.heads_among(flat)
  shapes = {  # not the arrays, which an adapted model must not keep alive
    path: jax.ShapeDtypeStruct(array.shape, array.dtype)
    for path, boxed in flat.items()
    for array in jax.tree.leaves(boxed)
  }
  tables = {site.kernel_path for site in found.sites if site.kind == TABLE}
  if selection.embeddings and not tables:
    raise ValueError(f'{name} has no embedding lookup; leave embeddings= out.')
  for outside in ((), found.outside):  # the second time only if the first has no candidate
    sites = with_disjoint_paths([*found.sites, *outside])
    candidates = [site for site in sites if site.kernel_path not in heads.paths]
    if any(site.kernel_path not in tables for site in candidates):
      break
  if not candidates:
    others = [
      f'{path_name(path)} {"x".join(map(str, shapes[path].shape))} ({reason})'
      for path, reason in found.uncovered.items()
      if path not in heads.paths
    ]
    raise ValueError(
      f'{name} has no linear layer that GLoRA can adapt, apart from its heads: '
      f'{", ".join(others) or "no matrix is left"}.'
    )
  groups = _groups(name, candidates, selection)
  layers = [site.name for site in sites]
  if patterns := unmatched(selection.select, layers):
    raise ValueError(
      f'select: {listed(patterns)} matches no linear layer of {name}; its layers are: '
      f'{", ".join(layers)}.'
    )
  reasons = {**found.uncovered, **{site.kernel_path: NOT_SELECTED for site in sites}}
  to_words = {site.kernel_path for site in sites if is_to_words(site.name)}
  if selection.select is None:
    reasons |= dict.fromkeys(to_words, TO_WORDS)
  reasons |= dict.fromkeys(heads.paths & reasons.keys(), HEAD)
  covered = {group.site.kernel_path for group in groups}
  adapted = Adapted(
    model,
    spec_of(groups),
    Places(
      groups,
      heads.paths,
      shapes,
      tuple((path, reasons[path]) for path in shapes if path in reasons and path not in covered),
      other_sites=tuple(site for site in sites if site.kernel_path not in covered),
    ),
  )
  if selection.heads is not None:
    _log_heads(adapted, selection.heads, heads, sites, {*found.outputs} - to_words)
  log_uncovered(adapted.coverage())
  return adapted.fix(structure)


def _log_heads(
  adapted: Adapted,
  selector: Selector,
  heads: Heads,
  sites: Sequence[Site],
  outputs: Collection[KeyPath],
) -> None:
  """Logs the heads; warns if the output layer is not one, and raises if `heads` match nothing."""
  name = name_of(adapted.model)
  is_default = isinstance(selector, str) and selector == DEFAULT_HEADS
  if not is_default and not heads.modules:
    raise ValueError(
      f'heads={shown(selector)} matches no module or parameter of {name}; its linear layers are: '
      f'{", ".join(site.name for site in sites)}. Pass heads=None to train none in full.'
    )
  last = [site for site in sites if site.kernel_path in outputs and site.kind != TABLE]
  if heads.modules and heads.unmatched:
    log.warning('%s: heads: %s matches no module.', name, listed(heads.unmatched))
  if heads.modules:
    log.info('%s: heads, trained in full: %s.', name, ', '.join(heads.modules))
  elif not last:
    log.info('%s has no head; only the adapter is trained.', name)
  has_other_layers = any(last[-1:] != [group.site] for group in adapted.places.groups)
  if is_default and last and has_other_layers and heads.paths.isdisjoint(outputs):
    is_adapted = any(last[-1] == group.site for group in adapted.places.groups)
    log.warning(
      'The output layer of %s, %s, %s and is not trained in full; if it is a new classifier, pass '
      'heads=%r.',
      name,
      last[-1].name,
      'gets an adapter' if is_adapted else 'stays frozen',
      _as_heads(last[-1], adapted.places.param_shapes),
    )


def _as_heads(site: Site, params: Iterable[KeyPath]) -> str | list[str]:
  """The `heads=` that trains this layer in full, and no other parameter."""
  paths = [path for path in (site.kernel_path, site.bias_path) if path]
  module = site.kernel_path[:-1]
  if module and all(path in paths for path in params if path[: len(module)] == module):
    paths = [module]
  ends = [path[:end] for path in params for end in range(len(path) + 1)]
  names = [
    path_name(path)
    if all(end == path or end[-len(path) :] != path for end in ends)
    else exactly(path_name(path))
    for path in paths
  ]
  return names[0] if len(names) == 1 else names


def _groups(model: str, candidates: Sequence[Site], selection: Selection) -> tuple[Group, ...]:
  """The selected candidates with their spaces.

  Raises:
    ValueError: no candidate is selected, or a pattern matches none.
  """
  available = ', '.join(site.name for site in candidates) or 'none apart from the heads'
  tables = {site.name: site.in_features for site in candidates if site.kind == TABLE}
  rows = selection.rows_of(tables)
  choices = {site.name: selection.space_of(site.name) for site in candidates}
  if selection.ids:  # these say which tables are adapted, and `select` of other layers
    choices |= {name: SearchSpace() if name in rows else None for name in tables}
  spaces = {name: space for name, space in choices.items() if space is not None}
  chosen = [site for site in candidates if site.name in spaces]
  if not chosen:
    raise ValueError(
      f'select={shown(selection.select)} and space={shown([*selection.spaces])} match no linear '
      f'layer of {model}; these are: {available}.'
    )
  for site in chosen:
    if not jnp.issubdtype(site.dtype, jnp.floating) or jnp.finfo(site.dtype).bits < 16:
      raise ValueError(
        f'The kernel of {site.name} is {site.dtype}, and only floating-point kernels of 16 bits or '
        'more can be adapted; leave it out with select, or pass quantized parameters to init as '
        "qwix's arrays."
      )
  for pattern in selection.spaces:
    if not any(matches(pattern, site.name) for site in chosen):
      raise ValueError(
        f'space: the pattern {shown(pattern)} matches no selected linear layer of {model}; these '
        f'are: {available}.'
      )
  return number_rows(
    [Group(site, site.rows, spaces[site.name], rows.get(site.name, ())) for site in chosen]
  )


def adapt_function(
  function: Callable[..., Any],
  params: Any,
  *sample_inputs: Any,
  structure: Structure | None = None,
  space: Spaces | None = None,
  scale: float | None = None,
  select: Selector | None = None,
  heads: Selector | None = DEFAULT_HEADS,
  convs: bool = False,
  embeddings: Embeddings = False,
  stacks: Mapping[str, int] = types.MappingProxyType({}),
  **kwargs: Any,
) -> Adapted:
  """Attaches GLoRA to a pure function: of plain JAX, Equinox, Haiku or any other library.

  The function is traced, and its linear layers are the parameters that it multiplies with
  activations. The name of a layer is the path of its parameter: the keys that lead to it, joined
  by '/', without 'kernel' or 'weight' at the end.

  Args:
    function: called as `function(params, *inputs, **kwargs)`.
    params: its parameters, or their shapes, any pytree: nested dictionaries and lists, dataclasses,
      an Equinox module. Leaves that are not arrays are passed on unchanged; to differentiate with
      respect to all params, pass only arrays (`eqx.partition(model, eqx.is_array)`).
    *sample_inputs: example inputs of the function; only shapes and dtypes matter
      (`jax.ShapeDtypeStruct` will do).
    structure: the structure to train; see `adapt`.
    space: the search space; see `adapt`.
    scale: factor on LoRAs of B; see `adapt`.
    select: which linear layers to adapt, by name; see `adapt`.
    heads: which parameters to train in full, by their names or those of their containers; see
      `adapt`.
    convs: whether to adapt kernels of convolutions; see `adapt`.
    embeddings: whether to adapt tables that are looked up (`table[tokens]`), or which of their
      rows; see `adapt`.
    stacks: axes of a layer's outputs to treat as a stack, with a layer for each index:
      `{'kv_einsum/w': 0}` maps a regular expression, searched in the parameter's path, to the axis.
    **kwargs: further arguments of the call.

  Returns:
    The adapted function. Call `init` with the params, and `apply` with the other
    arguments of the function.

  Raises:
    TypeError: an argument has the wrong type.
    ValueError: the function closes over its parameters, has no linear layer, or the choices do not
      fit. Errors of the function itself on the sample inputs pass through.

  Example:
    >>> import glora_jax, jax, jax.numpy as jnp
    >>> params = [{'w': jnp.ones((4, 8)), 'b': jnp.zeros(8)}, {'w': jnp.ones((8, 3))}]
    >>> def mlp(params, x):
    ...   return jnp.tanh(x @ params[0]['w'] + params[0]['b']) @ params[1]['w']
    >>> x = jnp.ones((2, 4))
    >>> adapted = glora_jax.adapt_function(mlp, params, x, structure='lora:2', heads='^1')
    >>> [layer.name for layer in adapted.spec]
    ['0/w']
    >>> variables = adapted.init(jax.random.key(0), params)
    >>> bool(jnp.allclose(adapted.apply(variables, x), mlp(adapted.fold(variables), x)))
    True
  """
  structure, space = read_choice(structure, space)
  selection = Selection(space, scale, select, heads, convs, embeddings)
  model = Function(function)
  name = model.__name__
  check_unquantized(name, params)
  options = {'convs': convs, 'embeddings': selection.embeddings, 'stacks': stacks}
  found = find(function, params, sample_inputs, kwargs, **options)
  arrays = map_with_path(lambda _, leaf: leaf if is_array(nn.meta.unbox(leaf)) else None, params)
  if flatten(arrays).keys() == set(found.unused):
    raise ValueError(
      f'{name} uses none of its params: it is called as {name}(params, *inputs) and must compute '
      'with these, not with arrays that it closes over.'
    )
  return assemble(model, arrays, found, selection, structure)


class Function:
  """A function with the `apply` of a Linen model.

  Attributes:
    function: called as `function(params, *inputs, **kwargs)`.
  """

  def __init__(self, function: Callable[..., Any]):
    self.function = function
    self.__name__ = getattr(function, '__name__', type(function).__name__)

  def apply(self, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Calls the function with the variables' parameters."""
    return self.function(variables['params'], *args, **kwargs)
