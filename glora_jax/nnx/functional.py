"""An NNX model as a pure function of its parameters, and the layers that its call uses.

An NNX model bridged into Linen (`nnx.bridge.ToLinen`) is a Linen model to `glora_jax.adapt`. Linen
models bridged into NNX (`nnx.bridge.ToNNX`), or with parts that are, can be attached.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import nnx

from glora_jax.checks import listed, validate
from glora_jax.method.quantized import as_dequantized, is_quantized, split_quantized
from glora_jax.method.sample import Sample
from glora_jax.method.site import Site
from glora_jax.method.trace.find import Found, find
from glora_jax.nnx.owners import is_owner
from glora_jax.tree import KeyPath, by_name, differences, flatten, path_name, plain_path, update

log = logging.getLogger(__name__)

STATISTICS = 'batch_stats'  # name of their collection among the variables


def params(model: nnx.Module) -> dict[str, Any]:
  """Returns the model's `nnx.Param` values as a nested dictionary with string keys.

  Example:
    >>> import glora_jax
    >>> from flax import nnx
    >>> params = glora_jax.nnx.params(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    >>> {name: value.shape for name, value in params.items()}
    {'bias': (3,), 'kernel': (4, 3)}
  """
  require_module(model, 'params')
  quantized = {
    plain_path(path): nnx.as_pure(node.array)
    for path, node in nnx.iter_graph(model)
    if _is_of_qwix(node)  # an attribute that has variables in it
  }
  return update(nested(nnx.state(model, nnx.Param)), quantized)


def _is_of_qwix(node: Any) -> bool:
  """Whether a part of a model is the array that qwix puts in place of a parameter."""
  return is_quantized(node) and hasattr(node, 'array')


def with_params(model: nnx.Module, new: Any) -> nnx.Module:
  """Copies a model with new values for its `nnx.Param`, from `adapted.fold` for instance.

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
  validate(new, Mapping, 'new')
  check_values('new values', new, params(model), 'glora_jax.nnx.params gives')
  return Functional(model).merge({'params': new})


def check_values(what: str, new_values: Any, values: Any, source: str) -> None:
  """Raises ValueError for new values that a model does not have, or has in another shape."""
  new, old = (by_name(flatten(as_dequantized(tree))) for tree in (new_values, values))
  if problems := differences({**old, **new}, old):
    raise ValueError(
      f'The {what} do not match this model. {"; ".join(problems)}. Pass those that {source}.'
    )


def require_module(model: Any, call: str) -> None:
  """Raises TypeError unless a model is an NNX model; `call` is the name of the function."""
  if not isinstance(model, nnx.Module):
    got = f'the class {model.__name__}' if isinstance(model, type) else type(model).__name__
    raise TypeError(
      f'glora_jax.nnx.{call} needs an NNX model, got {got}; use glora_jax.adapt for Linen '
      'models, and glora_jax.adapt_function for functions of parameters and inputs.'
    )


def check_model(model: Any) -> None:
  """Raises an error for a model that cannot be attached.

  Raises:
    TypeError: it is not an NNX model.
    ValueError: it is quantized, or a part of it is already attached or has a hook that changes its
      value whenever it is read.
  """
  require_module(model, 'attach')
  for path, node in nnx.iter_graph(model):
    if is_owner(node):
      raise ValueError(
        f'This {type(model).__name__} is already attached; attach to the model that it was made '
        'from, or to the result of glora_jax.nnx.fold.'
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


class Functional:
  """An NNX model as a function of its parameters, also with the `apply` of a Linen model.

  Every call starts from the same further state: random streams, caches, counters.

  Attributes:
    graphdef: the static part of the model.
    states: its parameters, its batch statistics, and all else.
    repeated: the random streams of the model that a call has drawn from, which were warned of.
  """

  def __init__(self, model: nnx.Module):
    self.__name__ = type(model).__name__
    self.graphdef, *self.states = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    self.repeated: set[str] = set()

  def __call__(self, params: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls the model with other parameters."""
    return self.merge({'params': params})(*args, **kwargs)

  def variables(self) -> dict[str, Any]:
    """Parameters and, if there are any, batch statistics."""
    params, statistics = map(nested, self.states[:2])
    return {'params': params} | ({STATISTICS: statistics} if statistics else {})

  def merge(self, variables: Mapping[str, Any]) -> nnx.Module:
    """A model with these parameters, and these batch statistics if there are any."""
    values = variables['params'], variables.get(STATISTICS, {})
    states = [*map(_filled, self.states, values), self.states[2]]
    return nnx.merge(self.graphdef, *states, copy=True)

  def apply(
    self, variables: Mapping[str, Any], *args: Any, method: str = '__call__', **kwargs: Any
  ) -> Any:
    """Calls a method of the model with the variables' parameters and statistics.

    The log warns of random streams in the model that the call draws from.

    Raises:
      ValueError: some state has a shape and no values, or the call updates batch statistics.
    """
    model, drawn = self.merge(variables), []
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
      if isinstance(leaf.get_value(), jax.ShapeDtypeStruct):
        raise ValueError(
          f'{path_name(plain_path(path))} in {self.__name__} has only a shape, as from '
          'nnx.eval_shape; pass parameters with values, and adapt a model whose other state has '
          'values.'
        )
    for path, node in nnx.iter_graph(model):
      if isinstance(node, nnx.BatchStat | nnx.RngCount):
        name = path_name(plain_path(path))
        node.set_metadata(
          on_set_value=_OnUpdate(name, node.get_metadata('on_set_value', None), drawn)
        )
    outputs = getattr(model, method)(*args, **kwargs)
    if new := sorted({*drawn} - self.repeated):
      self.repeated.update(new)
      log.warning(
        'Dropout has the same mask in every call of a model from as_adapted, because its random '
        'streams keep their values: %s. Call model.eval() before as_adapted, let the call accept a '
        'key, or train the model with nnx.Optimizer.',
        listed(new),
      )
    return outputs


# A pure function drops what a call writes into the model. The values after a call do not show what
# it wrote, since `nnx.jit` and `nnx.remat` return all of them anew. So the variables are asked: a
# hook is called wherever the model sets one. It is compared by its path, or `nnx.jit` would trace
# the model again in every call.
@dataclasses.dataclass(frozen=True)
class _OnUpdate:
  """Hook of a variable: refuses new batch statistics, and notes that a random stream moves on."""

  path: str
  hook: Callable[[Any, Any], Any] | None  # the variable's own
  drawn: list[str] = dataclasses.field(compare=False)

  def __call__(self, variable: nnx.Variable, value: Any) -> Any:
    if isinstance(variable, nnx.BatchStat):
      raise ValueError(
        f'This call updates the batch statistics {self.path}, and a model from as_adapted would '
        'lose them. Call model.eval() before as_adapted, or train the model with nnx.Optimizer.'
      )
    self.drawn.append(self.path)
    return value if self.hook is None else self.hook(variable, value)


def nested(state: Any) -> dict[str, Any]:
  """The values of a state as nested dictionaries with names for numbers."""
  flat = {tuple(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}
  return flax.traverse_util.unflatten_dict(flat)


def _filled(state: Any, values: Mapping[str, Any]) -> Any:
  """A state with new values; variables without a new one keep theirs.

  Raises:
    ValueError: a value belongs to no variable of the state.
  """
  full_precision, packed = split_quantized(values, {})
  new = flatten(full_precision) | packed
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
    The layers, with rows in the order of the modules, the same on every backend.

  Raises:
    ValueError: `stacks` do not fit.
  """
  function = Functional(model)
  # State that is only shapes, from nnx.eval_shape, becomes zeros.
  function.states[1:] = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x,
    function.states[1:],
  )
  found = find(function, as_dequantized(params(model)), inputs, kwargs, **options)
  # A model that is one linear layer has no path; the layer has the model's name.
  named = [
    site if site.path else dataclasses.replace(site, kind=function.__name__) for site in found.sites
  ]
  return found._replace(sites=_numbered(_in_module_order(named, model)))


def _in_module_order(sites: Sequence[Site], model: nnx.Module) -> list[Site]:
  """Sites in the order of the modules that hold their kernels."""
  order = {plain_path(path): number for number, (path, _) in enumerate(nnx.iter_graph(model))}

  def place(site: Site) -> tuple[int, KeyPath]:
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
  """Traces a call of a model, which does not change; its errors pass through."""
  graphdef, state = nnx.split(model)
  sample = Sample(inputs, kwargs)

  def call(state, arrays):
    args, keywords = sample.arguments(arrays)
    return nnx.merge(graphdef, state, copy=True)(*args, **keywords)

  jax.eval_shape(call, state, sample.arrays)
