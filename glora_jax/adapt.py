"""GLoRA on any Flax model, unmodified: discover its linear layers, carry their supports, apply subnets, fold them away.

The model knows nothing of it. The supports are an ordinary variable collection, `glora`; `apply` merges them into the
kernels either *up front* (fold inside the trace, then call the untouched model) or *lazily* (layer by layer in an
interceptor, so that only one merged kernel is alive at a time); see `merge`.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from glora_jax import merge as merging
from glora_jax import reparam
from glora_jax import space as space_lib
from glora_jax.discover import Path, Site, discover
from glora_jax.merge import Group, flatten, get
from glora_jax.space import SearchSpace

log = logging.getLogger(__name__)
DEFAULT_HEADS = r'(^|/)(head|classifier|lm_head|output_projection)$'
COLLECTION = 'glora'

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
  return attach(model, variables.get('params', {}), found, refused, space=space, select=select, heads=heads, ties=ties, merge=merge)


def attach(
    model: Any, params: Any, found: Sequence[Site], refused: Mapping[str, str] = types.MappingProxyType({}), *,
    space: SearchSpace | Mapping[str, SearchSpace], select: Selector | None, heads: Selector | None,
    ties: Sequence[Sequence[str]] = (), merge: str = 'up_front',
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
  head_paths = frozenset(path for path in params if any(is_head(_name(path[:n])) for n in range(1, len(path))))
  if heads is not None and not head_paths:
    log.info('No module of %s matches heads=%r; only supports will be trained.', name, heads)

  candidates = [site for site in found if (*site.path, 'kernel') not in head_paths]
  if not candidates and not refused:
    raise ValueError(f'{name} has no linear layer that GLoRA can adapt besides its heads (nn.Dense, nn.DenseGeneral and nn.Einsum; '
                     'convs=True adds nn.Conv).')
  spaces = dict(space) if isinstance(space, Mapping) else {'': space}
  space_of = lambda path: next((spaces[pattern] for pattern in spaces if _matcher(pattern)(path)), None)
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
      raise ValueError(f"space: the pattern '{pattern}' matches no selected linear layer of {name}; there are: {listed}.")

  groups = _number([Group(members, members[0].rows, space_of(members[0].name)) for members in _tie(chosen, ties)])
  bare = [group.name for group in groups if not group.has_bias]
  if bare:
    log.warning('No C, D, E for the %d layers without bias: %s.', len(bare), ', '.join(bare))
  layers = {}
  for group in groups:
    for index, row in group.slices():
      label = group.name + (f'[{",".join(map(str, index))}]' if index else '')
      layers[row] = space_lib.Layer(label, group.in_features, group.out_features, group.has_bias, group.space)
  spec = space_lib.Spec(tuple(layers[row] for row in range(len(layers))))
  return Adapted(model, spec, groups, head_paths, merge, {path: jax.tree.leaves(value)[0] for path, value in params.items()})


@dataclasses.dataclass(frozen=True, eq=False)
class Adapted:
  """A model with GLoRA attached; see `adapt`.

  Attributes:
    model: the untouched model.
    spec: what the genome's rows are; `len(spec)` of them.
    groups: where they are in the model.
    head_paths: paths of the parameters that are trained in full.
    merge: 'up_front' or 'lazy'.
    param_shapes: ShapeDtypeStruct of every parameter of the model, by path.
  """

  model: nn.Module
  spec: space_lib.Spec
  groups: tuple[Group, ...]
  head_paths: frozenset[Path]
  merge: str
  param_shapes: Mapping[Path, jax.ShapeDtypeStruct]

  def init(self, key: jax.Array, params: Any) -> dict[str, Any]:
    """The variables to train: `{'params': params, 'glora': supports}`; every subnet of them is the base model.

    Supports lie under their module's path (a tie's under its first member's), with the module's stack axes first, in
    `promote_types(kernel, float32)`, and in a box with matching axis names where the kernel is in one. A layer gets the same
    values whether the model is scanned or not.

    Raises:
      ValueError: `params` are not this model's; missing, unexpected and misshaped ones are named.
    """
    self._check_params(params)
    supports = {}
    for group in self.groups:
      keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.array(group.rows))
      new = functools.partial(
          reparam.init_supports, in_features=group.in_features, out_features=group.out_features, ranks=group.space.ranks,
          bias=group.has_bias, tied=group.space.tied, dtype=jnp.promote_types(group.dtype, jnp.float32))
      stacked = jax.vmap(new)(keys)
      shaped = {name: value.reshape(group.stack_shape + value.shape[1:]) for name, value in stacked.items()}
      boxed = _boxed(shaped, get(params, group.path)['kernel'], group.members[0])
      supports = merging.replace(supports, group.path, boxed)
    return {'params': params, COLLECTION: supports}

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
    if np.ndim(genome) != 2:
      raise ValueError(f'apply takes one genome [{len(self.spec)}, 5], not {np.shape(genome)}; use jax.vmap over a population.')
    return self._run(variables, jnp.asarray(genome), merge or self.merge, None, args, kwargs)

  def fix(self, genome: Any) -> Subnet:
    """The subnet of one concrete genome [rows, 5]: only the terms that it uses, in the cheapest form."""
    space_lib.check_genome(self.spec, genome)
    return Subnet(self, space_lib.canonicalize(self.spec, np.asarray(genome)))

  def fold(self, variables: Mapping[str, Any], genome: Any) -> Any:
    """Plain params for the untouched model: the genome's supports merged into the kernels and biases, all else as it was."""
    space_lib.check_genome(self.spec, genome)
    _check_variables(variables)
    return merging.fold(self.groups, variables['params'], variables[COLLECTION], jnp.asarray(genome))

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
    """Inverse of `split`, also of a `Subnet`'s."""
    both = lambda name: flax.traverse_util.unflatten_dict({**flatten(frozen.get(name, {})), **flatten(trainable.get(name, {}))})
    return {**frozen, **trainable, 'params': both('params'), COLLECTION: both(COLLECTION)}

  def summary(self, genome: Any = None) -> str:
    """A table of the adapted layers: sizes, alleles on offer (or those of a genome), trained and total parameters."""
    chosen = self.spec.num_codes - 1 if genome is None else np.asarray(genome)
    space_lib.check_genome(self.spec, chosen)
    rows = [('layer', 'in', 'out', *space_lib.TENSORS, 'trained', 'total')]
    for row, layer in enumerate(self.spec):
      codes = [layer.offered(t) if genome is None else (chosen[row, i],) for i, t in enumerate(space_lib.TENSORS)]
      names = [' '.join(layer.space.names(t)[code] for code in of) for t, of in zip(space_lib.TENSORS, codes, strict=True)]
      trained = sum(layer.costs(t)[codes[i][-1]] for i, t in enumerate(space_lib.TENSORS))
      total = layer.in_features * layer.out_features + layer.bias * layer.out_features
      rows.append((layer.name, f'{layer.in_features:,}', f'{layer.out_features:,}', *names, f'{trained:,}', f'{total:,}'))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = ['  '.join(cell.rjust(w) if i in (1, 2, 8, 9) else cell.ljust(w)
                         for i, (cell, w) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]
    heads = sum(self.param_shapes[path].size for path in self.head_paths)
    total = sum(shape.size for shape in self.param_shapes.values())
    trained = self.count_params(chosen)
    what = 'the largest subnet' if genome is None else 'this subnet'
    share = f'{100 * (trained + heads) / total:.2f}% of the {total:,} of the base model'
    return '\n'.join([*aligned, f'{what} trains {trained:,} parameters, and the heads {heads:,}: {share}'])

  def _run(self, variables, genome, merge, fixed, args, kwargs):
    _check_variables(variables)
    rest = {name: value for name, value in variables.items() if name not in ('params', COLLECTION)}
    if merge == 'up_front':
      params = merging.fold(self.groups, variables['params'], variables[COLLECTION], genome)
      result = self.model.apply({'params': params, **rest}, *args, **kwargs)
    else:
      grafted, forms = merging.graft(self.groups, variables['params'], variables[COLLECTION], genome, fixed)
      with nn.intercept_methods(functools.partial(merging.intercept, forms)):
        result = self.model.apply({'params': grafted, **rest}, *args, **kwargs)
    if kwargs.get('mutable', False) is not False and 'params' in result[1]:
      result[1]['params'] = variables['params']  # the base's own: merged values are no update of it
    return result

  def _check_params(self, params):
    named = lambda flat: {_name(path): nn.meta.unbox(value) for path, value in flat.items()}
    if problems := merging.differences(named(flatten(params)), named(self.param_shapes)):
      raise ValueError(f'These params are not those of the adapted {type(self.model).__name__}. {"; ".join(problems)}.')


@dataclasses.dataclass(frozen=True, eq=False)
class Subnet:
  """One subnet of an adapted model with its genome fixed: GLoRA's parametrization without the search.

  Its `apply` computes only the terms that are there. In an `nn.Dense` whose A is not LoRA no merged kernel is formed: a LoRA
  term of B is two thin products, a scale acts on the output, and no gradient has the kernel's size. Where some A is LoRA, kernels must be
  merged, as the adapted model merges them.

  Attributes:
    adapted: the adapted model.
    genome: canonical, int8 [rows, 5].
  """

  adapted: Adapted
  genome: np.ndarray

  def apply(self, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    """What `adapted.apply(..., genome=genome)` returns, within rounding."""
    thin = isinstance(self.adapted.model, nn.Module) and self.genome[:, 0].max() < 3  # an NNX model has no interceptors
    merge = 'lazy' if thin else self.adapted.merge
    return self.adapted._run(variables, jnp.asarray(self.genome), merge, self.genome, args, kwargs)

  def fold(self, variables: Mapping[str, Any]) -> Any:
    """Plain params for the untouched model."""
    return self.adapted.fold(variables, self.genome)

  def count_params(self) -> int:
    """Trained parameters, heads not counted."""
    return self.adapted.count_params(self.genome)

  def split(self, variables: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trainable, frozen) as `Adapted.split`, with only the supports that the genome reads among the trainable."""
    trainable, frozen = self.adapted.split(variables)
    used = set()
    for group in self.adapted.groups:
      for row in group.rows:
        parts = reparam.used_parts(self.genome[row].tolist(), group.space.ranks, group.has_bias, group.space.tied)
        used |= {(*group.path, name) for name in parts}
    supports = flatten(trainable[COLLECTION])
    part = lambda reads: flax.traverse_util.unflatten_dict({p: v for p, v in supports.items() if (p in used) == reads})
    return {**trainable, COLLECTION: part(True)}, {**frozen, COLLECTION: part(False)}

  def join(self, trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `split`."""
    return self.adapted.join(trainable, frozen)


def _tie(sites: list[Site], ties: Sequence[Sequence[str]]) -> list[tuple[Site, ...]]:
  """The sites one by one or, where a tie says so, together at the first member's place."""
  by_name, tied = {site.name: site for site in sites}, {}
  for tie in ties:
    ends = tuple(tie)
    heads_of_ties = [site for site in sites if site.name == ends[0] or site.name.endswith(f'/{ends[0]}')]
    if len(ends) < 2 or len(set(ends)) < len(ends) or not heads_of_ties:
      raise ValueError(f'The tie {ends} must list two or more different path ends of selected layers; there are: {", ".join(by_name)}.')
    for first in heads_of_ties:
      names = [first.name.removesuffix(ends[0]) + end for end in ends]
      if missing := [name for name in names if name not in by_name]:
        raise ValueError(f'The tie {ends} finds {first.name}, but beside it no selected layer {", ".join(missing)}.')
      members = tuple(by_name[name] for name in names)
      for site in members[1:]:
        for what, mine, others in (
            ('in', site.in_features, first.in_features), ('stack', site.stack_shape, first.stack_shape),
            ('bias', site.bias_shape is not None, first.bias_shape is not None), ('input array', site.input_id, first.input_id)):
          if mine != others:
            raise ValueError(f'The tie {ends} does not fit: {site.name} and {first.name} do not have the same {what}.')
      for site in members:
        if site.name in tied:
          raise ValueError(f'{site.name} is in two ties; a layer can be in one.')
        tied[site.name] = members
  done, result = set(), []
  for site in sites:
    members = tied.get(site.name, (site,))
    if site.name not in done:
      result.append(members)
      done |= {member.name for member in members}
  return result


def _number(groups: list[Group]) -> tuple[Group, ...]:
  """Rows counted among the groups alone, in the same order."""
  earliest = lambda group: [min(rows) for rows in zip(*(site.rows for site in group.members), strict=True)]
  order = {row: number for number, row in enumerate(sorted(row for group in groups for row in earliest(group)))}
  return tuple(dataclasses.replace(group, rows=tuple(order[row] for row in earliest(group))) for group in groups)


def _boxed(supports: dict[str, jax.Array], kernel: Any, site: Site) -> dict[str, Any]:
  """Supports in a box like the kernel's, if it has one: the names of the axes that they share with it, None for the others."""
  if not isinstance(kernel, nn.Partitioned):
    return supports
  names = tuple(kernel.names) + (None,) * (len(site.kernel_shape) - len(kernel.names))
  single = lambda dims: names[dims[0]] if len(dims) == 1 else None  # flattened axes have no one name
  fan_in, fan_out = single(site.layout.inputs), single(site.layout.outputs)
  stack = tuple(names[d] for d in site.layout.stack)
  axes = {'down': (fan_in, None), 'up': (None, fan_out), 'C_up': (None, None), 'C_vector': (fan_in,), 'constant': (None,)}
  of = lambda name: axes.get(name, axes.get(name.split('_')[-1], (fan_out,)))
  return {name: kernel.replace(value=value, names=stack + of(name)) for name, value in supports.items()}


def _name(path: Path) -> str:
  """'/'-joined; parts may be integers, the items of a bridged NNX model's lists."""
  return '/'.join(map(str, path))


def _check_variables(variables):
  for name in ('params', COLLECTION):
    if name not in variables:
      raise ValueError(f"The variables have no '{name}' (they have {', '.join(variables) or 'nothing'}); pass what init returned.")


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
