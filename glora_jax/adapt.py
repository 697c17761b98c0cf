"""GLoRA on any Flax model, unmodified: discover its linear layers, carry their supports, merge them in, fold them away.

The model knows nothing of it. The supports are an ordinary variable collection, `glora`; `apply` merges them into the
kernels either *up front* (fold inside the trace, then call the untouched model) or *lazily* (graft them beside their kernels
inside `params`, and merge layer by layer in an interceptor, so that only one merged kernel is alive at a time).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from glora_jax import reparam
from glora_jax import space as space_lib
from glora_jax.discover import Layout, Path, Site, discover

DEFAULT_HEADS = r'(^|/)(head|classifier|lm_head|output_projection)$'
COLLECTION = 'glora'
_GRAFT = 'glora_'  # prefix of the key that lazy merging grafts beside a kernel

Selector = str | Sequence[str] | Callable[[str], bool]


def adapt(
    model: nn.Module,
    *sample_inputs: Any,
    space: space_lib.SearchSpace = space_lib.SearchSpace(),
    select: Selector | None = None,
    heads: Selector | None = DEFAULT_HEADS,
    merge: str = 'auto',
    **model_kwargs: Any,
) -> Adapted:
  """Attaches GLoRA to a model.

  Args:
    model: any Flax linen model; it is not changed.
    *sample_inputs: what it is called with; only shapes and dtypes matter (`jax.ShapeDtypeStruct` will do).
    space: the alleles on offer in every layer.
    select: which linear layers to adapt, by '/'-joined path: a regular expression (searched), several of them, or a function.
      None takes all that are not heads.
    heads: which modules to train in full, likewise; None for none.
    merge: 'up_front', 'lazy', or 'auto': up front on CPU, lazy elsewhere, as measured.
    **model_kwargs: further arguments of the call, `train=False` for instance.

  Returns:
    An `Adapted`.

  Raises:
    ValueError: the model does not run on the sample inputs, has no linear layer, or none that `select` matches.

  Example:
    >>> adapted = adapt(nn.Dense(3), jnp.zeros((1, 4)))
    >>> variables = adapted.init(jax.random.key(0), nn.Dense(3).init(jax.random.key(1), jnp.zeros((1, 4)))['params'])
    >>> adapted.apply(variables, jnp.ones((2, 4)), genome=jnp.zeros((1, 5), jnp.int8)).shape
    (2, 3)
  """
  if merge not in ('auto', 'up_front', 'lazy'):
    raise ValueError(f"merge='{merge}' is unknown; it is 'auto', 'up_front' or 'lazy'.")
  variables, found = discover(model, sample_inputs, model_kwargs)
  params = flatten(variables.get('params', {}))
  is_head = _matcher(heads)
  head_paths = frozenset(path for path in params if any(is_head('/'.join(path[:n])) for n in range(1, len(path))))
  if heads is not None and not head_paths:
    logging.getLogger(__name__).info('No module of %s matches heads=%r; only supports will be trained.', type(model).__name__, heads)
  if not found:
    raise ValueError(f'{type(model).__name__} has no linear layer that GLoRA can adapt (nn.Dense or nn.DenseGeneral).')
  candidates = [site for site in found if (*site.path, 'kernel') not in head_paths]
  wanted = _matcher(select) if select is not None else lambda name: True
  chosen = [site for site in candidates if wanted(site.name)]
  if not chosen:
    names = ', '.join(site.name for site in candidates) or 'none besides the heads'
    raise ValueError(f'select={select!r} matches no linear layer of {type(model).__name__}; there are: {names}.')
  if merge == 'auto':
    merge = 'up_front' if jax.default_backend() == 'cpu' else 'lazy'
  sites = _renumber(chosen)
  if any(site.bias_shape is None for site in sites):
    names = ', '.join(site.name for site in sites if site.bias_shape is None)
    logging.getLogger(__name__).warning('No C, D, E for the layers without bias: %s.', names)
  layers = [None] * sum(len(site.rows) for site in sites)
  for site in sites:
    for index, row in zip(np.ndindex(site.stack_shape), site.rows, strict=True):
      name = site.name + (f'[{",".join(map(str, index))}]' if index else '')
      layers[row] = space_lib.Layer(name, site.in_features, site.out_features, site.bias_shape is not None, space)
  shapes = {path: jax.tree.leaves(value)[0] for path, value in params.items()}
  return Adapted(model, space_lib.Spec(tuple(layers)), sites, head_paths, merge, shapes)


@dataclasses.dataclass(frozen=True, eq=False)
class Adapted:
  """A model with GLoRA attached; see `adapt`.

  Attributes:
    model: the untouched model.
    spec: what the genome's rows are; `len(spec)` of them.
    sites: where they are in the model.
    head_paths: paths of the parameters that are trained in full.
    merge: 'up_front' or 'lazy'.
    param_shapes: ShapeDtypeStruct of every parameter of the model, by path.
  """

  model: nn.Module
  spec: space_lib.Spec
  sites: tuple[Site, ...]
  head_paths: frozenset[Path]
  merge: str
  param_shapes: Mapping[Path, jax.ShapeDtypeStruct]

  def init(self, key: jax.Array, params: Any) -> dict[str, Any]:
    """The variables to train: `{'params': params, 'glora': supports}`; every subnet of them is the base model.

    Supports lie under their module's path, with the module's stack axes first, in `promote_types(kernel, float32)`. A layer
    gets the same values whether the model is scanned or not.

    Raises:
      ValueError: `params` are not this model's; missing, unexpected and misshaped ones are named.
    """
    self._check_params(params)
    supports = {}
    for site in self.sites:
      keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.array(site.rows))
      space = self._space(site)
      new = functools.partial(
          reparam.init_supports, in_features=site.in_features, out_features=site.out_features, ranks=space.ranks,
          bias=site.bias_shape is not None, tied=space.tied, dtype=jnp.promote_types(site.dtype, jnp.float32))
      stacked = jax.vmap(new)(keys)
      supports[site.path] = {name: value.reshape(site.stack_shape + value.shape[1:]) for name, value in stacked.items()}
    return {'params': params, COLLECTION: flax.traverse_util.unflatten_dict(supports)}

  def apply(self, variables: Mapping[str, Any], *args: Any, genome: Any, merge: str | None = None, **kwargs: Any) -> Any:
    """What `model.apply` returns, for the subnet of a genome.

    Args:
      variables: from `init`, after training for instance, with the model's other collections if it has any.
      *args: inputs of the model.
      genome: int [rows, 5]; may be traced, so that one compilation serves all, and `jax.vmap` over it a population.
      merge: overrides the way of merging.
      **kwargs: `rngs`, `mutable`, `method`, `capture_intermediates`, and the model's own.

    Raises:
      ValueError: the genome or the variables do not fit the model.
    """
    space_lib.check_genome(self.spec, genome)
    self._check_variables(variables)
    if np.ndim(genome) != 2:
      raise ValueError(f'apply takes one genome [{len(self.spec)}, 5], not {np.shape(genome)}; use jax.vmap over a population.')
    rest = {name: value for name, value in variables.items() if name not in ('params', COLLECTION)}
    genome = jnp.asarray(genome)
    if (merge or self.merge) == 'up_front':
      result = self.model.apply({'params': self.fold(variables, genome), **rest}, *args, **kwargs)
    else:
      grafted, forms = self._graft(variables, genome)
      with nn.intercept_methods(functools.partial(_merge_layer, forms)):
        result = self.model.apply({'params': grafted, **rest}, *args, **kwargs)
    if kwargs.get('mutable', False) is not False and 'params' in result[1]:
      result[1]['params'] = variables['params']  # the base's own: merged values are no update of it
    return result

  def fold(self, variables: Mapping[str, Any], genome: Any) -> Any:
    """Plain params for the untouched model: the genome's supports merged into the kernels and biases, all else as it was."""
    space_lib.check_genome(self.spec, genome)
    self._check_variables(variables)
    genome, params = jnp.asarray(genome), variables['params']
    for site in self.sites:
      module = get(params, site.path)
      kernel, bias = nn.meta.unbox(module['kernel']), nn.meta.unbox(module['bias']) if site.bias_shape is not None else None
      alleles = genome[np.array(site.rows)].reshape((*site.stack_shape, 5))
      merged = _merge(kernel, bias, nn.meta.unbox(get(variables[COLLECTION], site.path)), alleles, site.layout, self._space(site).ranks)
      for name, value in zip(('kernel', 'bias'), merged, strict=True):
        if value is not None:
          params = _replace(params, (*site.path, name), value)
    return params

  def count_params(self, genome: Any) -> Any:
    """Trained parameters of a genome [rows, 5] (an int) or of many [..., rows, 5] (int64 [...]), heads not counted."""
    return space_lib.count_params(self.spec, genome)

  def split(self, variables: Mapping[str, Any], *, supports: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trainable, frozen): supports and heads, everything else. Give only the first to gradients and optimizer.

    With `supports=False` the supports stay with the frozen half, and heads alone are trained: a linear probe.
    """
    params = flatten(variables['params'])
    part = lambda head: flax.traverse_util.unflatten_dict({p: v for p, v in params.items() if (p in self.head_paths) == head})
    rest = {name: value for name, value in variables.items() if name != 'params'}
    trainable = {'params': part(True)}
    if supports:
      trainable[COLLECTION] = rest.pop(COLLECTION)
    return trainable, {'params': part(False), **rest}

  def join(self, trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `split`."""
    params = flax.traverse_util.unflatten_dict({**flatten(frozen['params']), **flatten(trainable['params'])})
    return {**frozen, **trainable, 'params': params}

  def _space(self, site):
    return self.spec.layers[site.rows[0]].space

  def _graft(self, variables, genome):
    """Params with supports and alleles beside their kernels, stacked as these are, and what each graft's key stands for."""
    params, forms = variables['params'], {}
    for site in self.sites:
      form = _Form(site.local, self._space(site).ranks)
      # Class-level nn.jit reuses traces between models of equal structure: the key makes structures differ where the
      # meaning does.
      key = _GRAFT + hashlib.sha256(repr(form).encode()).hexdigest()[:16]
      forms[key] = form
      alleles = genome[np.array(site.rows)].reshape((*site.stack_shape, 5))
      graft = {'alleles': alleles, **nn.meta.unbox(get(variables[COLLECTION], site.path))}
      graft = {name: _place(value, site) for name, value in graft.items()}
      params = _replace(params, (*site.path, key), graft)
    return params, forms

  def _check_variables(self, variables):
    for name in ('params', COLLECTION):
      if name not in variables:
        raise ValueError(f"The variables have no '{name}' (they have {', '.join(variables) or 'nothing'}); pass what init returned.")

  def _check_params(self, params):
    given = {path: nn.meta.unbox(value) for path, value in flatten(params).items()}
    problems = {
        'missing': sorted('/'.join(p) for p in self.param_shapes.keys() - given.keys()),
        'unexpected': sorted('/'.join(p) for p in given.keys() - self.param_shapes.keys()),
        'misshaped': [f'{"/".join(p)} is {np.shape(given[p])} and should be {shape.shape}'
                      for p, shape in self.param_shapes.items() if p in given and np.shape(given[p]) != shape.shape],
    }
    if any(problems.values()):
      said = '; '.join(f'{kind}: {", ".join(names)}' for kind, names in problems.items() if names)
      raise ValueError(f'These params are not those of the adapted {type(self.model).__name__}. {said}.')


