"""PyTorch modules: adapted and trained with JAX, then folded back into PyTorch.

A module becomes a function of its parameters. A copy of it without values is called by PyTorch, in
an environment of torchax, in which PyTorch's operators compute on JAX arrays. JAX traces that call
once and compiles it; a training step does not run PyTorch.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import functools
import inspect
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp

try:
  import torch
  import torchax

  from glora_jax.torch_environment import (
    as_jax,
    on_jax,
    shape_of,
    shared_environment,
    to_jax,
    to_torch,
  )
except (ImportError, AttributeError) as error:  # the second if torchax does not know this torch
  raise ImportError(
    "glora_jax.torch needs torch and torchax, in versions that fit: pip install 'glora_jax[torch]' "
    f'({error}).'
  ) from error

from glora_jax.checks import listed, shown, validate
from glora_jax.errors import UserError
from glora_jax.method.adapt import DEFAULT_HEADS, adapt_function
from glora_jax.method.adapted import Adapted
from glora_jax.method.extend import extend as extend_params
from glora_jax.method.presets import Structure
from glora_jax.method.sample import is_array
from glora_jax.method.selection import Embeddings, Selection, Selector
from glora_jax.method.space import SearchSpace, Spaces
from glora_jax.tree import differences, flatten

__all__ = ['adapt', 'copy_to', 'extend']

log = logging.getLogger(__name__)

# Arguments of PEFT's LoraConfig. A forward that accepts any keyword ignores them.
_OF_PEFT = frozenset(
  [
    'r',
    'lora_alpha',
    'lora_dropout',
    'target_modules',
    'exclude_modules',
    'modules_to_save',
    'bias',
    'task_type',
    'peft_type',
    'inference_mode',
    'use_rslora',
    'use_dora',
    'fan_in_fan_out',
    'init_lora_weights',
    'layers_to_transform',
    'layers_pattern',
    'rank_pattern',
    'alpha_pattern',
    'lora_bias',
    'target_parameters',
    'trainable_token_indices',
    'layer_replication',
    'loftq_config',
    'eva_config',
    'corda_config',
    'ensure_weight_tying',
  ]
)

BUFFERS = 'buffers'  # name of their collection among the variables

# A call swaps the parameters of the copy for JAX's, and torchax has one state for all threads.
_ONE_CALL = threading.RLock()


def adapt(
  module: torch.nn.Module,
  *sample_inputs: Any,
  structure: Structure | None = None,
  space: Spaces | None = None,
  scale: float | None = None,
  select: Selector | None = None,
  heads: Selector | None = DEFAULT_HEADS,
  convs: bool = False,
  embeddings: Embeddings = False,
  release: bool = False,
  **kwargs: Any,
) -> tuple[Adapted, dict[str, Any]]:
  """Attaches GLoRA to a PyTorch module.

  `adapted.apply(variables, *inputs, **kwargs)`, and `forward(*inputs, **kwargs)` in a loss, accept
  JAX, NumPy and PyTorch arrays. They return the module's outputs with JAX arrays in them: the
  `ModelOutput` of a transformers model has its fields. A `DynamicCache` or `StaticCache` is a
  pytree: a call does not change the one that it gets, and returns another. The module runs in
  evaluation mode, unless a call has `train=True`; three arguments of a call are not the module's:

  - `train=True`: training mode, with gradient checkpointing if a transformers model has it enabled;
    `torch.utils.checkpoint`, which timm calls, saves no memory here.
  - `rngs={'dropout': key}`: the key that dropout draws from, needed in training mode.
  - `mutable=['buffers']`: returns `(outputs, {'buffers': changed})` with the buffers that the call
    has changed, batch statistics for instance. In the variables, this collection replaces the
    buffers of the module. Without it, training mode raises UserError if the call changes some.

  Args:
    module: any module, which is not changed, unless `release` is set.
    *sample_inputs: example inputs of the module; only shapes and dtypes matter.
    structure: the structure to train; see `glora_jax.adapt`, also for the arguments below.
    space: the search space.
    scale: factor on LoRAs of B.
    select: which linear layers to adapt, by PyTorch's name with '/' in place of '.'.
    heads: which modules to train in full, weight and bias together.
    convs: whether to adapt convolutions.
    embeddings: whether to adapt tables that are looked up, or which of their rows.
    release: whether to remove each value from the module once it is copied, so that the model is in
      memory only once. `load` puts values back.
    **kwargs: further arguments of the call, `use_cache=False` for instance.

  Returns:
    (adapted, params): the adapted module, and its `named_parameters` as JAX arrays of the same
    dtypes (float64 only if JAX has `jax_enable_x64`), in nested dictionaries:
    `params['encoder']['0']['weight']`. A shared parameter has the first of its names.

  Raises:
    TypeError: it is not a module, it cannot be copied, its outputs are not JAX types, or another
      argument has the wrong type.
    ValueError: torchax lacks an operator that the module uses, or the module branches on the values
      of arrays, writes into tensors of others, or calls `torch.vmap` or `torch.func` (the message
      names operator or line); or as in `glora_jax.adapt`.

  Example:
    >>> import glora_jax, numpy as np
    >>> layers = torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
    >>> module, x = torch.nn.Sequential(*layers).eval(), torch.ones(2, 4)
    >>> adapted, params = glora_jax.torch.adapt(module, x, structure='lora:2', heads='2')
    >>> adapted
    <Adapted Sequential: 1 layer, 24 parameters>

    The variables are those of any adapted model. Folded, they go back into the module.

    >>> variables = adapted.init(jax.random.key(0), params)
    >>> outputs = adapted.apply(variables, x)
    >>> glora_jax.torch.copy_to(adapted.fold(variables), module)
    >>> bool(np.allclose(module(x).detach(), outputs, atol=1e-6))
    True
  """
  validate(module, torch.nn.Module, 'module')
  validate(release, bool, 'release')
  _check_no_peft(module, sample_inputs, kwargs)
  _check_tied(module, heads)
  if module.training:
    log.warning(
      '%s is in training mode. It runs in evaluation mode unless a call has train=True.',
      type(module).__name__,
    )
  model, parameters = Module(module), dict(module.named_parameters())
  if parameters and not any(value.numel() for value in parameters.values()):
    raise UserError(f'{model.__name__} has no values: it was released. Load them first.')
  if narrowed := [
    name
    for name, value in parameters.items()
    if value.dtype == torch.float64 and shape_of(value).dtype != jnp.float64
  ]:
    log.warning(
      '%s: float64 becomes float32, because jax_enable_x64 is off: %s.',
      model.__name__,
      listed(narrowed),
    )
  _register_caches()
  inputs, kwargs = as_jax((sample_inputs, kwargs))
  adapted = adapt_function(
    model,
    nest({name: shape_of(value) for name, value in parameters.items()}),
    *inputs,
    structure=structure,
    space=space,
    scale=scale,
    select=select,
    heads=heads,
    convs=convs,
    embeddings=embeddings,
    **kwargs,
  )
  arrays = {}
  for name, value in parameters.items():
    arrays[name] = to_jax(value)
    if release:
      value.data = value.data.new_empty(0)
  return dataclasses.replace(adapted, model=model), nest(arrays)


def _check_no_peft(
  module: torch.nn.Module, inputs: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
  """Raises TypeError if a model, a config or an argument is PEFT's, which need not be installed."""
  name = type(module).__name__
  if _is_a(module, 'PeftModel'):
    raise TypeError(
      f'{name} is a model of PEFT; pass the base model, and read a saved adapter with '
      'glora_jax.peft.load.'
    )
  words = sorted(_OF_PEFT & kwargs.keys())
  words = words and [
    word for word in words if word not in inspect.signature(module.forward).parameters
  ]
  configs = [type(x).__name__ for x in (*inputs, *kwargs.values()) if _is_a(x, 'PeftConfig')]
  if words or configs:
    raise TypeError(
      f"{listed(configs + words)} of PEFT: pass structure='lora:8' for r=8, scale= for "
      'lora_alpha / r, select= for target_modules, heads= for modules_to_save; see '
      'docs/howto/coming_from_peft.md.'
    )


