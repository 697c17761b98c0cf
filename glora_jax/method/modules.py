"""The way in by module: a linen model's linear layers are found, and run with their supports.

Its modules say which its layers are, its program how they are used. The model, unmodified, is
traced once, so nothing is computed. In that trace every parameter is in a
`Box` that remembers its path. Flax's lifted transforms (`nn.scan`, `nn.vmap`) announce to such a
box each axis that they take off, so the modules that are called say where the stacks of layers are
and in which order these run; shapes are never guessed from. The program says what no module knows:
whether a kernel is used in other ways than in its module's call, which other matrices there are,
and of which layers the outputs are.

While an adapted model runs, only one merged kernel is alive at a time: the supports are *grafted*
into the params, beside their kernels. An interceptor finds them there when the module is called,
and runs it with what a rule of `glora_jax.method.rules` makes of its kernel.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
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
from glora_jax.method.rules import Deferred, defer, fold, merge_kernels
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
from glora_jax.tree import KeyPath, flatten, map_with_path, replace

log = logging.getLogger(__name__)


class _Recorder:
  """An interceptor of all module calls in a trace that writes down the linear ones.

  Compared by identity, so that no trace of another discovery is ever reused.

  Attributes:
    clock: number of module calls begun or ended so far.
    found: the linear modules in the order of their first calls, by the path of their kernel, with
      the times at which axes were taken off it.
    shared: paths of the modules whose parameters were also read past `self.param`.
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
    # A kernel outside a box is not the model's own parameter: one of a function under the user's
    # own vmap, say. One that is cut is a part of a parameter: a layer of a stack that the model
    # goes through by itself, say. Both are left to the trace.
    kernel, bias = (module.get_variable('params', name) for name in ('kernel', 'bias'))
    if not isinstance(kernel, Box) or kernel.path in self.found:
      return
    if kernel.unbox().shape != tuple(kernel.whole.shape[axis] for axis in kernel.left):
      return
    local = linear_layout(module, *args, **kwargs)
    if local is None:
      return
    site = Site(
      kernel_path=kernel.path,
      bias_path=None if bias is None else bias.path,
      kernel_shape=kernel.whole.shape,
      dtype=np.dtype(kernel.whole.dtype),
      layout=Layout(
        stack=kernel.lifted + kernel.whole_axes(local.stack),
        inputs=kernel.whole_axes(local.inputs),
        outputs=kernel.whole_axes(local.outputs),
        bias_stack=() if bias is None else bias.lifted + bias.whole_axes(local.bias_stack),
      ),
      lifts=kernel.lifted,
      kind=type(module).__name__,
      is_convolution=isinstance(module, nn.Conv),
      shared=kernel.unbox().dtype != kernel.whole.dtype,
    )
    self.found[kernel.path] = site, kernel.times


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=('value',),
  meta_fields=('recorder', 'path', 'whole', 'lifted', 'times'),
)
@dataclasses.dataclass(frozen=True, eq=False)
class Box(nn.meta.AxisMetadata[Any]):
  """A box around a parameter, to which Flax announces each axis that it takes off.

  A model may also read a parameter out of its variables, past `self.param`, to tie it to something.
  For that a box behaves like its array, and tells the recorder that it was read so: a kernel that
  others read cannot be merged in its module alone.

  Attributes:
    value: the parameter, or the box that the model put around it.
    recorder: what all boxes of a discovery share.
    path: path of the parameter.
    whole: shape and type of the whole parameter.
    lifted: the axes of the whole that lifted transforms took off, outermost first.
    times: when they did, on the recorder's clock. Axes that are taken off at the same time belong
      to one and the same transform.
  """

  value: Any
  recorder: _Recorder
  path: KeyPath
  whole: jax.ShapeDtypeStruct
  lifted: tuple[int, ...] = ()
  times: tuple[int, ...] = ()

  @property
  def left(self) -> list[int]:
    """The axes of the whole that are still there."""
    return [axis for axis in range(len(self.whole.shape)) if axis not in self.lifted]

  def whole_axes(self, dims: Sequence[int]) -> tuple[int, ...]:
    """Dimensions of what is left of the parameter as axes of the whole parameter."""
    return tuple(self.left[dim] for dim in dims)

  def unbox(self) -> Any:
    """For Flax: the bare parameter."""
    return nn.meta.unbox(self.value)

  def replace_boxed(self, val: Any) -> Box:
    """For Flax: the same boxes around another value."""
    return dataclasses.replace(self, value=nn.meta.replace_boxed(self.value, val))

  def remove_axis(self, index: int, params: dict[Any, Any]) -> Box:
    """For Flax: a lifted transform takes an axis off."""
    index %= len(self.left)
    return dataclasses.replace(
      self,
      value=nn.meta.remove_axis(self.value, index, params),
      lifted=(*self.lifted, self.left[index]),
      times=(*self.times, self.recorder.clock),
    )

  def add_axis(self, index: int, params: dict[Any, Any]) -> Box:
    """For Flax: a parameter leaves a lifted transform. The discovery lets none out."""
    return self

  def read(self) -> Any:
    """The bare parameter, for a model that reads it past `self.param`."""
    self.recorder.shared.add(self.path[:-1])
    return self.unbox()

  __jax_array__ = read

  def __getitem__(self, index: Any) -> Any:
    return self.read()[index]

  def __getattr__(self, name: str) -> Any:
    if name.startswith('__'):
      raise AttributeError(name)
    return getattr(self.read(), name)


