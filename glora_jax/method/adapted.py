"""An adapted model, with a free or a fixed structure: variables, application, folding."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.method import genomes, program
from glora_jax.method.adapter import COLLECTION
from glora_jax.method.coverage import Coverage, Matrix, layer_table
from glora_jax.method.dropout import Dropout
from glora_jax.method.groups import Group, check_storage, cut, spec_of
from glora_jax.method.presets import Structure, genome_of
from glora_jax.method.quantized import full_precision, has_quantized, split_quantized
from glora_jax.method.rules import defer, fold
from glora_jax.method.sample import check_key, is_array
from glora_jax.method.site import Site
from glora_jax.method.space import SearchSpace, Spec
from glora_jax.method.validation import (
  check_collections,
  check_ranks,
)
from glora_jax.tree import (
  KeyPath,
  by_name,
  differences,
  flatten,
  join,
  partition,
  path_name,
  update,
)


class Call(NamedTuple):
  """Arguments of a model's `apply` besides its variables."""

  args: tuple[Any, ...]
  kwargs: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Places:
  """Paths in a model of its adapted layers, its heads and its other parameters.

  Attributes:
    groups: the adapted layers, and their paths in the model.
    head_paths: paths of the parameters that are trained in full.
    param_shapes: ShapeDtypeStruct of every parameter of the model, by path.
    uncovered: paths of the matrices that are not adapted, and why; see `Adapted.coverage`.
    other_sites: the linear layers that are not adapted: among the heads, or not selected.
  """

  groups: tuple[Group, ...]
  head_paths: frozenset[KeyPath]
  param_shapes: Mapping[KeyPath, jax.ShapeDtypeStruct]
  uncovered: tuple[tuple[KeyPath, str], ...]
  other_sites: tuple[Site, ...]

  @property
  def sites(self) -> list[Site]:
    """The adapted kernels of all groups."""
    return [group.site for group in self.groups]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Adapted:
  """A model with GLoRA attached, with a free or a fixed structure; see `adapt`.

  While the structure is free, `apply` and `fold` need a genome, which may be traced. `fix` fixes
  it: then nothing needs a genome, `init` makes only the arrays that the structure reads, and
  `apply` computes only the terms that it has. In an `nn.Dense` whose A is not a LoRA no gradient
  has the kernel's size: a scale acts on the output, and a LoRA of B is two thin products, or is
  merged into the kernel if that is as exact and faster (`method.equation`).

  Attributes:
    model: the untouched model.
    spec: the adapted layers, one for each row of a genome.
    places: paths of the layers and heads in the model, for the library; users rarely need it.
    mesh: devices that the frozen weights are sharded over; see `glora_jax.shard`.
    genome: the fixed structure, canonical, int8 [layer, 5]; None while it is free.

  Example:
    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> from glora_jax import adapt
    >>> model, x = nn.Dense(3), jnp.ones((2, 4))
    >>> adapted = adapt(model, x, structure='lora:2')
    >>> print(adapted.summary())
    layer  in  out  A     B       C     D     E     trained  total
    Dense   4    3  none  lora:2  none  none  none       14     15
    trained parameters: 14 in this structure + 0 in heads (93.33% of the model's 15)

    Variables hold the base's parameters and a fresh adapter, which leaves the outputs unchanged.
    `split` separates what is trained from the rest.

    >>> params = {'kernel': jnp.ones((4, 3)), 'bias': jnp.zeros(3)}
    >>> variables = adapted.init(jax.random.key(1), params)
    >>> trainable, frozen = adapted.split(variables)
    >>> {name: array.shape for name, array in trainable['glora'].items()}
    {'B_down': (4, 2), 'B_up': (2, 3)}

    Joined and folded, the variables are plain parameters again.

    >>> variables = adapted.join(trainable, frozen)
    >>> outputs, folded = jax.jit(adapted.apply)(variables, x), jax.jit(adapted.fold)(variables)
    >>> bool(jnp.allclose(outputs, model.apply({'params': folded}, x)))
    True
  """

  model: Any
  spec: Spec
  places: Places
  mesh: jax.sharding.Mesh | None = None
  genome: np.ndarray | None = None

  def __post_init__(self):
    check_ranks(self.spec)

  def __repr__(self) -> str:
    number = len(self.spec)
    layers = f'{number} layer{"s" if number != 1 else ""}'
    trained = 'free structure' if self.genome is None else f'{self.count_params():,} parameters'
    return f'<Adapted {name_of(self.model)}: {layers}, {trained}>'

  def fix(self, structure: Structure | None) -> Adapted:
    """Returns this model with one structure, fixed.

    Args:
      structure: a preset's name ('lora:4'; see `glora_jax.preset`), a genome int [layer, 5],
        choices by layer (`{'qkv': 'lora:4', 'mlp': {'E': 'vector'}}`: for each regular expression a
        preset, or a form for each tensor), or the path of an adapter. None makes it
        free again.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it does not fit the model: the search space lacks its rank, for instance.
    """
    genome = None if structure is None else genome_of(self.spec, structure)
    return dataclasses.replace(self, genome=genome)

  def init(self, key: jax.Array, params: Any) -> dict[str, Any]:
    """Returns variables with a fresh adapter; with any structure the outputs are unchanged.

    The arrays of a layer are under its module's path, with the
    module's stack axes first, in `promote_types(kernel, float32)`, and in an `nn.Partitioned` with
    matching axis names if the kernel is in one. A layer gets the same values whether the model is
    scanned or not, and whether the structure is free or fixed.

    Args:
      key: random key.
      params: parameters of the model. They may be quantized (qwix's arrays); all but the heads stay
        quantized.

    Returns:
      Variables with the collections 'params', unchanged, and 'glora', the adapter: the arrays and
      ranks that the fixed structure reads, or all if it is free.

    Raises:
      TypeError: the key is not a random key.
      ValueError: `params` are not this model's; missing, unexpected and misshaped ones are named.
    """
    check_key(key)
    leaves, arrays = flatten(check_params(self, params)), {}
    params = dequantize_heads(self, params)
    for group in self.places.groups:
      new = group.init(key, leaves[group.site.kernel_path], self.genome)
      arrays |= {(*group.path, name): array for name, array in new.items()}
    return {'params': params, COLLECTION: update({}, arrays)}

  def apply(
    self,
    variables: Mapping[str, Any],
    *args: Any,
    genome: Any = None,
    **kwargs: Any,
  ) -> Any:
    """Runs the model with the adapter of a structure; otherwise as `model.apply`.

    Args:
      variables: variables from `init`, after training for instance, with the model's other
        collections if it has any.
      *args: inputs of the model.
      genome: int [layer, 5], for a free structure only. It may be traced: one compilation serves
        all structures, and `jax.vmap` over it runs a population.
      **kwargs: `rngs`, `mutable`, `method`, `capture_intermediates`, and the model's own.

    Returns:
      The model's outputs, and its updated collections if some are mutable.

    Raises:
      ValueError: the genome or the variables do not fit the model, a free structure has no genome,
        or a fixed one gets a second.
    """
    genome = genome_for(self, genome, 'apply')
    check_variables(self, variables, genome)
    return run(self, Call(args, kwargs), variables, jnp.asarray(genome), self.genome)

  def fold(self, variables: Mapping[str, Any], genome: Any = None) -> Any:
    """Merges the adapter into the params, for the untouched model.

    Args:
      variables: variables from `init`, after training for instance.
      genome: int [layer, 5], for a free structure only; may be traced.

    Returns:
      The params with the adapter merged into kernels and biases, everything else unchanged. Those
      of a quantized base are float32; `glora_jax.requantize` goes back.
    """
    genome = genome_for(self, genome, 'fold')
    check_variables(self, variables, genome)
    return fold_params(self, variables, jnp.asarray(genome))

  def full_precision(self, params: Any) -> Any:
    """Returns params with quantized arrays dequantized to float32, in the model's shapes."""
    return full_precision(params, self.places.param_shapes)

  def count_params(self) -> int:
    """Returns the number of trained parameters of the fixed structure, heads not counted.

    Raises:
      ValueError: the structure is free; see `glora_jax.count_params` for the size of genomes.
    """
    return genomes.count_params(self.spec, fixed_genome(self, 'count_params'))

  def split(
    self, variables: Mapping[str, Any], *, adapter: bool = True
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits the variables into trained arrays, for gradients and the optimizer, and frozen ones.

    With a fixed structure the arrays that it reads are trained, cut to the largest LoRA rank that
    it reads in each group of layers. Other arrays are cut in the same way and stay frozen: joined
    again, the variables fit this structure, but not others with higher ranks.

    Args:
      variables: variables from `init`.
      adapter: whether the adapter is trained. False freezes it and trains only the heads: a linear
        probe.

    Returns:
      (trainable, frozen): adapter and heads, and everything else.

    Raises:
      ValueError: the variables lack a collection; or the structure is fixed and they are those of
        another model or search space, or were cut to a structure with lower ranks.
    """
    check_collections(variables, ('params', COLLECTION) if adapter else ('params',))
    head, body = partition(variables['params'], self.places.head_paths.__contains__)
    rest = {name: value for name, value in variables.items() if name != 'params'}
    trainable = {'params': head}
    if adapter:
      trainable[COLLECTION] = rest.pop(COLLECTION)
      if self.genome is not None:
        read = {(*g.path, name) for g in self.places.groups for name in g.read_by(self.genome)}
        kept = cut(self.places.groups, trainable[COLLECTION], self.genome)
        trainable[COLLECTION], rest[COLLECTION] = partition(kept, read.__contains__)
    return trainable, {'params': body, **rest}

  def join(self, trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `split`, except for the ranks that it cut off.

    Args:
      trainable: the first half, after training for instance.
      frozen: the second half.

    Returns:
      Variables for `apply` and `fold`.
    """
    return {COLLECTION: {}, **join(frozen, trainable)}

  def summary(self) -> str:
    """Returns a table of the adapted layers: sizes, forms, trained and total parameters.

    Returns:
      One line for each layer, one for the model, one for scales other than 1, and one for each
      matrix that is not adapted.
    """
    genome = self.genome
    chosen = genomes.largest_genome(self.spec) if genome is None else genome
    trained = genomes.count_params(self.spec, chosen)
    heads = sum(self.places.param_shapes[path].size for path in self.places.head_paths)
    total = sum(shape.size for shape in self.places.param_shapes.values())
    structure = 'the largest structure' if genome is None else 'this structure'
    totals = (
      f'trained parameters: {trained:,} in {structure} + {heads:,} in heads '
      f"({100 * (trained + heads) / total:.2f}% of the model's {total:,})"
    )
    table = layer_table(self.spec, genome)
    lines, coverage = [*table, totals], self.coverage()
    scales = sorted({layer.space.scale for layer in self.spec})
    if scales != [1]:
      lines.append(f'scale of LoRAs of B: {", ".join(f"{scale:g}" for scale in scales)}')
    if coverage.uncovered:
      lines.append(str(coverage))
    return '\n'.join(lines)

  def coverage(self) -> Coverage:
    """Which weight matrices of the model are adapted, and why the others are not.

    Example:
      >>> import glora_jax, jax.numpy as jnp
      >>> params = {'embedding': jnp.ones((8, 4)), 'w': jnp.ones((4, 4)), 'head': jnp.ones((4, 4))}
      >>> def apply(params, tokens):
      ...   return params['embedding'][tokens] @ params['w'] @ params['head']
      >>> adapted = glora_jax.adapt_function(apply, params, jnp.array([0, 1]))
      >>> coverage = adapted.coverage()
      >>> [matrix.name for matrix in coverage.covered], coverage.share
      (['w'], 0.25)
      >>> print(coverage)
      2 of 3 weight matrices are not adapted (75.0% of parameters):
        embedding  8x4  50.0%  embedding lookup
        head       4x4  25.0%  trained in full
    """
    total = sum(shape.size for shape in self.places.param_shapes.values())

    def matrix(path: KeyPath, reason: str = '') -> Matrix:
      shape = self.places.param_shapes[path]
      return Matrix(path_name(path), shape.shape, shape.size / total, reason)

    covered = tuple(matrix(site.kernel_path) for site in self.places.sites)
    return Coverage(covered, tuple(itertools.starmap(matrix, self.places.uncovered)))


def fixed_genome(adapted: Adapted, call: str) -> np.ndarray:
  """The genome of a fixed structure, for a function; raises ValueError if the structure is free."""
  if adapted.genome is None:
    raise ValueError(
      f"{call} needs a fixed structure; pass adapted.fix('lora:4'), or adapted.fix(genome)."
    )
  return adapted.genome


def genome_for(adapted: Adapted, genome: Any, call: str) -> Any:
  """The genome that a function uses: the fixed structure, or its argument if that is free.

  Args:
    adapted: the adapted model.
    genome: its argument, int [layer, 5], which may be traced; None for a fixed structure.
    call: name of the function.

  Raises:
    ValueError: there is none, or there are two, or it does not fit.
  """
  if adapted.genome is None:
    if genome is None:
      raise ValueError(
        f'{call} needs a genome because the structure is free; pass genome=..., or fix a '
        "structure first: adapted.fix('lora:4')."
      )
    genomes.check_one_genome(adapted.spec, genome, call)
    return genome
  if genome is not None:
    raise ValueError(
      f'{call} accepts no genome because the structure is fixed; leave it out, or free the '
      'structure with adapted.fix(None).'
    )
  return adapted.genome


def with_space(
  adapted: Adapted, space: SearchSpace, ids: Sequence[Sequence[int]] | None = None
) -> Adapted:
  """The model with a free structure and one search space for all layers.

  Args:
    adapted: the adapted model.
    space: the search space.
    ids: other chosen rows for each layer; None for the same.
  """
  places = adapted.places
  groups = []
  for group in places.groups:
    rows = group.ids if ids is None else tuple(ids[group.rows[0]])
    groups.append(dataclasses.replace(group, space=space, ids=rows))
  places = dataclasses.replace(places, groups=tuple(groups))
  return dataclasses.replace(adapted, spec=spec_of(groups), places=places, genome=None)


def run(
  adapted: Adapted,
  call: Call,
  variables: Mapping[str, Any],
  genome: jax.Array,
  fixed: np.ndarray | None = None,
  slot: jax.Array | None = None,
  dropout: Dropout | None = None,
) -> Any:
  """`Adapted.apply` without its checks.

  Args:
    adapted: the adapted model.
    call: arguments of the model besides its variables.
    variables: variables from `init`, checked.
    genome: int [layer, 5], checked.
    fixed: the genome if it is known when tracing.
    slot: index into the axis of slots that a pool's adapter has after the stack's axes; see
      `Pool`.
    dropout: of the inputs of B's LoRAs; see `Forward.dropping_inputs`.

  Returns:
    The result of the model's `apply`.
  """
  model, places = adapted.model, adapted.places
  params, adapter = variables['params'], variables[COLLECTION]
  function = _function(model, variables)

  def deferred(params: Any) -> Any:
    params, quantized = split_quantized(params, places.param_shapes)
    options = {'slot': slot, 'quantized': quantized, 'dropout': dropout}
    return defer(places.groups, params, adapter, genome, fixed, **options)

  result = program.call(function, params, call, adapted.mesh, defer=deferred)
  is_linen = isinstance(model, nn.Module)
  if is_linen and call.kwargs.get('mutable', False) is not False and 'params' in result[1]:
    result[1]['params'] = variables['params']  # the base's: a merged kernel is not an update
  return result


def fold_params(adapted: Adapted, variables: Mapping[str, Any], genome: jax.Array) -> Any:
  """`Adapted.fold` without its checks."""
  params = adapted.full_precision(variables['params'])
  return fold(adapted.places.groups, params, variables[COLLECTION], genome)


def call_model(adapted: Adapted, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
  """Runs the model without an adapter; sharded weights are all-gathered layer by layer.

  Args:
    adapted: the adapted model.
    variables: variables of the model itself.
    *args: inputs of the model.
    **kwargs: further arguments, as of `Adapted.apply`.
  """
  function, call = _function(adapted.model, variables), Call(args, kwargs)
  return program.call(function, variables['params'], call, adapted.mesh, shard_gradients=True)


def _function(model: Any, variables: Mapping[str, Any]) -> Callable[[Any, Call], Any]:
  """A model as a function of its params and a call, with its other collections."""
  rest = {name: value for name, value in variables.items() if name not in ('params', COLLECTION)}

  def function(params: Any, call: Call) -> Any:
    return model.apply({'params': params, **rest}, *call.args, **call.kwargs)

  return function


def dequantize_heads(adapted: Adapted, params: Any) -> Any:
  """Params with quantized heads in float32, since heads are trained."""
  places = adapted.places
  return full_precision(params, places.param_shapes, only=places.head_paths)


def check_variables(adapted: Adapted, variables: Any, genome: Any = None) -> None:
  """Checks that variables are those of a model.

  Args:
    adapted: the adapted model.
    variables: variables from `init`, after training for instance.
    genome: structure whose arrays they must have, int [layer, 5]; None for the fixed structure or,
      if it is free, for all.

  Raises:
    ValueError: they lack a collection, or their parameters or adapter are those of another model or
      search space.
  """
  check_collections(variables)
  genome = adapted.genome if genome is None else genome
  check_storage(adapted.places.groups, variables[COLLECTION], genome)
  check_params(adapted, variables['params'])


def check_params(adapted: Adapted, params: Any) -> Any:
  """Checks that parameters are those of a model.

  Args:
    adapted: the adapted model.
    params: the parameters; any value is accepted.

  Returns:
    The parameters; the shapes of the dequantized ones if some are quantized.

  Raises:
    ValueError: they are not; missing, unexpected and misshaped ones are named, and those that
      should be floating-point numbers but are not.
  """
  if has_quantized(params):
    params = jax.eval_shape(adapted.full_precision, params)
  actual, expected = _arrays_by_name(flatten(params)), _arrays_by_name(adapted.places.param_shapes)
  if problems := [*differences(actual, expected), *_wrong_dtypes(actual, expected)]:
    raise ValueError(
      f'The params do not match the adapted {name_of(adapted.model)}. {"; ".join(problems)}.'
    )
  return params


def name_of(model: Any) -> str:
  """The name of a model or a function in a sentence."""
  return getattr(model, '__name__', type(model).__name__)


def _wrong_dtypes(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
  """[phrase about arrays that should be floating-point of 16 bits or more, but are not], or []."""
  wrong = []
  for name in sorted(expected.keys() & actual.keys()):
    dtype, model_dtype = actual[name].dtype, expected[name].dtype
    if jnp.issubdtype(model_dtype, jnp.floating):
      bits = jnp.finfo(dtype).bits if jnp.issubdtype(dtype, jnp.floating) else 0
      if bits < min(16, jnp.finfo(model_dtype).bits):  # JAX promotes no shorter floats implicitly
        wrong.append(f'{name} is {dtype}')
  return [f'not floating-point of 16 bits or more: {", ".join(wrong)}'] if wrong else []


def _arrays_by_name(flat: Mapping[KeyPath, Any]) -> dict[str, Any]:
  """Those leaves of `by_name` that are arrays."""
  return {name: value for name, value in by_name(flat).items() if is_array(value)}
