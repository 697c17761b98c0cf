"""An adapted model, and one subnet of it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from glora_jax import tree
from glora_jax.method import genomes
from glora_jax.method.groups import Group
from glora_jax.method.lazy import graft, intercept
from glora_jax.method.merge import fold
from glora_jax.method.site import Site
from glora_jax.method.space import FLAT_FORMS, Spec
from glora_jax.method.summary import layer_table
from glora_jax.method.supports import SUPPORTS, used_parts
from glora_jax.tree import Path, flatten, get, path_name

COLLECTION = 'glora'

Merge = Literal['up_front', 'lazy']


class _Call(NamedTuple):
  """Arguments of a model's `apply` besides its variables."""

  args: tuple[Any, ...]
  kwargs: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Adapted:
  """A model with GLoRA attached; see `adapt`.

  Attributes:
    model: the untouched model.
    spec: the rows of a genome; there are `len(spec)` of them.
    groups: where the rows are in the model.
    head_paths: paths of the parameters that are trained in full.
    merge: how supports get into the kernels, 'up_front' or 'lazy'.
    param_shapes: ShapeDtypeStruct of every parameter of the model, by path.

  Example:
    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> from glora_jax import SearchSpace, adapt, preset
    >>> model, x = nn.Dense(3), jnp.ones((2, 4))
    >>> adapted = adapt(model, x, space=SearchSpace(A='none', C='none', D='none'))
    >>> genome = preset(adapted.spec, 'lora')
    >>> print(adapted.summary(genome))
    layer  in  out  A     B      C     D     E     trained  total
    Dense   4    3  none  lora4  none  none  none       28     15
    this subnet trains 28 parameters, and the heads 0: 186.67% of the 15 of the base model

    Variables hold the base's parameters and fresh supports, with which every subnet is the base.
    Only the first half of a split is trained.

    >>> params = {'kernel': jnp.ones((4, 3)), 'bias': jnp.zeros(3)}
    >>> variables = adapted.init(jax.random.key(1), params)
    >>> trainable, frozen = adapted.split(variables)
    >>> sorted(trainable['glora'])
    ['A_down', 'A_up', 'B_down', 'B_up', 'C_down', 'C_up', 'D', 'E']

    Joined again and folded they are plain parameters.

    >>> variables = adapted.join(trainable, frozen)
    >>> outputs = jax.jit(adapted.apply)(variables, x, genome=genome)
    >>> folded = jax.jit(adapted.fold)(variables, genome)
    >>> bool(jnp.allclose(outputs, model.apply({'params': folded}, x)))
    True
  """

  model: Any
  spec: Spec
  groups: tuple[Group, ...]
  head_paths: frozenset[Path]
  merge: Merge
  param_shapes: Mapping[Path, jax.ShapeDtypeStruct]

  def init(self, key: jax.Array, params: Any) -> dict[str, Any]:
    """The variables to train; every subnet of them is the base model.

    Supports lie under their module's path (a tie's under its first member's), with the module's
    stack axes first, in `promote_types(kernel, float32)`, and in a box with matching axis names
    where the kernel is in one. A layer gets the same values whether the model is scanned or not.

    Args:
      key: random key.
      params: parameters of the model.

    Returns:
      `{'params': params, 'glora': supports}`.

    Raises:
      ValueError: `params` are not this model's; missing, unexpected and misshaped ones are named.
    """
    self._check_params(params)
    supports = {}
    for group in self.groups:
      kernel = get(params, group.path)['kernel']
      boxed = _boxed(group.init(key), kernel, group.members[0])
      supports = tree.replace(supports, group.path, boxed)
    return {'params': params, COLLECTION: supports}

  def apply(
    self,
    variables: Mapping[str, Any],
    *args: Any,
    genome: Any,
    merge: Merge | None = None,
    **kwargs: Any,
  ) -> Any:
    """What `model.apply` returns, for the subnet of a genome.

    Args:
      variables: variables from `init`, after training for instance, with the model's other
        collections if it has any.
      *args: inputs of the model.
      genome: int [rows, 5]; may be traced, so that one compilation serves all, and `jax.vmap` over
        it a population.
      merge: 'up_front' or 'lazy' in place of the adapted model's own way.
      **kwargs: `rngs`, `mutable`, `method`, `capture_intermediates`, and the model's own.

    Returns:
      The model's outputs, and its updated collections where some are mutable.

    Raises:
      ValueError: the genome or the variables do not fit the model.
    """
    genomes.check_genome(self.spec, genome)
    if np.ndim(genome) != 2:
      raise ValueError(
        f'apply takes one genome [{len(self.spec)}, 5], not {np.shape(genome)}; '
        'use jax.vmap over a population.'
      )
    return self._run(_Call(args, kwargs), variables, jnp.asarray(genome), merge or self.merge)

  def fix(self, genome: Any) -> Subnet:
    """The subnet of one concrete genome [rows, 5]: only the terms it uses, in the cheapest form."""
    genomes.check_genome(self.spec, genome)
    return Subnet(self, genomes.canonicalize(self.spec, np.asarray(genome)))

  def fold(self, variables: Mapping[str, Any], genome: Any) -> Any:
    """Plain params for the untouched model.

    Args:
      variables: variables from `init`, after training for instance.
      genome: int [rows, 5]; may be traced.

    Returns:
      The params with the genome's supports merged into kernels and biases, all else as it was.
    """
    genomes.check_genome(self.spec, genome)
    _check_variables(variables)
    return fold(self.groups, variables['params'], variables[COLLECTION], jnp.asarray(genome))

  def count_params(self, genome: Any) -> Any:
    """Trained parameters of a genome [rows, 5], an int, or of many [..., rows, 5], int64 [...].

    Heads are not counted.
    """
    return genomes.count_params(self.spec, genome)

  def split(
    self, variables: Mapping[str, Any], *, supports: bool = True
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    """The variables in two halves, of which gradients and optimizer get only the first.

    Args:
      variables: variables from `init`.
      supports: whether supports are trained. With False they stay with the frozen half, and heads
        alone are trained: a linear probe.

    Returns:
      (trainable, frozen): supports and heads, and everything else.
    """
    head, body = _partition(variables['params'], self.head_paths.__contains__)
    rest = {name: value for name, value in variables.items() if name != 'params'}
    trainable = {'params': head}
    if supports:
      trainable[COLLECTION] = rest.pop(COLLECTION)
    return trainable, {'params': body, **rest}

  def join(self, trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `split`, also of a `Subnet`'s.

    Args:
      trainable: the first half, after training for instance.
      frozen: the second half.

    Returns:
      Variables for `apply` and `fold`.
    """
    return {
      **frozen,
      **trainable,
      **{
        name: _union(frozen.get(name, {}), trainable.get(name, {}))
        for name in ('params', COLLECTION)
      },
    }

  def summary(self, genome: Any = None) -> str:
    """A table of the adapted layers: sizes, alleles, trained and total parameters.

    Args:
      genome: whose alleles to show, int [rows, 5]; None shows all on offer.

    Returns:
      One line a layer, and one about the whole model.
    """
    chosen = self.spec.num_codes - 1 if genome is None else np.asarray(genome)
    genomes.check_genome(self.spec, chosen)
    trained = self.count_params(chosen)
    heads = sum(self.param_shapes[path].size for path in self.head_paths)
    total = sum(shape.size for shape in self.param_shapes.values())
    subnet = 'the largest subnet' if genome is None else 'this subnet'
    totals = (
      f'{subnet} trains {trained:,} parameters, and the heads {heads:,}: '
      f'{100 * (trained + heads) / total:.2f}% of the {total:,} of the base model'
    )
    table = layer_table(self.spec, None if genome is None else chosen)
    return '\n'.join([*table, totals])

  def _run(
    self,
    call: _Call,
    variables: Mapping[str, Any],
    genome: jax.Array,
    merge: Merge,
    fixed: np.ndarray | None = None,
  ) -> Any:
    """What `apply` returns; `fixed` is the genome where it is known when tracing."""
    _check_variables(variables)
    args, kwargs = call
    params, supports = variables['params'], variables[COLLECTION]
    rest = {name: value for name, value in variables.items() if name not in ('params', COLLECTION)}
    if merge == 'up_front':
      folded = fold(self.groups, params, supports, genome)
      result = self.model.apply({'params': folded, **rest}, *args, **kwargs)
    else:
      grafted, grafts = graft(self.groups, params, supports, genome, fixed)
      with nn.intercept_methods(functools.partial(intercept, grafts)):
        result = self.model.apply({'params': grafted, **rest}, *args, **kwargs)
    if kwargs.get('mutable', False) is not False and 'params' in result[1]:
      result[1]['params'] = params  # the base's own: merged values are no update of it
    return result

  def _check_params(self, params: Any) -> None:
    problems = tree.differences(_by_name(flatten(params)), _by_name(self.param_shapes))
    if problems:
      raise ValueError(
        f'These params are not those of the adapted {type(self.model).__name__}. '
        f'{"; ".join(problems)}.'
      )


@dataclasses.dataclass(frozen=True, eq=False)
class Subnet:
  """One subnet of an adapted model with its genome fixed: GLoRA's parametrization, no search.

  Its `apply` computes only the terms that are there. In an `nn.Dense` whose A is not a LoRA no
  merged kernel is formed: a LoRA term of B is two thin products, a scale acts on the output, and no
  gradient has the kernel's size. Where some A is a LoRA, kernels must be merged, as the adapted
  model merges them.

  Attributes:
    adapted: the adapted model.
    genome: canonical genome, int8 [rows, 5].

  Example:
    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> from glora_jax import adapt, preset
    >>> adapted = adapt(nn.Dense(3), jnp.zeros((1, 4)))
    >>> params = {'kernel': jnp.ones((4, 3)), 'bias': jnp.zeros(3)}
    >>> variables = adapted.init(jax.random.key(0), params)
    >>> subnet = adapted.fix(preset(adapted.spec, 'bitfit'))
    >>> subnet.count_params()
    3
    >>> trainable, frozen = subnet.split(variables)
    >>> trainable
    {'params': {}, 'glora': {'E': Array([0., 0., 0.], dtype=float32)}}
    >>> subnet.apply(subnet.join(trainable, frozen), jnp.ones((1, 4))).tolist()
    [[4.0, 4.0, 4.0]]
  """

  adapted: Adapted
  genome: np.ndarray

  def apply(self, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    """What `adapted.apply(..., genome=genome)` returns, within rounding.

    Args:
      variables: variables from `Adapted.init`, after training for instance.
      *args: inputs of the model.
      **kwargs: further arguments, as of `Adapted.apply`.

    Returns:
      The model's outputs, and its updated collections where some are mutable.
    """
    has_interceptors = isinstance(self.adapted.model, nn.Module)  # an NNX model has none
    thin = has_interceptors and self.genome[:, 0].max() < len(FLAT_FORMS['A'])
    merge = 'lazy' if thin else self.adapted.merge
    genome = jnp.asarray(self.genome)
    return self.adapted._run(_Call(args, kwargs), variables, genome, merge, fixed=self.genome)

  def fold(self, variables: Mapping[str, Any]) -> Any:
    """Plain params for the untouched model."""
    return self.adapted.fold(variables, self.genome)

  def count_params(self) -> int:
    """Trained parameters, heads not counted."""
    return self.adapted.count_params(self.genome)

  def split(self, variables: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trainable, frozen) as of `Adapted.split`, with only the supports that the genome reads."""
    trainable, frozen = self.adapted.split(variables)
    read, unread = _partition(trainable[COLLECTION], self._paths_read().__contains__)
    return {**trainable, COLLECTION: read}, {**frozen, COLLECTION: unread}

  def join(self, trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `split`."""
    return self.adapted.join(trainable, frozen)

  def _paths_read(self) -> set[Path]:
    """Paths of the supports of which the genome reads a part."""
    return {
      (*group.path, name)
      for group in self.adapted.groups
      for row in group.rows
      for name in used_parts(
        self.genome[row].tolist(), group.space.ranks, group.has_bias, group.space.tied
      )
    }


def _partition(nested: Any, belongs: Callable[[Path], bool]) -> tuple[Any, Any]:
  """Two nested dictionaries: the leaves whose paths belong to the first, and the others."""
  first, second = {}, {}
  for path, value in flatten(nested).items():
    (first if belongs(path) else second)[path] = value
  unflatten = flax.traverse_util.unflatten_dict
  return unflatten(first), unflatten(second)


def _union(first: Any, second: Any) -> dict[str, Any]:
  """A nested dictionary with the leaves of two; the second's where both have one."""
  return flax.traverse_util.unflatten_dict({**flatten(first), **flatten(second)})


def _by_name(flat: Mapping[Path, Any]) -> dict[str, Any]:
  return {path_name(path): nn.meta.unbox(value) for path, value in flat.items()}


def _boxed(supports: Mapping[str, jax.Array], kernel: Any, site: Site) -> dict[str, Any]:
  """Supports in a box like the kernel's, if it has one.

  Axes that they share with the kernel have its names, the others None.
  """
  if not isinstance(kernel, nn.Partitioned):
    return dict(supports)
  unnamed = len(site.kernel_shape) - len(kernel.names)
  names = tuple(kernel.names) + (None,) * unnamed
  layout = site.layout
  by_axis = {
    # Several axes flattened into one have no name.
    'in': names[layout.inputs[0]] if len(layout.inputs) == 1 else None,
    'out': names[layout.outputs[0]] if len(layout.outputs) == 1 else None,
    'rank': None,
    'one': None,
  }
  stack = tuple(names[dim] for dim in layout.stack)
  return {
    name: kernel.replace(
      value=value, names=stack + tuple(by_axis[axis] for axis in SUPPORTS[name].axes)
    )
    for name, value in supports.items()
  }


def _check_variables(variables: Mapping[str, Any]) -> None:
  for name in ('params', COLLECTION):
    if name not in variables:
      raise ValueError(
        f"The variables have no '{name}' (they have {', '.join(variables) or 'nothing'}); "
        'pass what init returned.'
      )