def discover(
  model: nn.Module,
  inputs: tuple,
  kwargs: Mapping[str, Any],
  convs: bool = False,
  embeddings: bool = False,
) -> tuple[Any, Found]:
  """Shapes of a model's parameters, and its linear layers in the order of their first calls.

  Args:
    model: an unmodified Flax model.
    inputs: positional arguments of its call. Arrays may be `jax.ShapeDtypeStruct`; everything else
      is taken as it is.
    kwargs: keyword arguments of its call, likewise.
    convs: whether convolutions count as linear layers.
    embeddings: whether tables that are looked up do.

  Returns:
    The parameters as `jax.ShapeDtypeStruct`, in the model's own boxes, and what was found: by use
    alone in a model that runs on arrays, and not on parameters in boxes.

  Raises:
    Exception: what the model raises on these inputs, with a note that says which they are.
  """
  sample, name = Sample(inputs, kwargs), type(model).__name__
  rngs = {'params': jax.random.key(0)}  # Flax answers every other stream from this one
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
  except Exception as error:  # it looks into its own variables (`nn.WeightNorm`), not at arrays
    log.info('%s: its layers are found without its modules (%s).', name, first_line(error))
    recorder = _Recorder()
    found = find_in(params, (others, *inputs), kwargs)
  return params, _by_modules(recorder, found, convs)


def _by_modules(recorder: _Recorder, found: Found, convs: bool) -> Found:
  """What was found, by the modules where they are known."""
  by_use = {site.kernel_path: site for site in found.sites}
  convolutions: list[KeyPath] = []  # that are not adapted
  rows, numbers = collections.defaultdict(list), itertools.count()
  sites = [  # tables, which no linear module has, come first
    dataclasses.replace(site, rows=tuple(itertools.islice(numbers, len(site.rows))))
    for site in found.sites
    if site.kind == TABLE
  ]
  looped = [
    (site, [*zip(times, site.stack_shape, strict=False)]) for site, times in recorder.found.values()
  ]
  for site, _ in interleave(looped):
    own_stack = site.stack_shape[len(site.lifts) :]
    rows[site.kernel_path] += itertools.islice(numbers, math.prod(own_stack))
  for path, (site, _) in recorder.found.items():
    if site.is_convolution and not convs:
      convolutions.append(path)  # the program may multiply matrices, as patch embeddings do
      continue
    # What changes a kernel on its way (`nn.map_variables`), a mask, a factor or another type, would
    # do the same to what lies beside it, and so would a sum of squares over all parameters, which
    # is part of the outputs: a program must use it as the module itself does, and in no other way.
    use = by_use.get(path)
    shared = site.shared or path[:-1] in recorder.shared or use is None or use.shared
    if use is not None:
      unlike = set(site.layout.inputs) ^ set(use.layout.inputs)
      shared |= any(site.kernel_shape[axis] > 1 for axis in unlike)  # one of size one may be either
    input_id = path if use is None else use.input_id
    changes = {'rows': tuple(rows[path]), 'shared': shared, 'input_id': input_id}
    sites.append(dataclasses.replace(site, **changes))
  inside = {site.kernel_path for site in sites} | {*convolutions}
  outside = [path for path in by_use if path not in inside]
  return found._replace(
    sites=tuple(sites),
    uncovered={
      **found.uncovered,
      **dict.fromkeys(convolutions, CONVOLUTION),
      **dict.fromkeys(outside, NO_MODULE),
    },
    # No interceptor sees them, so they are folded before the call.
    outside=tuple(dataclasses.replace(by_use[path], shared=True) for path in outside),
  )


