"""Finds the linear layers of a Linen model by its modules.

The model, unmodified, is traced once, so nothing is computed. In that trace every parameter is in a
`Box` that knows its path. Flax's lifted transforms (`nn.scan`, `nn.vmap`) inform a box of each axis
that they remove. So the modules that are called show the stacks of layers and the order in which
they run, and nothing is guessed from shapes. The program of the trace shows facts that no module
knows: which other matrices there are, and which layers produce the outputs.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.errors import FlaxError

from glora_jax.files import first_line
from glora_jax.method.quantized import check_unquantized
from glora_jax.method.sample import Sample
from glora_jax.method.site import (
  LINEAR_MODULES,
  TABLE,
  Layout,
  Site,
  interleave,
  linear_layout,
)
from glora_jax.method.trace.events import CONVOLUTION, NO_MODULE
from glora_jax.method.trace.find import Found, find
from glora_jax.tree import KeyPath, map_with_path

log = logging.getLogger(__name__)
# What is raised where a model wants to do something with a parameter that a `Box` does not do.
_OF_A_BOX = (AttributeError, TypeError, ValueError, FlaxError)


def discover(
  model: nn.Module,
  inputs: tuple,
  kwargs: Mapping[str, Any],
  convs: bool = False,
  embeddings: bool = False,
) -> tuple[Any, Found]:
  """Finds a model's linear layers, in the order of their first calls, and its params' shapes.

  Args:
    model: an unmodified Flax model.
    inputs: positional arguments of its call. Arrays may be `jax.ShapeDtypeStruct`; everything else
      is passed on unchanged.
    kwargs: keyword arguments of its call, likewise.
    convs: whether convolutions count as linear layers.
    embeddings: whether tables that are looked up do.

  Returns:
    The parameters as `jax.ShapeDtypeStruct`, in the model's own boxes, and the layers; from the
    program alone if the model does not run on parameters in boxes.

  Raises:
    Exception: an error of the model on these inputs, with a note that shows them.
  """
  sample, name = Sample(inputs, kwargs), type(model).__name__
  rngs = {'params': jax.random.key(0)}  # Flax draws every other stream from this one
  recorder = _Recorder()

  def initialize(arrays):
    args, keywords = sample.arguments(arrays)
    return model.init(rngs, *args, **keywords)

  def apply(params, others, /, *args, **kwargs):
    variables, mutable = {**others, 'params': params}, nn.DenyList('params')
    with nn.intercept_methods(recorder):
      outputs, _ = model.apply(variables, *args, rngs=rngs, mutable=mutable, **kwargs)
    return outputs

  apply.__name__ = name
  with sample.explained(name):
    others = dict(jax.eval_shape(initialize, sample.arrays))
  params = others.pop('params', {})
  check_unquantized(name, params)
  boxed = map_with_path(
    lambda path, leaf: Box(leaf, recorder, path, jax.tree.leaves(leaf)[0]), params
  )
  find_in = functools.partial(find, apply, convs=convs, embeddings=embeddings)
  try:
    found = find_in(boxed, (others, *inputs), kwargs)
  except _OF_A_BOX as error:  # it computes with its own variables, as `nn.WeightNorm` does
    log.info('%s: its layers are found without its modules (%s).', name, first_line(error))
    recorder = _Recorder()
    found = find_in(params, (others, *inputs), kwargs)
  return params, _by_modules(recorder, found, convs)


class _Recorder:
  """An interceptor of all module calls in a trace that records the linear ones.

  Compared by identity, so that no trace of another discovery is reused.

  Attributes:
    clock: number of module calls begun or ended so far.
    found: the linear modules in the order of their first calls, by the path of their kernel, with
      the times at which axes were removed from it.
  """

  def __init__(self):
    self.clock = 0
    self.found: dict[KeyPath, tuple[Site, tuple[int, ...]]] = {}

  def __call__(self, next_function, args, kwargs, context):
    self.clock += 1
    if context.method_name == '__call__' and isinstance(context.module, LINEAR_MODULES):
      self._record(context.module, args, kwargs)
    result = next_function(*args, **kwargs)
    self.clock += 1
    return result

  def _record(self, module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
    # A kernel outside of a box is not the model's parameter itself, as under the user's `jax.vmap`.
    # One with another shape is a part of a parameter, as a layer of a stack that the model indexes.
    # The program finds both.
    kernel, bias = (module.get_variable('params', name) for name in ('kernel', 'bias'))
    if not isinstance(kernel, Box) or kernel.path in self.found:
      return
    if kernel.unbox().shape != tuple(kernel.full.shape[axis] for axis in kernel.remaining):
      return
    local = linear_layout(module, *args, **kwargs)
    if local is None:
      return
    site = Site(
      kernel_path=kernel.path,
      bias_path=None if bias is None else bias.path,
      kernel_shape=kernel.full.shape,
      dtype=np.dtype(kernel.full.dtype),
      layout=Layout(
        stack=kernel.removed + kernel.full_axes(local.stack),
        inputs=kernel.full_axes(local.inputs),
        outputs=kernel.full_axes(local.outputs),
        bias_stack=() if bias is None else bias.removed + bias.full_axes(local.bias_stack),
      ),
      kind=type(module).__name__,
      is_convolution=isinstance(module, nn.Conv),
      is_grouped=isinstance(module, nn.Conv) and module.feature_group_count > 1,
    )
    self.found[kernel.path] = site, kernel.times


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=('value',),
  meta_fields=('recorder', 'path', 'full', 'removed', 'times'),
)
@dataclasses.dataclass(frozen=True, eq=False)
class Box(nn.meta.AxisMetadata[Any]):
  """A box around a parameter; Flax informs it of each axis that it removes.

  A model may also read a parameter out of its variables, without `self.param`, to tie it to
  something. So a box stands in for its array (`box @ x`, `box.T`, `box[0]`). An operation that a
  box does not have, such as arithmetic (`box + 1`), ends this trace, and then `discover` goes by
  the program alone.

  Attributes:
    value: the parameter, or the box that the model put around it.
    recorder: the state that all boxes of a discovery share.
    path: path of the parameter.
    full: shape and type of the parameter with all of its axes.
    removed: its axes that lifted transforms removed, outermost first.
    times: when they did, on the recorder's clock. Axes that are removed at the same time belong to
      one and the same transform.
  """

  value: Any
  recorder: _Recorder
  path: KeyPath
  full: jax.ShapeDtypeStruct
  removed: tuple[int, ...] = ()
  times: tuple[int, ...] = ()

  @property
  def remaining(self) -> list[int]:
    """The axes of the full parameter that the array still has."""
    return [axis for axis in range(len(self.full.shape)) if axis not in self.removed]

  def full_axes(self, dims: Sequence[int]) -> tuple[int, ...]:
    """Dimensions of the array as axes of the full parameter."""
    return tuple(self.remaining[dim] for dim in dims)

  def unbox(self) -> Any:
    """For Flax: the bare parameter."""
    return nn.meta.unbox(self.value)

  def replace_boxed(self, val: Any) -> Box:
    """For Flax: the same boxes around another value."""
    return dataclasses.replace(self, value=nn.meta.replace_boxed(self.value, val))

  def remove_axis(self, index: int, params: dict[Any, Any]) -> Box:
    """For Flax: a lifted transform removes an axis."""
    index %= len(self.remaining)
    return dataclasses.replace(
      self,
      value=nn.meta.remove_axis(self.value, index, params),
      removed=(*self.removed, self.remaining[index]),
      times=(*self.times, self.recorder.clock),
    )

  def add_axis(self, index: int, params: dict[Any, Any]) -> Box:
    """For Flax: a parameter leaves a lifted transform, which does not happen in a discovery."""
    return self

  __jax_array__ = unbox

  def __getitem__(self, index: Any) -> Any:
    return self.unbox()[index]

  def __iter__(self) -> Iterator[Any]:  # or Python would ask for items until there is an IndexError
    return iter(self.unbox())

  def __getattr__(self, name: str) -> Any:
    if name.startswith('__'):  # a protocol, which JAX and NumPy look for in every object
      raise AttributeError(name)
    return getattr(self.unbox(), name)


def _by_modules(recorder: _Recorder, found: Found, convs: bool) -> Found:
  """The layers found by use, as their modules describe them."""
  by_use = {site.kernel_path: site for site in found.sites}
  convolutions: list[KeyPath] = []  # none of them is adapted
  rows, numbers = collections.defaultdict(list), itertools.count()
  sites = [  # tables, which belong to no linear module, come first
    dataclasses.replace(site, rows=tuple(itertools.islice(numbers, len(site.rows))))
    for site in found.sites
    if site.kind == TABLE
  ]
  # Rows count layers in the order in which they run. Axes that were removed at the same time belong
  # to one loop, and each of its iterations runs all of these kernels before the next begins.
  looped = [
    ((site, len(times)), [*zip(times, site.stack_shape, strict=False)])
    for site, times in recorder.found.values()
  ]
  for (site, lifted), _ in interleave(looped):
    in_module = math.prod(site.stack_shape[lifted:])
    rows[site.kernel_path] += itertools.islice(numbers, in_module)
  for path, (site, _) in recorder.found.items():
    if site.is_convolution and not convs:
      convolutions.append(path)  # the program may multiply matrices, as patch embeddings do
      continue
    sites.append(dataclasses.replace(site, rows=tuple(rows[path])))
  inside = {site.kernel_path for site in sites} | {*convolutions}
  outside = [path for path in by_use if path not in inside]
  return found._replace(
    sites=tuple(sites),
    uncovered={
      **found.uncovered,
      **dict.fromkeys(convolutions, CONVOLUTION),
      **dict.fromkeys(outside, NO_MODULE),
    },
    outside=tuple(by_use[path] for path in outside),
  )