def _is_a(value: Any, name: str) -> bool:
  """Whether a value's class, or one that it inherits from, has this name."""
  return name in [kind.__name__ for kind in type(value).__mro__]


def _check_tied(module: torch.nn.Module, heads: Selector | None) -> None:
  """Raises if explicit heads match only further names of shared parameters."""
  if heads == DEFAULT_HEADS:
    return
  selection = Selection(SearchSpace(), None, None, heads, False, False)
  first = {id(value): name for name, value in module.named_parameters()}
  names = {name: first[id(x)] for name, x in module.named_parameters(remove_duplicate=False)}
  matched = selection.heads_among(tuple(name.split('.')) for name in names)
  tied = ['.'.join(path) for path in matched.paths]
  if tied and not any(name in names.values() for name in tied):
    name = min(tied)
    table = names[name].rpartition('.')[0].replace('.', '/')
    raise UserError(
      f"heads={shown(heads)}: {name} is tied to {names[name]}. Pass heads='{table}' to train both "
      'in full, or embeddings=True to adapt both.'
    )


def copy_to(
  params: Any, module: torch.nn.Module, *, buffers: Mapping[str, Any] | None = None
) -> None:
  """Copies values into a PyTorch module, in place, cast to the dtypes that it has.

  Args:
    params: values of its parameters, as `adapted.fold` returns them.
    module: the module, also one that was released.
    buffers: values of some of its buffers, as a call with `mutable=['buffers']` returns them.

  Raises:
    ValueError: they are those of another module; nothing is written.

  Example:
    >>> import glora_jax
    >>> module = torch.nn.Linear(2, 1)
    >>> params = {'weight': jnp.ones((1, 2)), 'bias': jnp.zeros(1)}
    >>> glora_jax.torch.copy_to(params, module)
    >>> module(torch.ones(3, 2)).tolist()
    [[2.0], [2.0], [2.0]]
  """
  validate(module, torch.nn.Module, 'module')
  buffers = dict(buffers or {})
  values = unnest(params) | buffers
  tensors = dict(module.named_parameters())
  tensors |= {name: value for name, value in module.named_buffers() if name in buffers}
  shapes = {  # those of released parameters are not known
    name: shape_of(value) if value.numel() else values.get(name, value)
    for name, value in tensors.items()
  }
  if problems := differences(values, shapes):
    raise UserError(
      f'These are not the values of this {type(module).__name__}. {"; ".join(problems)}. Pass the '
      'result of adapted.fold.'
    )
  cast = [
    f'{name} ({value.dtype} to {tensors[name].dtype})'
    for name, value in values.items()
    if jnp.issubdtype(value.dtype, jnp.floating) and value.dtype != shape_of(tensors[name]).dtype
  ]
  if cast:
    log.warning('%s: cast to the dtypes of the module: %s.', type(module).__name__, listed(cast))
  for name, value in values.items():
    tensor = tensors[name]
    new = to_torch(value).to(tensor.device, tensor.dtype)
    if tensor.numel():
      tensor.data.copy_(new)
    else:
      tensor.data = new.clone()


