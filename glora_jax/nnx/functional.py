"""GLoRA on Flax NNX models by pure functions: `nnx.split`, merge the supports, `nnx.merge`.

All state but parameters stands still. A model whose state moves (dropout, BatchNorm, a cache) is
attached (`glora_jax.nnx.attach`).

An NNX model bridged into linen (`nnx.bridge.ToLinen`) is a linen model to `glora_jax.adapt`, too.
Linen models bridged into NNX (`nnx.bridge.ToNNX`), whole or as parts, are adapted here as they are.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import logging
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from glora_jax.limits import check_type
from glora_jax.method.adapt import DEFAULT_HEADS, assemble
from glora_jax.method.adapted import Adapted
from glora_jax.method.presets import Structure, read_structure, space_for
from glora_jax.method.quantized import as_computed_with, is_quantized, set_apart
from glora_jax.method.sample import Sample
from glora_jax.method.selection import Selection, Selector
from glora_jax.method.site import Layout, Site, axis_count
from glora_jax.method.space import SearchSpace
from glora_jax.method.trace.events import NO_SAMPLE
from glora_jax.method.trace.find import Found, find
from glora_jax.nnx.owners import is_owner
from glora_jax.tree import Path, differences, flatten, path_name, plain_path, replace

log = logging.getLogger(__name__)

STATISTICS = 'batch_stats'  # name of their collection among the variables


def adapt(
  model: nnx.Module,
  *sample_inputs: Any,
  structure: Structure | None = None,
  space: SearchSpace | Mapping[str, SearchSpace] | None = None,
  scale: float | None = None,
  select: Selector | None = None,
  heads: Selector | None = DEFAULT_HEADS,
  ties: Sequence[Sequence[str]] = (),
  convs: bool = False,
  embeddings: bool = False,
  split: Mapping[str, int] = types.MappingProxyType({}),
  **kwargs: Any,
) -> Adapted:
  """Attaches GLoRA to an unmodified NNX model, as pure functions of its parameters.

  With sample inputs the linear layers are found by how the model uses its parameters, in whatever
  modules (`glora_jax.adapt_function`). Without, they are its `nnx.Linear` and `nnx.LinearGeneral`.
  Rows follow the order of the module tree (names sorted), which need not be that of execution. All
  state but `nnx.Param` (batch statistics, random streams, caches) keeps its current values, and the
  log warns of it.

  Args:
    model: any NNX model; it is not changed.
    *sample_inputs: example inputs; only shapes and dtypes matter.
    structure: the structure to train; see `glora_jax.adapt`.
    space: the alleles on offer; see `glora_jax.adapt`.
    scale: factor on LoRAs of B; see `glora_jax.adapt`.
    select: which linear layers to adapt, by the attributes' names joined by '/'; see
      `glora_jax.adapt`.
    heads: which modules to train in full, in the same way; None for none.
    ties: layers to adapt as one; see `glora_jax.adapt`. Needs sample inputs.
    convs: whether kernels of convolutions count as linear layers. Needs sample inputs.
    embeddings: whether tables that are looked up do; see `glora_jax.adapt`. Needs sample inputs.
    split: axes of outputs to treat as stacks; see `glora_jax.adapt_function`.
    **kwargs: further arguments of the call.

  Returns:
    The adapted model, whose `apply` calls the model.

  Raises:
    ValueError: the model is already attached, has no linear layer, none that `select` or `space`
      matches, or, without sample inputs, one with a stacked kernel. Errors of the model itself on
      the sample inputs pass through.

  Example:
    >>> import glora_jax, jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> model, x = nnx.Linear(4, 3, rngs=nnx.Rngs(0)), jnp.ones((2, 4))
    >>> model = nnx.Sequential(model)
    >>> adapted = glora_jax.nnx.adapt(model, x, structure='lora:2')
    >>> variables = adapted.init(jax.random.key(0), glora_jax.nnx.params(model))
    >>> outputs = adapted.apply(variables, x)  # the model itself is not changed
    >>> folded = glora_jax.nnx.with_params(model, adapted.fold(variables))
    >>> type(folded).__name__, bool(jnp.allclose(folded(x), outputs))
    ('Sequential', True)
  """
  structure = read_structure(structure)
  selection = Selection(space_for(structure, space), scale, select, heads, ties, convs, embeddings)
  check_model(model, 'adapt')
  frozen = Frozen(model)
  if sample_inputs or kwargs:
    found = by_use(model, sample_inputs, kwargs, convs=convs, embeddings=embeddings, split=split)
  elif ties or convs or embeddings or split:
    raise ValueError(
      'ties, convs, embeddings and split need sample inputs, which show how the parameters are '
      'used; call glora_jax.nnx.adapt(model, *inputs, ...).'
    )
  else:
    found = by_class(model)
    if not found.sites and not found.refused:
      raise ValueError(
        f'{frozen.__name__} has no nnx.Linear or nnx.LinearGeneral to adapt; with sample inputs, '
        'glora_jax.nnx.adapt(model, *inputs), other layers are found too.'
      )
  further = (nnx.to_flat_state(state) for state in frozen.states[1:])
  if kinds := collections.Counter(type(leaf).__name__ for flat in further for _, leaf in flat):
    log.warning(
      '%s has state that no call updates: %s. If it has to change, as in dropout, BatchNorm or a '
      'cache, use glora_jax.nnx.attach.',
      frozen.__name__,
      ', '.join(f'{number} {kind}' for kind, number in kinds.items()),
    )
  return assemble(frozen, as_computed_with(params(model)), found, selection, structure)


def params(model: nnx.Module) -> dict[str, Any]:
  """The model's `nnx.Param` values as a nested dictionary with string keys.

  Example:
    >>> import glora_jax
    >>> from flax import nnx
    >>> params = glora_jax.nnx.params(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    >>> {name: value.shape for name, value in params.items()}
    {'bias': (3,), 'kernel': (4, 3)}
  """
  require_module(model, 'params')
  found = nested(nnx.state(model, nnx.Param))
  for path, node in nnx.iter_graph(model):
    if _is_of_qwix(node):  # an attribute that has variables in it
      found = replace(found, plain_path(path), nnx.as_pure(node.array))
  return found


def _is_of_qwix(node: Any) -> bool:
  """Whether a part of a model is what qwix puts in the place of a parameter."""
  return is_quantized(node) and hasattr(node, 'array')


def with_params(model: nnx.Module, new: Any) -> nnx.Module:
  """A copy of a model with other values for its `nnx.Param`, those of `adapted.fold` for instance.

  Args:
    model: any NNX model; it is not changed.
    new: values as a nested dictionary with string keys, as `params` returns them.

  Returns:
    A model of the same class.

  Raises:
    ValueError: the model has no parameter of a name, or one of another shape, or the values are not
      a dictionary.

  Example:
    >>> import glora_jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    >>> new = {'kernel': jnp.ones((4, 3)), 'bias': jnp.zeros(3)}
    >>> glora_jax.nnx.with_params(model, new)(jnp.ones(4)).tolist()
    [4.0, 4.0, 4.0]
  """
  check_type(new, Mapping, 'new')
  check_values('new values', new, params(model), 'glora_jax.nnx.params gives')
  return Frozen(model).merged({'params': new})


def check_values(what: str, given: Any, own: Any, source: str) -> None:
  """Raises ValueError for values that a model does not have, or has in another shape."""
  new, old = (
    {path_name(path): x for path, x in flatten(as_computed_with(tree)).items()}
    for tree in (given, own)
  )
  if problems := differences({**old, **new}, old):
    raise ValueError(
      f'The {what} do not match this model. {"; ".join(problems)}. Pass those that {source}.'
    )


def require_module(model: Any, call: str) -> None:
  """Raises ValueError unless a model is one of NNX, as a call of `glora_jax.nnx` takes it."""
  if not isinstance(model, nnx.Module):
    given = f'the class {model.__name__}' if isinstance(model, type) else type(model).__name__
    raise ValueError(
      f'glora_jax.nnx.{call} takes an NNX model, got {given}; use glora_jax.adapt for Linen '
      'models, and glora_jax.adapt_function for functions of parameters and inputs.'
    )


def check_model(model: Any, call: str) -> None:
  """Raises ValueError unless a model can be adapted.

  It cannot where it is none of NNX, is quantized, or a part of it is attached or changes whenever
  it is read.
  """
  require_module(model, call)
  for path, node in nnx.iter_graph(model):
    if is_owner(node):
      raise ValueError(
        f'This {type(model).__name__} is already attached; attach to the model that it was made '
        'from, or to what glora_jax.nnx.fold returns.'
      )
    if isinstance(node, (nnx.Param, nnx.BatchStat)) and (
      type(node).get_value is not nnx.Variable.get_value or node.has_metadata('on_get_value')
    ):
      raise ValueError(
        f'{path_name(plain_path(path))} has its own get_value or on_get_value hook, which changes '
        'it whenever it is read; do that where the model uses it.'
      )
    if _is_of_qwix(node):
      name = type(model).__name__
      raise ValueError(
        f'{name} is a quantized model of qwix; adapt the model that it was made from, with '
        f'glora_jax.nnx.params of this {name} as its parameters (glora_jax.nnx.with_params).'
      )


class Frozen:
  """An NNX model with the `apply` of a linen one, and as a function of its parameters.

  All its further state stays what it is at the beginning, at every call.

  Attributes:
    graphdef: what is static of the model.
    states: its parameters, its batch statistics, and all else.
  """

  def __init__(self, model: nnx.Module):
    self.__name__ = type(model).__name__
    self.graphdef, *self.states = nnx.split(model, nnx.Param, nnx.BatchStat, ...)

  def __call__(self, params: Any, *args: Any, **kwargs: Any) -> Any:
    """What the model's call returns with other parameters."""
    return self.merged({'params': params})(*args, **kwargs)

  def variables(self) -> dict[str, Any]:
    """Parameters and, where there are any, batch statistics."""
    params, statistics = map(nested, self.states[:2])
    return {'params': params} | ({STATISTICS: statistics} if statistics else {})

  def merged(self, variables: Mapping[str, Any]) -> nnx.Module:
    """The model with other values for its parameters, and for its batch statistics if given."""
    values = variables['params'], variables.get(STATISTICS, {})
    states = [*map(_filled, self.states, values), self.states[2]]
    return nnx.merge(self.graphdef, *states, copy=True)

  def apply(
    self, variables: Mapping[str, Any], *args: Any, method: str = '__call__', **kwargs: Any
  ) -> Any:
    """What a method of the model returns with the variables' parameters and statistics.

    Raises:
      ValueError: of some state there is only the shape.
    """
    merged = self.merged(variables)
    for path, leaf in nnx.to_flat_state(nnx.state(merged)):
      if isinstance(leaf.get_value(), jax.ShapeDtypeStruct):
        raise ValueError(
          f'{path_name(plain_path(path))} in {self.__name__} has only a shape, as from '
          'nnx.eval_shape; pass parameters with values, and adapt a model whose other state has '
          'values.'
        )
    return getattr(merged, method)(*args, **kwargs)


def nested(state: Any) -> dict[str, Any]:
  """The values of a state as nested dictionaries with names for numbers."""
  flat = {tuple(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}
  return flax.traverse_util.unflatten_dict(flat)


def _filled(state: Any, values: Mapping[str, Any]) -> Any:
  """A state with other values, where there are any.

  Raises:
    ValueError: a value is none of the state's.
  """
  whole, packed = set_apart(values, {})
  new = flatten(whole) | packed
  leaves = [
    (path, leaf.replace(new.pop(plain_path(path), leaf.get_value())))
    for path, leaf in nnx.to_flat_state(state)
  ]
  if new:
    raise ValueError(
      f'The model has no {", ".join(map(path_name, new))}; use the names that glora_jax.nnx.params '
      'gives.'
    )
  return nnx.from_flat_state(leaves)


def by_use(
  model: nnx.Module,
  inputs: tuple,
  kwargs: Mapping[str, Any],
  **options: Any,
) -> Found:
  """The linear layers of a model's call; see `glora_jax.method.trace.find.find`, also for options.

  Returns:
    What was found, with rows in the order of the modules, which depends on no backend.

  Raises:
    ValueError: `split` does not fit.
  """
  frozen = Frozen(model)
  # Where nnx.eval_shape has left the shape of other state alone, it is zeros.
  frozen.states[1:] = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x,
    frozen.states[1:],
  )
  found = find(frozen, as_computed_with(params(model)), inputs, kwargs, **options)
  # A model that is one linear layer gives it its name.
  named = [
    site if site.path else dataclasses.replace(site, kind=frozen.__name__) for site in found.sites
  ]
  return found._replace(sites=_numbered(_in_module_order(named, model)))


def _in_module_order(sites: Sequence[Site], model: nnx.Module) -> list[Site]:
  """Sites in the order of the modules that hold their kernels."""
  order = {plain_path(path): number for number, (path, _) in enumerate(nnx.iter_graph(model))}

  def place(site: Site) -> tuple[int, Path]:
    owners = (site.kernel_path[:end] for end in range(len(site.kernel_path) - 1, -1, -1))
    return next(order[owner] for owner in owners if owner in order), site.kernel_path

  return sorted(sites, key=place)


def _numbered(sites: Sequence[Site]) -> tuple[Site, ...]:
  """Sites with the rows of their layers, one site after another."""
  rows = itertools.count()
  return tuple(
    dataclasses.replace(site, rows=tuple(itertools.islice(rows, math.prod(site.stack_shape))))
    for site in sites
  )


def trace_call(model: nnx.Module, inputs: tuple, kwargs: Mapping[str, Any]) -> None:
  """Traces a call of a model, which stays as it is; its errors pass through."""
  graphdef, state = nnx.split(model)
  sample = Sample(inputs, kwargs)

  def call(state, arrays):
    args, keywords = sample.arguments(arrays)
    return nnx.merge(graphdef, state, copy=True)(*args, **keywords)

  jax.eval_shape(call, state, sample.arrays)


def by_class(model: nnx.Module) -> Found:
  """The `nnx.Linear` and `nnx.LinearGeneral` of a model, and why others cannot be adapted."""
  sites: list[Site] = []
  refused: dict[Path, str] = {}
  # A parameter of several modules is there once, as the first's.
  present = flatten(as_computed_with(params(model)))
  for keys, module in nnx.iter_graph(model):
    path = plain_path(keys)
    kernel_path, bias_path = (*path, 'kernel'), (*path, 'bias')
    if not isinstance(module, (nnx.Linear, nnx.LinearGeneral)) or kernel_path not in present:
      continue
    kernel = present[kernel_path]
    dims = tuple(range(kernel.ndim))
    stack = len(getattr(module, 'batch_axis', {}) or {})
    inputs_end = stack + axis_count(module.in_features)
    if kernel.ndim != inputs_end + axis_count(module.out_features):
      refused[kernel_path] = (
        f'its kernel {kernel.shape} is stacked, and only sample inputs show how '
        '(glora_jax.nnx.adapt(model, *inputs))'
      )
      continue
    sites.append(
      Site(
        kernel_path,
        bias_path=None if present.get(bias_path) is None else bias_path,
        kernel_shape=kernel.shape,
        dtype=np.dtype(kernel.dtype),
        layout=Layout(dims[:stack], dims[stack:inputs_end], dims[inputs_end:], dims[:stack]),
        kind=type(module).__name__,
      )
    )
  biases = {site.bias_path for site in sites}
  matrices = [path for path, value in present.items() if value.ndim > 1 and path not in biases]
  return Found(_numbered(sites), dict.fromkeys(matrices, NO_SAMPLE), refused=refused)