@dataclasses.dataclass(frozen=True)
class _Form:
  """What an interceptor must know to merge a graft: static, the same for every layer of that layout."""

  layout: Layout
  ranks: tuple[int, ...]


def _merge(kernel, bias, supports, alleles, layout: Layout, ranks):
  """`reparam.effective` over a kernel of any layout; supports and alleles have the layout's stack axes first."""
  matrices = layout.matrices(kernel)
  vectors = layout.vectors(bias) if bias is not None else None
  function = functools.partial(reparam.effective, ranks=ranks)
  for _ in layout.stack:
    function = jax.vmap(function)
  matrices, vectors = function(matrices, vectors, supports, alleles)
  return layout.kernel(matrices, kernel.shape), layout.bias(vectors, bias.shape) if bias is not None else None


def _merge_layer(forms, next_function, args, kwargs, context):
  """Interceptor of lazy merging: runs a grafted linear module with its merged kernel and bias."""
  module = context.module
  if context.method_name != '__call__' or not isinstance(module, (nn.Dense, nn.DenseGeneral)):
    return next_function(*args, **kwargs)
  params = module.variables.get('params', {})
  key = next((name for name in params if name in forms), None)
  if key is None:
    return next_function(*args, **kwargs)
  form, params = forms[key], nn.meta.unbox(dict(params))
  graft, kernel = params.pop(key), params['kernel']
  stack = tuple(kernel.shape[d] for d in form.layout.stack)
  matrix = form.layout.matrices(kernel)
  shapes = reparam.support_shapes(*matrix.shape[-2:], form.ranks, tied=False) | {'alleles': (5,)}
  graft = {name: value.reshape(stack + shapes[name]) for name, value in graft.items()}
  params['kernel'], bias = _merge(kernel, params.get('bias'), graft, graft['alleles'], form.layout, form.ranks)
  if bias is not None:
    params['bias'] = bias
  return module.clone(parent=None).apply({'params': params}, *args, **kwargs)


