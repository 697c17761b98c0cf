"""Runs a Linen model by its modules: finds its linear layers, and calls them with their adapter.

Discovery. The model, unmodified, is traced once, so nothing is computed. In that trace every
parameter is in a `Box` that knows its path. Flax's lifted transforms (`nn.scan`, `nn.vmap`) inform
a box of each axis that they remove. So the modules that are called show the stacks of layers and
the order in which they run, and nothing is guessed from shapes. The program of the trace shows
facts that no module knows: whether a kernel is also used outside of its module's call, which other
matrices there are, and which layers produce the outputs.

A call. `graft` puts a layer's adapter into the params, next to its kernel, so that lifted
transforms slice both alike. `intercept` finds it there when the module is called. So only one
merged kernel is alive at a time.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.files import first_line
from glora_jax.method import equation
from glora_jax.method.adapter import adapter_shapes
from glora_jax.method.groups import Group
from glora_jax.method.quantized import check_unquantized
from glora_jax.method.rules import fold, merge_biases, merge_kernels
from glora_jax.method.sample import Sample
from glora_jax.method.site import (
  LINEAR_MODULES,
  TABLE,
  Layout,
  Site,
  align_stack,
  interleave,
  linear_layout,
)
from glora_jax.method.trace.events import CONVOLUTION, NO_MODULE
from glora_jax.method.trace.find import Found, find
from glora_jax.tree import KeyPath, map_with_path, update

log = logging.getLogger(__name__)
_KEY = '_glora'  # name of the arrays next to the kernel among a linear module's params


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
  except Exception as error:  # it computes with its own variables, as `nn.WeightNorm` does
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
    shared: paths of the modules whose parameters were also read without `self.param`.
  """

  def __init__(self):
    self.clock = 0
    self.found: dict[KeyPath, tuple[Site, tuple[int, ...]]] = {}
    self.shared: set[KeyPath] = set()

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
      lifts=kernel.removed,
      kind=type(module).__name__,
      is_convolution=isinstance(module, nn.Conv),
      is_grouped=isinstance(module, nn.Conv) and module.feature_group_count > 1,
      shared=kernel.unbox().dtype != kernel.full.dtype,
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
  something. So a box stands in for its array (`box @ x`, `box.T`, `box[0]`), and records that it
  was read: a kernel that others read cannot be merged in its module alone. An operation that a box
  does not have, such as arithmetic (`box + 1`), ends this trace, and `discover` uses the program
  alone.

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

  def read(self) -> Any:
    """The bare parameter, for a model that reads it without `self.param`."""
    self.recorder.shared.add(self.path[:-1])
    return self.unbox()

  __jax_array__ = read

  def __getitem__(self, index: Any) -> Any:
    return self.read()[index]

  def __getattr__(self, name: str) -> Any:
    if name.startswith('__'):  # a protocol, which JAX and NumPy look for in every object
      raise AttributeError(name)
    return getattr(self.read(), name)


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
    (site, [*zip(times, site.stack_shape, strict=False)]) for site, times in recorder.found.values()
  ]
  for site, _ in interleave(looped):
    in_module = math.prod(site.stack_shape[len(site.lifts) :])
    rows[site.kernel_path] += itertools.islice(numbers, in_module)
  for path, (site, _) in recorder.found.items():
    if site.is_convolution and not convs:
      convolutions.append(path)  # the program may multiply matrices, as patch embeddings do
      continue
    # An adapter can be next to a kernel only if the module's product alone uses the kernel. A
    # change on its way (`nn.map_variables`: a mask, a factor, a type) would also change the
    # adapter, and a sum of squares over all parameters would also add up the adapter.
    use = by_use.get(path)
    shared = site.shared or path[:-1] in recorder.shared or use is None or use.shared
    if use is not None:
      unlike = set(site.layout.inputs) ^ set(use.layout.inputs)
      shared |= any(site.kernel_shape[axis] > 1 for axis in unlike)  # of size 1 it may be either
    sites.append(dataclasses.replace(site, rows=tuple(rows[path]), shared=shared))
  inside = {site.kernel_path for site in sites} | {*convolutions}
  outside = [path for path in by_use if path not in inside]
  return found._replace(
    sites=tuple(sites),
    uncovered={
      **found.uncovered,
      **dict.fromkeys(convolutions, CONVOLUTION),
      **dict.fromkeys(outside, NO_MODULE),
    },
    # An interceptor does not see them, so they are folded before the call.
    outside=tuple(dataclasses.replace(by_use[path], shared=True) for path in outside),
  )


