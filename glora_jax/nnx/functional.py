"""GLoRA on Flax NNX models by pure functions: `nnx.split`, merge the supports, `nnx.merge`.

All state but parameters stands still. A model whose state moves (dropout, BatchNorm, a cache) is
attached (`glora_jax.nnx.attach`).

An NNX model bridged into linen (`nnx.bridge.ToLinen`) is a linen model to `glora_jax.adapt`, too.
Linen models bridged into NNX (`nnx.bridge.ToNNX`), whole or as parts, are adapted here as they are.
"""

from __future__ import annotations

import logging
import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from glora_jax.limits import check_type
from glora_jax.method.adapt import DEFAULT_HEADS, assemble
from glora_jax.method.adapted import Adapted
from glora_jax.method.quantized import check_unquantized
from glora_jax.method.selection import Selection, Selector
from glora_jax.method.site import Layout, Site, axis_count
from glora_jax.method.space import SearchSpace
from glora_jax.method.structures import Structure, read_structure, space_for
from glora_jax.method.trace.events import NO_SAMPLE
from glora_jax.method.trace.find import Found
from glora_jax.nnx.finding import find, numbered
from glora_jax.nnx.frozen import Frozen, nested, require_module
from glora_jax.nnx.owners import check_plain
from glora_jax.tree import Path, flatten, path_name, plain_path

log = logging.getLogger(__name__)


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
  split: Mapping[str, int] = types.MappingProxyType({}),
  **kwargs: Any,
) -> Adapted:
  """Attaches GLoRA to an unmodified NNX model, as pure functions of its parameters.

  With sample inputs the linear layers are found by how the model uses its parameters, whatever
  modules these lie in (`glora_jax.adapt_function`). Without, they are its `nnx.Linear` and
  `nnx.LinearGeneral`. Rows follow the order of the module tree (names sorted), which need not be
  that of execution. All state but `nnx.Param` (batch statistics, random streams, caches) stays what
  it is now, which the log says.

  Args:
    model: any NNX model; it is not changed.
    *sample_inputs: what the model is called with; only shapes and dtypes matter.
    structure: the one structure that is to be trained; see `glora_jax.adapt`.
    space: the alleles on offer; see `glora_jax.adapt`.
    scale: what LoRAs of B are multiplied by; see `glora_jax.adapt`.
    select: which linear layers to adapt, by the attributes' names joined by '/'; see
      `glora_jax.adapt`.
    heads: which modules to train in full, likewise; None for none.
    ties: layers to adapt as one; see `glora_jax.adapt`. They need sample inputs.
    convs: whether kernels of convolutions count as linear layers. It needs sample inputs.
    split: axes of outputs that are to be stacks; see `glora_jax.adapt_function`.
    **kwargs: further arguments of the call.

  Returns:
    The adapted model, whose `apply` calls the model.

  Raises:
    ValueError: the model is attached already, has no linear layer, none that `select` or `space`
      matches, or, without sample inputs, one whose kernel is stacked. What the model itself raises
      on the sample inputs passes through.

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
  selection = Selection(space_for(structure, space, scale), select, heads, ties, convs)
  require_module(model, 'adapt')
  check_plain(model)
  check_unquantized(type(model).__name__, model)
  frozen = Frozen(model)
  if sample_inputs or kwargs:
    found = find(model, sample_inputs, kwargs, convs=convs, split=split)
  elif ties or convs or split:
    raise ValueError(
      'ties, convs and split need sample inputs, which show how the parameters are used; call '
      'glora_jax.nnx.adapt(model, *inputs, ...).'
    )
  else:
    found = _by_class(model)
    if not found.sites and not found.refused:
      raise ValueError(
        f'{frozen.__name__} has no nnx.Linear or nnx.LinearGeneral to adapt; with sample inputs, '
        'glora_jax.nnx.adapt(model, *inputs), other layers are found too.'
      )
  _log_state(frozen)
  return assemble(frozen, params(model), found, selection).fix(structure)


def _log_state(frozen: Frozen) -> None:
  """Says which state stands still."""
  if kinds := frozen.kinds_of_state():
    log.warning(
      '%s has state that stays what it is now, at every call: %s. Where it should move, as in '
      'dropout, BatchNorm or a cache, take glora_jax.nnx.attach.',
      frozen.__name__,
      ', '.join(f'{number} {kind}' for kind, number in kinds.items()),
    )


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
  return nested(nnx.state(model, nnx.Param))


def with_params(model: nnx.Module, new: Any) -> nnx.Module:
  """A copy of a model with other values for its `nnx.Param`, those of `adapted.fold` for instance.

  Args:
    model: any NNX model; it is not changed.
    new: values as a nested dictionary with string keys, as `params` returns them.

  Returns:
    A model of the same class.

  Raises:
    ValueError: the model has no parameter of a name, or one of another shape, or the values are no
      dictionary.

  Example:
    >>> import glora_jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    >>> new = {'kernel': jnp.ones((4, 3)), 'bias': jnp.zeros(3)}
    >>> glora_jax.nnx.with_params(model, new)(jnp.ones(4)).tolist()
    [4.0, 4.0, 4.0]
  """
  check_type(new, Mapping, 'new')
  shapes = {path_name(path): value.shape for path, value in flatten(params(model)).items()}
  for path, value in flatten(new).items():
    name, shape = path_name(path), np.shape(value)
    if shapes.get(name, shape) != shape:
      raise ValueError(
        f'The new {name} is {shape} and should be {shapes[name]}; pass values of the shapes that '
        'glora_jax.nnx.params gives.'
      )
  return Frozen(model).merged({'params': new})


def _by_class(model: nnx.Module) -> Found:
  """The `nnx.Linear` and `nnx.LinearGeneral` of a model, and why others cannot be adapted."""
  sites: list[Site] = []
  refused: dict[Path, str] = {}
  present = flatten(params(model))  # a parameter of several modules is there once, as the first's
  for keys, module in nnx.iter_graph(model):
    if isinstance(module, (nnx.Linear, nnx.LinearGeneral)):
      path = plain_path(keys)
      site = _site(path, module)
      if site is None:
        refused[*path, 'kernel'] = (
          f'its kernel {module.kernel.get_value().shape} is stacked, and how, sample inputs show '
          '(glora_jax.nnx.adapt(model, *inputs))'
        )
      elif site.kernel_path in present:
        own_bias = site.bias_path is None or site.bias_path in present
        sites.append(site if own_bias else site.without_bias())
  biases = {site.bias_path for site in sites}
  matrices = [path for path, value in present.items() if value.ndim > 1 and path not in biases]
  found = tuple(numbered(sites))
  return Found(found, uncovered=dict.fromkeys(matrices, NO_SAMPLE), refused=refused)


def _site(path: Path, module: Any) -> Site | None:
  """An NNX linear module; None if its kernel is stacked."""
  kernel = module.kernel.get_value()
  bias = None if module.bias is None else module.bias.get_value()
  stack = len(getattr(module, 'batch_axis', {}) or {})
  inputs_end = stack + axis_count(module.in_features)
  if kernel.ndim != inputs_end + axis_count(module.out_features):
    return None
  dims = tuple(range(kernel.ndim))
  layout = Layout(dims[:stack], dims[stack:inputs_end], dims[inputs_end:], dims[:stack])
  return Site(
    kernel_path=(*path, 'kernel'),
    bias_path=None if bias is None else (*path, 'bias'),
    kernel_shape=kernel.shape,
    dtype=np.dtype(kernel.dtype),
    layout=layout,
    kind=type(module).__name__,
  )