def _place(value, site: Site):
  """Moves the lifted stack axes of a support from the front to where the kernel has them."""
  lifted = len(site.lifts)
  # The lifted transform will take its axis off every leaf at the kernel's place, so a leaf must have as many dimensions.
  value = value.reshape(value.shape + (1,) * (site.local_ndim - (value.ndim - lifted)))
  for level in reversed(range(lifted)):
    value = jnp.moveaxis(value, level, level + site.lifts[level])
  return value


def _renumber(sites: list[Site]) -> tuple[Site, ...]:
  """Rows counted again among the chosen sites alone, in the same order."""
  order = {row: number for number, row in enumerate(sorted(row for site in sites for row in site.rows))}
  return tuple(dataclasses.replace(site, rows=tuple(order[row] for row in site.rows)) for site in sites)


def _matcher(selector: Selector | None) -> Callable[[str], bool]:
  if selector is None:
    return lambda name: False
  if callable(selector):
    return selector
  patterns = [selector] if isinstance(selector, str) else list(selector)
  try:
    compiled = [re.compile(pattern) for pattern in patterns]
  except re.error as error:
    raise ValueError(f'{selector!r} is not a regular expression, or a list of them: {error}.') from error
  return lambda name: any(pattern.search(name) for pattern in compiled)


def flatten(tree: Any) -> dict[Path, Any]:
  """The leaves of a nested dictionary by path; metadata boxes count as leaves."""
  return flax.traverse_util.flatten_dict(flax.core.unfreeze(tree))


def get(tree: Any, path: Path) -> Any:
  """The entry of a nested dictionary at a path."""
  for name in path:
    tree = tree[name]
  return tree


def _replace(tree: Any, path: Path, value: Any) -> Any:
  """A nested dictionary with one entry replaced or added; boxes and frozen dictionaries stay what they were."""
  if not path:
    return tree.replace_boxed(value) if isinstance(tree, nn.meta.AxisMetadata) else value
  name, *rest = path
  new = {name: _replace(tree.get(name), tuple(rest), value)}
  return tree.copy(new) if isinstance(tree, flax.core.FrozenDict) else {**tree, **new}