def graft(
  groups: Sequence[Group],
  params: Any,
  adapter: Any,
  genome: jax.Array,
  fixed: np.ndarray | None = None,
) -> Any:
  """Params with the adapter and the forms next to the kernels, stacked in the same way.

  They go into `params` itself, since a third-party `nn.scan` may pass on no other collection. What
  the model also reads outside of its modules' calls is folded at once. So are biases: on CPU a step
  takes longer if a scan over layers merges them.

  Args:
    groups: the adapted layers.
    params: parameters of the model.
    adapter: the `glora` collection.
    genome: int [layer, 5]; may be traced.
    fixed: the genome if it is known when tracing.
  """
  early = [group for group in groups if group.site.shared]
  others = [group for group in groups if group not in early]
  params = fold(early, params, adapter, genome) if early else params
  changes: dict[KeyPath, Any] = {}
  for group in others:
    ranks = group.space.ranks
    site, of_kernel, of_bias, forms, by_output = group.part(adapter, genome, fixed)
    if of_bias and site.bias_path:
      kernel, bias = site.kernel(params), site.bias(params)
      new = merge_biases(kernel, bias, of_bias, forms, site.layout, ranks)
      changes[site.bias_path] = new
    if of_kernel:
      run = _RunAdapted(site.local, ranks, by_output)
      changes |= beside(site, {'forms': forms, **of_kernel}, run)
  return update(params, changes)


def intercept(next_function, args, kwargs, context) -> Any:
  """Interceptor of module calls: runs a linear module with the arrays next to its kernel."""
  module = context.module
  if context.method_name != '__call__' or not isinstance(module, LINEAR_MODULES):
    return next_function(*args, **kwargs)
  params = module.variables.get('params', {})
  if _KEY not in params:
    return next_function(*args, **kwargs)
  params = nn.meta.unbox(dict(params))
  beside = params.pop(_KEY)
  return beside.run(ModuleCall(module, params, beside.arrays, next_function, args, kwargs))


@functools.partial(jax.tree_util.register_dataclass, data_fields=('arrays',), meta_fields=('run',))
@dataclasses.dataclass(frozen=True, eq=False)
class Beside:
  """Arrays next to a kernel in the params, and how its module uses them.

  That `run` is a part of the tree's structure is surprising, and needed: a class under `nn.jit`
  reuses the trace of any earlier call whose params have the same structure, also of another
  adapted model. So whatever a trace depends on besides its arrays, the ranks for instance, must
  make the structures differ
  (`test_traces_of_a_class_level_jit_are_not_shared_between_adapts_with_other_ranks`).

  Attributes:
    arrays: arrays by name, each with as many dimensions as the kernel: a lifted transform removes
      its axis from every leaf next to the kernel.
    run: returns the module's result; hashable, and equal if it does the same.
  """

  arrays: Mapping[str, jax.Array]
  run: Callable[[ModuleCall], Any]


def beside(
  site: Site, arrays: Mapping[str, Any], run: Callable[[ModuleCall], Any]
) -> dict[KeyPath, Beside]:
  """The change of the params that puts arrays next to a kernel, where `intercept` finds them.

  Args:
    site: the module.
    arrays: arrays by name, with the site's stack axes first.
    run: how the module uses them; see `Beside`.
  """
  stack, ndim = site.layout.stack[: len(site.lifts)], len(site.kernel_shape)
  placed = {name: align_stack(value, stack, ndim) for name, value in arrays.items()}
  return {(*site.kernel_path[:-1], _KEY): Beside(placed, run)}