def _run(layout: Layout, ranks: tuple[int, ...], goes_by_output: bool, call: ModuleCall) -> Any:
  """What a linear module returns with the supports beside its kernel.

  Args:
    layout: layout of the kernel that the module sees.
    ranks: LoRA ranks that the codes stand for.
    goes_by_output: whether no layer of the stack can have a LoRA for A.
    call: the call.
  """
  module, kernel, bias = call.module, call.params['kernel'], call.params.get('bias')
  stack, inputs, outputs = layout.sizes(kernel.shape)
  shapes = adapter_shapes(inputs, outputs, ranks=(-1,), shared=False) | {'forms': (5,)}
  # Of the kernel that the module sees, with its own stack axes first; stored in any rank.
  adapter = {name: value.reshape(stack + shapes[name]) for name, value in call.leaves.items()}
  forms = adapter.pop('forms')
  if not jnp.issubdtype(forms.dtype, jnp.integer):  # of a model that casts all that it is given
    forms = forms.astype(jnp.int8)

  # A subclass may do more, and a product of its own (quantized, say) need not split into terms.
  plain = type(module) is nn.Dense and module.dot_general is module.dot_general_cls is None
  arguments = [*call.args, *call.kwargs.values()]  # of any but its one, it says what is wrong
  if plain and goes_by_output and len(arguments) == 1 and call.kwargs.keys() <= {'inputs'}:
    return _dense(module, arguments[0], kernel, bias, adapter, forms, ranks)
  return call.with_params(kernel=merge_kernels(kernel, adapter, forms, layout, ranks))


def _dense(
  module: Any, inputs: jax.Array, kernel: jax.Array, bias: jax.Array | None, *rest: Any
) -> jax.Array:
  """What an `nn.Dense` makes of inputs and an adapted kernel, by its output.

  It computes in the type that all three have in common, with a bias wider than the rest in its.
  """
  promote = functools.partial(module.promote_dtype, dtype=module.dtype)
  x_like, kernel_like, _ = jax.eval_shape(promote, inputs, kernel, bias)

  def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    operands = x.astype(x_like.dtype), kernel.astype(kernel_like.dtype)
    last_axis = ((x.ndim - 1,), (0,)), ((), ())
    return jax.lax.dot_general(*operands, last_axis, precision=module.precision)

  output = equation.layer_by_output(product, inputs, kernel, *rest, precision=module.precision)
  if bias is not None:  # JAX may be told to repeat nothing by itself
    output += jnp.broadcast_to(bias.astype(output.dtype), output.shape)
  return output


