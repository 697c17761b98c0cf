"""An adapted model, and one subnet of it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from glora_jax import tree
from glora_jax.method import equation, genomes
from glora_jax.method import merge as merge_lib
from glora_jax.method.discover import Site
from glora_jax.method.groups import Group
from glora_jax.method.space import TENSORS, Spec
from glora_jax.tree import Path, flatten, get, path_name

COLLECTION = 'glora'


@dataclasses.dataclass(frozen=True, eq=False)
class Adapted:
  """A model with GLoRA attached; see `adapt`.

  Attributes:
    model: the untouched model.
    spec: what the genome's rows are; `len(spec)` of them.
    groups: where they are in the model.
    head_paths: paths of the parameters that are trained in full.
    merge: 'up_front' or 'lazy'.
    param_shapes: ShapeDtypeStruct of every parameter of the model, by path.
  """

  model: nn.Module
  spec: Spec
  groups: tuple[Group, ...]
  head_paths: frozenset[Path]
  merge: str
  param_shapes: Mapping[Path, jax.ShapeDtypeStruct]

  def init(self, key: jax.Array, params: Any) -> dict[str, Any]:
    """The variables to train: `{'params': params, 'glora': supports}`; every subnet of them is the base model.

    Supports lie under their module's path (a tie's under its first member's), with the module's stack axes first, in
    `promote_types(kernel, float32)`, and in a box with matching axis names where the kernel is in one. A layer gets the same
    values whether the model is scanned or not.

    Raises:
      ValueError: `params` are not this model's; missing, unexpected and misshaped ones are named.
    """
    self._check_params(params)
    supports = {}
    for group in self.groups:
      keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.array(group.rows))
      new = functools.partial(
        equation.init_supports,
        in_features=group.in_features,
        out_features=group.out_features,
        ranks=group.space.ranks,
        bias=group.has_bias,
        tied=group.space.tied,
        dtype=jnp.promote_types(group.dtype, jnp.float32),
      )
      stacked = jax.vmap(new)(keys)
      shaped = {
        name: value.reshape(group.stack_shape + value.shape[1:]) for name, value in stacked.items()
      }
      boxed = _boxed(shaped, get(params, group.path)['kernel'], group.members[0])
      supports = tree.replace(supports, group.path, boxed)
    return {'params': params, COLLECTION: supports}

  def apply(
    self,
    variables: Mapping[str, Any],
    *args: Any,
    genome: Any,
    merge: str | None = None,
    **kwargs: Any,
  ) -> Any:
    """What `model.apply` returns, for the subnet of a genome.

    Args:
      variables: from `init`, after training for instance, with the model's other collections if it has any.
      *args: inputs of the model.
      genome: int [rows, 5]; may be traced, so that one compilation serves all, and `jax.vmap` over it a population.
      merge: overrides the way of merging.
      **kwargs: `rngs`, `mutable`, `method`, `capture_intermediates`, and the model's own.

    Raises:
      ValueError: the genome or the variables do not fit the model.
    """
    genomes.check_genome(self.spec, genome)
    if np.ndim(genome) != 2:
      raise ValueError(
        f'apply takes one genome [{len(self.spec)}, 5], not {np.shape(genome)}; use jax.vmap over a population.'
      )
    return self._run(variables, jnp.asarray(genome), merge or self.merge, None, args, kwargs)

  def fix(self, genome: Any) -> Subnet:
    """The subnet of one concrete genome [rows, 5]: only the terms that it uses, in the cheapest form."""
    genomes.check_genome(self.spec, genome)
    return Subnet(self, genomes.canonicalize(self.spec, np.asarray(genome)))

  def fold(self, variables: Mapping[str, Any], genome: Any) -> Any:
    """Plain params for the untouched model: the genome's supports merged into the kernels and biases, all else as it was."""
    genomes.check_genome(self.spec, genome)
    _check_variables(variables)
    return merge_lib.fold(
      self.groups, variables['params'], variables[COLLECTION], jnp.asarray(genome)
    )

  def count_params(self, genome: Any) -> Any:
    """Trained parameters of a genome [rows, 5] (an int) or of many [..., rows, 5] (int64 [...]), heads not counted."""
    return genomes.count_params(self.spec, genome)

  def split(
    self, variables: Mapping[str, Any], *, supports: bool = True
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trainable, frozen): supports and heads, everything else. Give only the first to gradients and optimizer.

    With `supports=False` the supports stay with the frozen half, and heads alone are trained: a linear probe.
    """
    params = flatten(variables['params'])
    part = lambda head: flax.traverse_util.unflatten_dict(
      {p: v for p, v in params.items() if (p in self.head_paths) == head}
    )
    rest = {name: value for name, value in variables.items() if name != 'params'}
    trainable = {'params': part(True)}
    if supports:
      trainable[COLLECTION] = rest.pop(COLLECTION)
    return trainable, {'params': part(False), **rest}

  def join(self, trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `split`, also of a `Subnet`'s."""
    both = lambda name: flax.traverse_util.unflatten_dict(
      {**flatten(frozen.get(name, {})), **flatten(trainable.get(name, {}))}
    )
    return {**frozen, **trainable, 'params': both('params'), COLLECTION: both(COLLECTION)}

  def summary(self, genome: Any = None) -> str:
    """A table of the adapted layers: sizes, alleles on offer (or those of a genome), trained and total parameters."""
    chosen = self.spec.num_codes - 1 if genome is None else np.asarray(genome)
    genomes.check_genome(self.spec, chosen)
    rows = [('layer', 'in', 'out', *TENSORS, 'trained', 'total')]
    for row, layer in enumerate(self.spec):
      codes = [
        layer.offered(t) if genome is None else (chosen[row, i],) for i, t in enumerate(TENSORS)
      ]
      names = [
        ' '.join(layer.space.names(t)[code] for code in of)
        for t, of in zip(TENSORS, codes, strict=True)
      ]
      trained = sum(layer.costs(t)[codes[i][-1]] for i, t in enumerate(TENSORS))
      total = layer.in_features * layer.out_features + layer.bias * layer.out_features
      rows.append(
        (
          layer.name,
          f'{layer.in_features:,}',
          f'{layer.out_features:,}',
          *names,
          f'{trained:,}',
          f'{total:,}',
        )
      )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [
      '  '.join(
        cell.rjust(w) if i in (1, 2, 8, 9) else cell.ljust(w)
        for i, (cell, w) in enumerate(zip(row, widths, strict=True))
      ).rstrip()
      for row in rows
    ]
    heads = sum(self.param_shapes[path].size for path in self.head_paths)
    total = sum(shape.size for shape in self.param_shapes.values())
    trained = self.count_params(chosen)
    what = 'the largest subnet' if genome is None else 'this subnet'
    share = f'{100 * (trained + heads) / total:.2f}% of the {total:,} of the base model'
    return '\n'.join(
      [*aligned, f'{what} trains {trained:,} parameters, and the heads {heads:,}: {share}']
    )

  def _run(self, variables, genome, merge, fixed, args, kwargs):
    _check_variables(variables)
    rest = {name: value for name, value in variables.items() if name not in ('params', COLLECTION)}
    if merge == 'up_front':
      params = merge_lib.fold(self.groups, variables['params'], variables[COLLECTION], genome)
      result = self.model.apply({'params': params, **rest}, *args, **kwargs)
    else:
      grafted, forms = merge_lib.graft(
        self.groups, variables['params'], variables[COLLECTION], genome, fixed
      )
      with nn.intercept_methods(functools.partial(merge_lib.intercept, forms)):
        result = self.model.apply({'params': grafted, **rest}, *args, **kwargs)
    if kwargs.get('mutable', False) is not False and 'params' in result[1]:
      result[1]['params'] = variables['params']  # the base's own: merged values are no update of it
    return result

  def _check_params(self, params):
    named = lambda flat: {path_name(path): nn.meta.unbox(value) for path, value in flat.items()}
    if problems := tree.differences(named(flatten(params)), named(self.param_shapes)):
      raise ValueError(
        f'These params are not those of the adapted {type(self.model).__name__}. {"; ".join(problems)}.'
      )