class ModuleCall(NamedTuple):
  """A call of a linear module with arrays next to its kernel.

  Attributes:
    module: the module.
    params: its own parameters.
    arrays: the arrays next to its kernel, by name.
    function: the call itself, as an interceptor gets it.
    args: arguments of its call.
    kwargs: further arguments of its call.
  """

  module: nn.Module
  params: Mapping[str, Any]
  arrays: Mapping[str, jax.Array]
  function: Callable[..., Any]
  args: tuple
  kwargs: Mapping[str, Any]

  def with_params(self, **changed: Any) -> Any:
    """Calls the module with some of its parameters changed.

    For the time of the call the parameters are changed in the module's own scope, behind Flax's
    back. A copy of the module would not do: a subclass may have other collections and random
    streams, and other interceptors must see one call.
    """
    assert self.module.scope is not None  # it is being called
    collections = self.module.scope._variables
    before = collections['params']
    collections['params'] = {**self.params, **changed}
    try:
      return self.function(*self.args, **self.kwargs)
    finally:
      collections['params'] = before


@dataclasses.dataclass(frozen=True)
class _RunAdapted:
  """Runs a linear module with the adapter next to its kernel.

  Attributes:
    layout: layout of the kernel that the module sees.
    ranks: LoRA ranks that the codes stand for.
    goes_by_output: whether no layer of the stack can have a LoRA for A.
  """

  layout: Layout
  ranks: tuple[int, ...]
  goes_by_output: bool

  def __call__(self, call: ModuleCall) -> Any:
    module, kernel, bias = call.module, call.params['kernel'], call.params.get('bias')
    stack, inputs, outputs = self.layout.sizes(kernel.shape)
    shapes = adapter_shapes(inputs, outputs, ranks=(-1,), shared=False) | {'forms': (5,)}
    # Of the kernel that the module sees, with its own stack axes first; stored in any rank.
    adapter = {name: value.reshape(stack + shapes[name]) for name, value in call.arrays.items()}
    forms = adapter.pop('forms')
    if not jnp.issubdtype(forms.dtype, jnp.integer):  # the model casts all of its params
      forms = forms.astype(jnp.int8)

    # A subclass may do more, and another product (a quantized one, say) need not split into terms.
    is_plain = type(module) is nn.Dense and module.dot_general is module.dot_general_cls is None
    arguments = [*call.args, *call.kwargs.values()]
    has_its_one_argument = len(arguments) == 1 and call.kwargs.keys() <= {'inputs'}
    if is_plain and self.goes_by_output and has_its_one_argument:
      return _dense(module, arguments[0], kernel, bias, adapter, forms, self.ranks)
    merged = merge_kernels(kernel, adapter, forms, self.layout, self.ranks)
    return call.with_params(kernel=merged)


def _dense(
  module: Any, inputs: jax.Array, kernel: jax.Array, bias: jax.Array | None, *rest: Any
) -> jax.Array:
  """Calls an `nn.Dense` with an adapter, which acts on its output.

  It computes in the type that inputs, kernel and bias have in common, as `nn.Dense` does.
  """
  promote = functools.partial(module.promote_dtype, dtype=module.dtype)
  x_like, kernel_like, _ = jax.eval_shape(promote, inputs, kernel, bias)

  def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    operands = x.astype(x_like.dtype), kernel.astype(kernel_like.dtype)
    last_axis = ((x.ndim - 1,), (0,)), ((), ())
    return jax.lax.dot_general(*operands, last_axis, precision=module.precision)

  output = equation.layer_output(product, inputs, kernel, *rest, precision=module.precision)
  if bias is not None:  # JAX may be configured not to broadcast by itself
    output += jnp.broadcast_to(bias.astype(output.dtype), output.shape)
  return output