def graft(
  groups: Sequence[Group],
  params: Any,
  adapter: Any,
  genome: jax.Array,
  fixed: np.ndarray | None = None,
) -> tuple[Any, dict[str, Callable[[ModuleCall], Any]]]:
  """Params with supports and forms beside their kernels, stacked as these are.

  They go into `params` itself, since a third-party `nn.scan` may hand on no other collection. What
  the model also reads by other ways than its modules' calls is folded at once. So are biases: on
  CPU a step takes longer if a scan over layers merges them (1.5 times as long for BitFit).

  Args:
    groups: the adapted layers.
    params: parameters of the model.
    adapter: the `glora` collection.
    genome: int [rows, 5]; may be traced.
    fixed: the genome where it is known when tracing.

  Returns:
    The params, and what `intercept` does with each graft in them, by its key.
  """
  others = [group for group in groups if not any(site.shared for site in group.members)]
  params = fold([group for group in groups if group not in others], params, adapter, genome)
  kernels, runs = flatten(params), {}
  params = defer(others, params, adapter, genome, fixed)
  for site in (site for group in others for site in group.members):
    kernel = site.kernel(params)
    if isinstance(kernel, Deferred):
      params = replace(params, site.kernel_path, kernels[site.kernel_path])
      leaves = {'forms': kernel.forms, **kernel.adapter}
      static = site.local, kernel.plan.ranks, kernel.plan.goes_by_output
      params, run = put_beside(params, site, leaves, functools.partial(_run, *static))
      runs |= run
  return params, runs


def put_beside(
  params: Any, site: Site, leaves: Mapping[str, Any], run: functools.partial[Any]
) -> tuple[Any, dict[str, Callable[[ModuleCall], Any]]]:
  """Params with arrays beside a kernel, under a key that says what their module does with them.

  Class-level `nn.jit` reuses traces between models of equal structure: a key is made of all that is
  static, so that structures differ where meanings do.

  Args:
    params: parameters of the model.
    site: the module.
    leaves: arrays by name, with the site's stack axes first.
    run: what the module returns, of what is static and a `ModuleCall`.

  Returns:
    The params, and `run` by the key, for `intercept`.
  """
  text = repr((run.func.__module__, run.args))
  key = f'glora_{hashlib.sha256(text.encode()).hexdigest()[:16]}'
  # A lifted transform will take its axis off every leaf at the kernel's place, so a leaf has as
  # many dimensions.
  stack, ndim = site.layout.stack[: len(site.lifts)], len(site.kernel_shape)
  placed = {name: align_stack(value, stack, ndim) for name, value in leaves.items()}
  return replace(params, (*site.kernel_path[:-1], key), placed), {key: run}


class ModuleCall(NamedTuple):
  """A call of a linear module beside whose kernel something lies.

  Attributes:
    module: the module.
    params: its parameters, without the leaves.
    leaves: what lies beside its kernel.
    function: the call itself, as an interceptor gets it.
    args: arguments of its call.
    kwargs: further arguments of its call.
  """

  module: nn.Module
  params: Mapping[str, Any]
  leaves: Mapping[str, jax.Array]
  function: Callable[..., Any]
  args: tuple
  kwargs: Mapping[str, Any]

  def with_params(self, **changed: Any) -> Any:
    """What the module returns with some of its parameters changed.

    It runs where it is, and no copy of it: a subclass may have other collections and random
    streams, and other interceptors see one call.
    """
    assert self.module.scope is not None  # it is being called
    collections = self.module.scope._variables
    own = collections['params']
    collections['params'] = {**self.params, **changed}
    try:
      return self.function(*self.args, **self.kwargs)
    finally:
      collections['params'] = own


def intercept(
  runs: Mapping[str, Callable[[ModuleCall], Any]], next_function, args, kwargs, context
) -> Any:
  """Interceptor of module calls: runs a linear module with a key of `runs` beside its kernel."""
  module = context.module
  if context.method_name != '__call__' or not isinstance(module, LINEAR_MODULES):
    return next_function(*args, **kwargs)
  params = module.variables.get('params', {})
  key = next((name for name in params if name in runs), None)
  if key is None:
    return next_function(*args, **kwargs)
  params = nn.meta.unbox(dict(params))
  leaves = params.pop(key)
  return runs[key](ModuleCall(module, params, leaves, next_function, args, kwargs))