@dataclasses.dataclass(frozen=True, eq=False)
class Subnet:
  """One subnet of an adapted model with its genome fixed: GLoRA's parametrization without the search.

  Its `apply` computes only the terms that are there. In an `nn.Dense` whose A is not LoRA no merged kernel is formed: a LoRA
  term of B is two thin products, a scale acts on the output, and no gradient has the kernel's size. Where some A is LoRA, kernels must be
  merged, as the adapted model merges them.

  Attributes:
    adapted: the adapted model.
    genome: canonical, int8 [rows, 5].
  """

  adapted: Adapted
  genome: np.ndarray

  def apply(self, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    """What `adapted.apply(..., genome=genome)` returns, within rounding."""
    thin = (
      isinstance(self.adapted.model, nn.Module) and self.genome[:, 0].max() < 3
    )  # an NNX model has no interceptors
    merge = 'lazy' if thin else self.adapted.merge
    return self.adapted._run(variables, jnp.asarray(self.genome), merge, self.genome, args, kwargs)

  def fold(self, variables: Mapping[str, Any]) -> Any:
    """Plain params for the untouched model."""
    return self.adapted.fold(variables, self.genome)

  def count_params(self) -> int:
    """Trained parameters, heads not counted."""
    return self.adapted.count_params(self.genome)

  def split(self, variables: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trainable, frozen) as `Adapted.split`, with only the supports that the genome reads among the trainable."""
    trainable, frozen = self.adapted.split(variables)
    used = set()
    for group in self.adapted.groups:
      for row in group.rows:
        parts = equation.used_parts(
          self.genome[row].tolist(), group.space.ranks, group.has_bias, group.space.tied
        )
        used |= {(*group.path, name) for name in parts}
    supports = flatten(trainable[COLLECTION])
    part = lambda reads: flax.traverse_util.unflatten_dict(
      {p: v for p, v in supports.items() if (p in used) == reads}
    )
    return {**trainable, COLLECTION: part(True)}, {**frozen, COLLECTION: part(False)}

  def join(self, trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `split`."""
    return self.adapted.join(trainable, frozen)


def _boxed(supports: dict[str, jax.Array], kernel: Any, site: Site) -> dict[str, Any]:
  """Supports in a box like the kernel's, if it has one: the names of the axes that they share with it, None for the others."""
  if not isinstance(kernel, nn.Partitioned):
    return supports
  names = tuple(kernel.names) + (None,) * (len(site.kernel_shape) - len(kernel.names))
  single = lambda dims: (
    names[dims[0]] if len(dims) == 1 else None
  )  # flattened axes have no one name
  fan_in, fan_out = single(site.layout.inputs), single(site.layout.outputs)
  stack = tuple(names[d] for d in site.layout.stack)
  axes = {
    'down': (fan_in, None),
    'up': (None, fan_out),
    'C_up': (None, None),
    'C_vector': (fan_in,),
    'constant': (None,),
  }
  of = lambda name: axes.get(name, axes.get(name.split('_')[-1], (fan_out,)))
  return {
    name: kernel.replace(value=value, names=stack + of(name)) for name, value in supports.items()
  }


def _check_variables(variables):
  for name in ('params', COLLECTION):
    if name not in variables:
      raise ValueError(
        f"The variables have no '{name}' (they have {', '.join(variables) or 'nothing'}); pass what init returned."
      )