def extend(
  module: torch.nn.Module, new: int | Sequence[Sequence[int]], *, multiple: int | None = None
) -> None:
  """Adds words at the end of a transformers model's vocabulary, in place, before `adapt`.

  `resize_token_embeddings` makes the table and the head larger, keeps them tied, and sets
  `config.vocab_size`. New rows are as `glora_jax.extend` makes them.

  Args:
    module: a model of transformers, which is changed.
    new: the number of words, or for each the words whose mean it starts as; see `glora_jax.extend`.
    multiple: adds words until the vocabulary is a multiple of this.

  Raises:
    ValueError: transformers cannot resize the module; or as in `glora_jax.extend`.

  Example:
    >>> import glora_jax, transformers
    >>> config = transformers.GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=2)
    >>> module = transformers.GPT2LMHeadModel(config)
    >>> glora_jax.torch.extend(module, 2)
    >>> module.config.vocab_size, module.lm_head.out_features
    (12, 12)
  """
  table = getattr(module, 'get_input_embeddings', lambda: None)()
  if not isinstance(table, torch.nn.Embedding):
    raise UserError(
      f'{type(module).__name__} has no vocabulary that transformers can resize. Make a larger one, '
      "and load into it glora_jax.extend(params, {'embed': 0, 'head': 0}, new) of adapt's params."
    )
  size = table.num_embeddings
  old = {
    name: to_jax(value) for name, value in module.named_parameters() if value.shape[:1] == (size,)
  }
  larger = extend_params(old, {'': 0}, new, multiple=multiple)
  module.resize_token_embeddings(len(next(iter(larger.values()))), mean_resizing=False)
  for name, value in module.named_parameters():
    if name in larger and value.shape == larger[name].shape:
      value.data[size:].copy_(to_torch(larger[name][size:]))


