"""GLoRA on a live NNX model, which stays an instance of its class and keeps all its state."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from glora_jax.checks import listed
from glora_jax.files import Path
from glora_jax.method.adapt import DEFAULT_HEADS, assemble
from glora_jax.method.adapted import Adapted
from glora_jax.method.adapter import COLLECTION
from glora_jax.method.adapter_file import choices_of
from glora_jax.method.genomes import distinct_codes, largest_genome
from glora_jax.method.presets import Structure, genome_of, read_choice
from glora_jax.method.quantized import as_dequantized, is_quantized
from glora_jax.method.sample import check_key
from glora_jax.method.selection import Embeddings, Selection, Selector
from glora_jax.method.site import Site
from glora_jax.method.space import TENSORS, Spaces
from glora_jax.nnx.adapter import Adapter, Static, fix_forms
from glora_jax.nnx.base import remember_base
from glora_jax.nnx.functional import by_use, check_model, params, trace_call
from glora_jax.nnx.live import adapters, load_adapter, set_genome, spec
from glora_jax.nnx.owners import PREFIX, UNADAPTED, AdaptedParam, Model, Unadapted, make_owner
from glora_jax.nnx.places import Location, Place, places, put, variable_at
from glora_jax.nnx.variables import Genome, ParamGenome, as_head
from glora_jax.tree import KeyPath

log = logging.getLogger(__name__)


def attach(
  model: Model,
  *inputs: Any,
  structure: Structure | None = None,
  space: Spaces | None = None,
  scale: float | None = None,
  select: Selector | None = None,
  heads: Selector | None = DEFAULT_HEADS,
  convs: bool = False,
  embeddings: Embeddings = False,
  stacks: Mapping[str, int] | None = None,
  key: jax.Array | nnx.Rngs | None = None,
  **kwargs: Any,
) -> Model:
  """Attaches GLoRA to an NNX model; the result is an NNX model of the same class.

  The result is called like the model, including its submodules and other methods, and keeps its
  dropout streams, batch statistics, caches, `train()` and `eval()`. Its outputs are the model's
  until its adapter is trained. A free structure starts as the largest of the search space.

  Args:
    model: any NNX model; it is not changed, and its arrays are shared. A model from
      `nnx.eval_shape` gets an adapter; fill in its other values with `nnx.update`.
    *inputs: example inputs; only shapes and dtypes matter.
    structure: the structure to train; see `glora_jax.adapt`.
    space: the search space; see `glora_jax.adapt`. Tensors that can only be none store nothing.
    scale: factor on LoRAs of B; see `glora_jax.adapt`.
    select: which linear layers to adapt, by the attributes' names joined by '/'; see
      `glora_jax.adapt`.
    heads: which modules to train in full, in the same way; None for none.
    convs: whether convolutions count as linear layers.
    embeddings: whether to adapt embedding tables, or which of their rows; see `glora_jax.adapt`.
    stacks: axes of kernels' outputs to treat as a stack of layers, by regular expressions on the
      kernels' names. Layers that `nnx.vmap` runs on one shared input need it.
    key: random key for the adapter, or `nnx.Rngs`; None for a fixed one.
    **kwargs: further arguments of the call.

  Returns:
    A model of the same class, with the adapter next to its parameters
    (`glora_jax.nnx.AdapterParam`), its heads as `glora_jax.nnx.Head` and its genome as
    `glora_jax.nnx.Genome`.

  Raises:
    TypeError: an argument has another type.
    ValueError: the model is already attached, has no linear layer, or none that `select` or `space`
      matches; or `stacks` are needed. Errors of the model itself on these
      inputs pass through.

  Example:
    >>> import glora_jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> class Mlp(nnx.Module):
    ...   def __init__(self, rngs):
    ...     self.hidden = nnx.Linear(4, 8, rngs=rngs)
    ...     self.dropout = nnx.Dropout(0.5, rngs=rngs)
    ...     self.head = nnx.Linear(8, 3, rngs=rngs)
    ...   def __call__(self, x):
    ...     return self.head(self.dropout(nnx.relu(self.hidden(x))))
    >>> mlp, x = Mlp(nnx.Rngs(0)), jnp.ones((1, 4))
    >>> model = glora_jax.nnx.attach(mlp, x)
    >>> isinstance(model, Mlp), [layer.name for layer in glora_jax.nnx.as_adapted(model)[0].spec]
    (True, ['hidden'])
    >>> bool((model(x) == model(x)).all())  # dropout is alive
    False
    >>> model.eval()
    >>> mlp.eval()
    >>> bool(jnp.allclose(model(x), mlp(x)))
    True
  """
  check_model(model)
  structure, space = read_choice(structure, space)
  selection = Selection(space, scale, select, heads, convs, embeddings)
  random = _as_key(key)
  tables = selection.embeddings
  found = by_use(model, inputs, kwargs, convs=convs, embeddings=tables, stacks=stacks or {})
  adapted = assemble(model, as_dequantized(params(model)), found, selection, structure)
  attached = _with_adapter(model, adapted, random, Genome)
  # A stack of matrices may be mapped or scanned over, and its adapter with it.
  if any(_may_be_a_stack(group.site) for group in adapted.places.groups):
    try:
      trace_call(attached, inputs, kwargs)
    except ValueError as error:
      # `mapped_axes` cannot tell, or JAX finds axes of other sizes, in the genome that is: the
      # model's transforms may map over `nnx.Param` alone. A genome of that type is mapped with the
      # kernels; by default it has another, so that optimizers of `nnx.Param` do not see it.
      log.info('%s: the genome has to be an nnx.Param; without, %s', type(model).__name__, error)
      attached = _with_adapter(model, adapted, random, ParamGenome)
      _check_runs(attached, inputs, kwargs)
  remember_base(attached)
  return attached


def _may_be_a_stack(site: Site) -> bool:
  """Whether a kernel is a stack, or may be one of layers on one input, which look like outputs."""
  return bool(site.layout.stack) or (len(site.kernel_shape) > 2 and 0 in site.layout.outputs)


def _check_runs(model: nnx.Module, inputs: tuple, kwargs: Mapping[str, Any]) -> None:
  """Raises ValueError if an attached model does not run."""
  try:
    trace_call(model, inputs, kwargs)
  except ValueError as error:
    reason = str(error).partition('\n')[0].rstrip(':.')
    raise ValueError(
      f'{type(model).__name__} does not run with an adapter next to its kernels: {reason}. If '
      'nnx.vmap runs layers on one input, name the axis of the output that counts them, as in '
      "stacks={'layers/up': 0}."
    ) from error


def _as_key(key: jax.Array | nnx.Rngs | None) -> jax.Array:
  """The random key that an argument stands for."""
  if key is None:
    return jax.random.key(0)
  if isinstance(key, nnx.Rngs):
    if not {'params', 'default'} & set(key):
      raise ValueError(
        f'key is an nnx.Rngs with {listed(key) or "no stream"}, but the adapter needs params or '
        'default; pass nnx.Rngs(0) or nnx.Rngs(params=0).'
      )
    return key.params()
  check_key(key)
  return key


def _with_adapter(
  model: Model, adapted: Adapted, key: jax.Array, genome_type: type[Genome]
) -> Model:
  """An attached copy of a model: with adapters next to its parameters, and its heads marked."""
  model = nnx.clone(model)
  arrays = adapted.init(key, params(model))[COLLECTION]
  genome = largest_genome(adapted.spec) if adapted.genome is None else adapted.genome
  insertion = _Insertion(model)
  for group in adapted.places.groups:
    in_use = distinct_codes(genome[list(group.rows)])
    if adapted.genome is None:
      layer = adapted.spec.layers[group.rows[0]]  # all of a group have the same choices
      in_use = tuple(map(layer.choices, TENSORS))
    static = Static(group, in_use, is_fixed=adapted.genome is not None)
    kernel = variable_at(*insertion.places[group.site.kernel_path][0])
    adapter = Adapter(static, group.arrays(arrays), group.forms(genome), kernel, genome_type)
    insertion.add(adapter)
  for path in adapted.places.head_paths:
    insertion.mark_head(path)
  insertion.dequantize_others()
  # A Linen model must not see the type of its heads, so a bridge to one is always an owner.
  for owner, adapted_params in insertion.owners.values():
    if adapted_params or isinstance(owner, nnx.bridge.ToNNX):
      make_owner(owner, adapted_params)
  unadapted = Unadapted(adapted.places.uncovered, adapted.places.other_sites)
  if any(unadapted):
    setattr(model, UNADAPTED, unadapted)
  return model


class _Insertion:
  """Puts adapters and heads into a model, and notes which modules become owners.

  Attributes:
    places: the locations of the variables.
    owners: the modules that got something, with their adapted parameters, by `id`.
  """

  def __init__(self, model: nnx.Module):
    self.places = places(model)
    self.owners: dict[int, tuple[nnx.Pytree, list[AdaptedParam]]] = {}

  def add(self, adapter: Adapter) -> None:
    """Puts an adapter next to all parameters that it acts on."""
    site = adapter.group.site
    kernels = self.places[site.kernel_path]
    found = [(owner, location, location) for owner, location in kernels]
    for owner, bias in self.places[site.bias_path] if site.bias_path else ():
      found.append((owner, bias, self._kernel_beside(owner, bias, kernels)))
    for owner, location, kernel in found:
      by = location if kernel.attribute.startswith(PREFIX) else kernel
      name = _free_name(owner, by, adapter)
      setattr(owner, name, adapter)
      self._of_owner(owner).append(AdaptedParam(location, kernel, name))

  def mark_head(self, path: KeyPath) -> None:
    """Makes a parameter a head."""
    found = self.places[path]
    head = as_head(variable_at(*found[0]))
    for owner, location in found:
      put(owner, {location: head})
      self._of_owner(owner)

  def dequantize_others(self) -> None:
    """Lets quantized parameters that are not adapted be dequantized when they are read."""
    for owner, location in itertools.chain(*self.places.values()):
      if is_quantized(variable_at(owner, location).get_value()):
        adapted = self._of_owner(owner)
        if location not in {param.location for param in adapted}:
          adapted.append(AdaptedParam(location, location, ''))

  def _of_owner(self, owner: nnx.Pytree) -> list[AdaptedParam]:
    return self.owners.setdefault(id(owner), (owner, []))[1]

  def _kernel_beside(self, owner: nnx.Pytree, bias: Location, kernels: Sequence[Place]) -> Location:
    """Where the owner of a bias has the kernel; if another module owns it, it gets it, too."""
    for other, location in kernels:
      if other is owner:
        return location
    variable = variable_at(*kernels[0])
    name = _free_name(owner, bias, variable, '_base')
    setattr(owner, name, variable)
    return Location(name)


def _free_name(owner: nnx.Pytree, location: Location, value: Any, end: str = '') -> str:
  """Name of the attribute that holds, or will hold, the adapter next to a parameter."""
  name = PREFIX + '_'.join((location.attribute, *location.inside)) + end
  while vars(owner).get(name, value) is not value:
    name += '_'
  return name


def fix(model: Model, structure: Structure) -> Model:
  """An attached model with a single structure, in its cheapest form.

  Its adapter has only the arrays that the structure reads, cut to its ranks, so an optimizer trains
  no others. NNX's own layers without a LoRA of A never compute a merged kernel.

  Args:
    model: an attached model; it is not changed.
    structure: a preset's name, a genome, choices by layer, or the path of an adapter;
      see `glora_jax.Adapted.fix`.

  Returns:
    A model of the same class, attached.

  Raises:
    ValueError: the model is not attached, or the structure does not fit or has forms that it lacks.

  Example:
    >>> import glora_jax, jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> linear, space = nnx.Linear(4, 3, rngs=nnx.Rngs(0)), glora_jax.SearchSpace()
    >>> model = glora_jax.nnx.attach(linear, jnp.ones((1, 4)), space=space)
    >>> model = glora_jax.nnx.fix(model, 'bitfit')
    >>> sorted(nnx.state(model, glora_jax.nnx.Trained)['glora_kernel'])
    ['E']
  """
  model = nnx.clone(model)
  genome = genome_of(spec(model), structure)
  set_genome(model, genome)
  for adapter in adapters(model):
    fix_forms(adapter, genome)
  return model


def load(path: Path, model: Model, *inputs: Any, strict: bool = True, **kwargs: Any) -> Model:
  """Attaches to a plain NNX model what an adapter file was saved from, and loads the file.

  The file has the structure, and says which layers and heads it belongs to.

  Args:
    path: path of a file of `save_adapter`, here or in `glora_jax`.
    model: an NNX model that is not attached; it is not changed.
    *inputs: example inputs; only shapes and dtypes matter.
    strict: whether another base is an error; see `glora_jax.load_adapter`.
    **kwargs: further arguments of the call, or `stacks` and `key` of `attach`.

  Returns:
    A model of the same class, attached.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is damaged, or belongs to another model or base; the message says what
      differs.

  Example:
    >>> import tempfile, glora_jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> linear, x = nnx.Linear(4, 3, rngs=nnx.Rngs(0)), jnp.ones((1, 4))
    >>> model = glora_jax.nnx.attach(linear, x, structure='bitfit')
    >>> model.glora_kernel.E[...] = jnp.ones(3)
    >>> with tempfile.NamedTemporaryFile(suffix='.safetensors') as file:
    ...   glora_jax.nnx.save_adapter(file.name, model)
    ...   again = glora_jax.nnx.load(file.name, linear, x)
    >>> bool((again(x) == model(x)).all())
    True
  """
  attached = attach(model, *inputs, **choices_of(path), **kwargs)
  load_adapter(path, attached, strict=strict)
  return attached