class Module:
  """A PyTorch module as a function of its parameters, also with the `apply` of a Linen model.

  Attributes:
    skeleton: a copy of the module, whose parameters and buffers have shapes but no values.
    buffers: its buffers by name, which every call starts from.
  """

  def __init__(self, module: torch.nn.Module):
    self.__name__ = type(module).__name__
    self.buffers = {name: to_jax(value) for name, value in module.named_buffers()}
    copies = {}  # by the id of the copied object, as `deepcopy` looks them up
    for part in module.modules():
      for value in vars(part).values():
        if isinstance(value, torch.Tensor):  # `deepcopy` copies none that has a gradient
          copies[id(value)] = value.detach().clone()
    copies |= {id(value): value.to('meta') for value in module.buffers()}
    for value in module.parameters():
      copies[id(value)] = torch.nn.Parameter(value.detach().to('meta'), value.requires_grad)
    try:
      self.skeleton = copy.deepcopy(module, copies)
    except TypeError as error:
      raise TypeError(
        f'{self.__name__} cannot be copied ({error}); remove the attribute that cannot, and set it '
        'again afterwards.'
      ) from error
    for part in self.skeleton.modules():
      _make_traceable(part)

  def __call__(self, params: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls the module with other parameters."""
    return self.apply({'params': params}, *args, **kwargs)

  def apply(
    self,
    variables: Mapping[str, Any],
    *args: Any,
    train: bool = False,
    rngs: Mapping[str, jax.Array] | None = None,
    mutable: Sequence[str] = (),
    **kwargs: Any,
  ) -> Any:
    """Calls the module with the variables' parameters and buffers; see `adapt`."""
    if train and not rngs:
      raise UserError("train=True needs a key for dropout; pass rngs={'dropout': key}.")
    key = next(iter(rngs.values())) if rngs else jax.random.key(0)
    buffers = {**self.buffers, **variables.get(BUFFERS, {})}
    params, buffers, args, kwargs = as_jax((unnest(variables['params']), buffers, args, kwargs))
    with _ONE_CALL, self._explained(), self._restored(), on_jax(key) as environment:
      self.skeleton.train(train)
      given = ({**params, **buffers}, args, kwargs)
      tensors, args, kwargs = jax.tree.map(environment.j2t_iso, given)
      outputs = torch.func.functional_call(self.skeleton, tensors, args, kwargs)
      after = {name: tensors[name] for name in buffers}
      outputs = _as_pytree(self.__name__, outputs)
      outputs, after = jax.tree.map(environment.t2j_iso, (outputs, after))
    changed = {name: value for name, value in after.items() if value is not buffers[name]}
    if mutable:
      return outputs, {BUFFERS: changed}
    if train and changed:
      raise UserError(
        f'{self.__name__} changes {listed(sorted(changed))} in training mode, which would be lost. '
        "Pass mutable=['buffers'], and the call returns them after its outputs."
      )
    return outputs

  @contextlib.contextmanager
  def _restored(self) -> Generator[None]:
    """Forgets the attributes that a call sets on the copy: arrays of a trace, dead after it."""
    before = [(part, dict(vars(part))) for part in self.skeleton.modules()]
    try:
      yield
    finally:
      for part, attributes in before:
        vars(part).clear()
        vars(part).update(attributes)

  @contextlib.contextmanager
  def _explained(self) -> Generator[None]:
    """Describes in one line the code of a module that JAX cannot trace."""
    try:
      yield
    except torchax.tensor.OperatorNotFound as error:
      raise UserError(f'torchax cannot run {self.__name__}: {error}{_place(error)}.') from error
    except _NEED_VALUES as error:
      raise UserError(
        f'{self.__name__} needs the values of an array to decide what to compute, and JAX traces '
        f'it without values{_place(error)}.'
      ) from error
    except (AssertionError, AttributeError) as error:  # torchax's own advice does not help here
      for text, use in _NOT_RUN.items():
        if re.search(text, str(error)):
          raise UserError(f'{self.__name__} {use}{_place(error)}.') from error
      raise


_NEED_VALUES = (
  jax.errors.ConcretizationTypeError,
  jax.errors.TracerArrayConversionError,
  jax.errors.TracerIntegerConversionError,
  jax.errors.NonConcreteBooleanIndexError,
)

# Reasons why torchax cannot run a module, by an expression in its error.
_NOT_RUN = {
  'mixed math': 'calls torch.vmap or torch.func, which torchax cannot run',
  'torchax Tensors can only': 'computes with an operator that torchax does not know',
  "(Tensor|View)' object has no attribute '_(elem|env)'": 'writes into a tensor from elsewhere',
}


def _place(error: Exception) -> str:
  """The model's line that an error comes from: the last one outside of the libraries below it."""
  files = [library.__file__ for library in (torch, torchax, jax)] + [__file__]
  folders = [os.path.dirname(file) + os.sep for file in files]
  for frame in reversed(traceback.extract_tb(error.__traceback__)):
    if not frame.filename.startswith((*folders, contextlib.__file__)):
      return f': {frame.filename}, line {frame.lineno}: {frame.line}'
  return ''


def _make_traceable(part: Any) -> None:
  """Replaces code in a part of a copied module that JAX cannot trace."""
  if hasattr(part, '_gradient_checkpointing_func'):  # of transformers
    part._gradient_checkpointing_func = _checkpoint
  if hasattr(getattr(part, 'config', None), '_experts_implementation'):  # the others branch
    part.config._experts_implementation = 'batched_mm'
  if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
    part.register_forward_pre_hook(_update_statistics)


def _update_statistics(part: Any, inputs: tuple[torch.Tensor, ...]) -> None:
  """Updates a batch norm's statistics in training mode, which torchax's batch norm does not.

  Without a momentum they would be means over all batches, for which PyTorch itself needs the values
  of a count.
  """
  if not (part.training and part.track_running_stats and part.momentum):
    return
  (x,) = inputs
  axes = [axis for axis in range(x.ndim) if axis != 1]
  momentum = part.momentum
  part.running_mean.copy_((1 - momentum) * part.running_mean + momentum * x.mean(axes))
  part.running_var.copy_((1 - momentum) * part.running_var + momentum * x.var(axes))


def _checkpoint(function: Callable[..., Any], *args: Any) -> Any:
  """Calls a part of a module whose activations are computed again in the backward pass."""
  environment = shared_environment()

  def run(key, args):
    with environment.override_property(prng=key):
      return environment.t2j_iso(function(*environment.j2t_iso(args)))

  key = environment.get_and_rotate_prng_key()
  return environment.j2t_iso(jax.checkpoint(run)(key, environment.t2j_iso(args)))


def nest(named: Mapping[str, Any]) -> dict[str, Any]:
  """Nested dictionaries of values by PyTorch's names."""
  return flax.traverse_util.unflatten_dict(dict(named), sep='.')


def unnest(params: Any) -> dict[str, Any]:
  """Inverse of `nest`."""
  return {'.'.join(path): value for path, value in flatten(params).items()}


def _as_pytree(name: str, outputs: Any) -> Any:
  """Outputs as a pytree of JAX, to which transformers' ModelOutputs are made known.

  Raises:
    TypeError: something in them is neither an array nor a number.
  """
  for leaf in jax.tree.leaves(outputs):
    if isinstance(leaf, collections.OrderedDict):
      kind = type(leaf)
      jax.tree_util.register_pytree_with_keys(
        kind, _fields_of, functools.partial(_with_fields, kind)
      )
      return _as_pytree(name, outputs)
    if not (is_array(leaf) or isinstance(leaf, int | float | str)):
      raise TypeError(
        f'{name} returns a {type(leaf).__name__}, which JAX cannot pass on. If it is a cache, call '
        'with use_cache=False; if it is a dataclass, return a dictionary or a NamedTuple.'
      )
  return outputs


def _fields_of(outputs: Any) -> tuple[list[tuple[Any, Any]], tuple[str, ...]]:
  """The fields of a ModelOutput that are not None, as JAX needs them."""
  return [(jax.tree_util.GetAttrKey(name), outputs[name]) for name in outputs], tuple(outputs)


def _with_fields(kind: Any, names: tuple[str, ...], values: Sequence[Any]) -> Any:
  """A ModelOutput with these fields. Its constructor would look into them, and JAX has others."""
  outputs = kind.__new__(kind)
  for name, value in zip(names, values, strict=True):
    outputs[name] = value
  return outputs


def _register_caches() -> None:
  """Makes transformers' caches pytrees of JAX, if transformers is imported."""
  module = sys.modules.get('transformers.cache_utils')
  kinds = (module.Cache, module.DynamicCache, module.StaticCache) if module else ()
  for kind in kinds:
    with contextlib.suppress(ValueError):  # it is known
      jax.tree_util.register_pytree_node(kind, _layers_of, functools.partial(_with_layers, kind))


# A layer of a cache creates its tensors in its first call, so its leaves are the attributes that
# have arrays. But JAX also makes caches with other things instead of the arrays (`jax.vmap` does),
# and they must keep these leaves. So each layer notes their names (tests/peers/test_torch.py,
# test_caches_of_transformers_are_pytrees_in_and_out).
_NAMES = '_names_of_tensors'


def _layers_of(cache: Any) -> tuple[list[dict[str, Any]], Any]:
  """The tensors of each layer of a cache by name, and all else."""
  tensors, others = [], []
  for layer in cache.layers:
    fields = dict(vars(layer))
    names = fields.pop(_NAMES, frozenset()) | {
      name for name, value in fields.items() if any(map(is_array, jax.tree.leaves(value)))
    }
    tensors.append({name: fields.pop(name) for name in names})
    others.append((type(layer), fields))
  leaves, structure = jax.tree.flatten({**vars(cache), 'layers': others})
  return as_jax(tensors), (structure, tuple(leaves))


def _with_layers(kind: Any, others: Any, tensors: Sequence[dict[str, Any]]) -> Any:
  """Inverse of `_layers_of`."""
  structure, leaves = others
  cache = kind.__new__(kind)
  vars(cache).update(structure.unflatten(leaves))
  for at, (layer_kind, fields) in enumerate(cache.layers):
    layer = cache.layers[at] = layer_kind.__new__(layer_kind)
    vars(layer).update({**fields, **tensors[at], _NAMES: frozenset(tensors[at])})
  return cache
