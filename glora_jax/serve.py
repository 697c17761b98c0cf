"""Many adapters on one base: every example of a batch names its adapter.

One structure is compiled that contains all others up to a rank: A as a vector, B as a LoRA, a shift
of the bias. Each of its arrays has one more axis, of *slots*, and a slot holds one adapter. An
adapter with any structure within this one is written into a slot of arrays that are already on the
devices, so nothing is compiled for it. `jax.vmap` over the examples chooses a slot where a kernel
is used, by a rule of `glora_jax.method.rules`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from glora_jax.checks import listed, printable, shown, validate
from glora_jax.files import Path
from glora_jax.method import equation
from glora_jax.method.adapted import Adapted, Call, dequantize_heads, run, with_space
from glora_jax.method.adapter import COLLECTION, of_tensors
from glora_jax.method.adapter_file import (
  base_fingerprints,
  check_base,
  check_heads,
  check_sizes,
  init_shapes,
  order_layers,
  read_adapter,
  unpack,
)
from glora_jax.method.program import arrays_of
from glora_jax.method.quantized import split_quantized
from glora_jax.method.rules import merge_biases
from glora_jax.method.site import over_stack
from glora_jax.method.space import MOST_RANKS, SearchSpace
from glora_jax.tree import KeyPath, flatten, replace, update

__all__ = ['Pool']

_BASE = 0  # the slot of the base itself, in which the adapter is zero


class Pool:
  """Adapters in slots on the devices; in a call each example of the batch names its adapter.

  A pool accepts files of `save_adapter` with any structure in which A is at most a vector, B and C
  at most a LoRA of `rank`, and D and E anything. Of a table with chosen rows each adapter may have
  other rows, as many as `adapted` has. Each example runs as a batch of 1 (`jax.vmap`). Heads have
  the dtypes of the base's. While an adapter loads, the slots are on the devices twice. The pool
  compiles its calls; a jitted function that calls a pool keeps the adapters that were in it when it
  was traced. Threads that share a pool need a lock.

  Args:
    adapted: the adapted model, with any structure. Its head must have as many classes as the
      largest adapter's. A sharded model (`glora_jax.shard`) stays sharded.
    params: parameters of the base.
    slots: number of adapters that the pool holds at once.
    rank: largest LoRA rank that an adapter may have in a layer, at most 125.
    merge: whether LoRAs of A are allowed. Then every layer merges a kernel for each example.
    evict: whether a full pool drops the least recently used adapter; else it raises.
    **apply_kwargs: keyword arguments that the model is called with, `mutable=['cache']` for
      instance.

  Raises:
    TypeError: an argument has another type.
    ValueError: a number is beyond its limits, or the parameters belong to another model.

  Example:
    >>> import tempfile, flax.linen as nn, glora_jax, jax, jax.numpy as jnp
    >>> from glora_jax import Pool
    >>> model, x = nn.Dense(3), jnp.ones((3, 4))
    >>> params = {'kernel': jnp.ones((4, 3)), 'bias': jnp.zeros(3)}
    >>> adapted = glora_jax.adapt(model, x, structure='bitfit')
    >>> variables = adapted.init(jax.random.key(0), params)
    >>> variables['glora']['E'] += 1
    >>> pool = Pool(adapted, params, slots=2, rank=4)
    >>> with tempfile.NamedTemporaryFile(suffix='.safetensors') as file:
    ...   glora_jax.save_adapter(file.name, adapted, variables)
    ...   pool.load('birds', file.name)
    >>> pool(x, ['birds', None, 'birds'])[:, 0].tolist()
    [5.0, 4.0, 5.0]
  """

  def __init__(
    self,
    adapted: Adapted,
    params: Any,
    slots: int = 16,
    rank: int = 8,
    *,
    merge: bool = False,
    evict: bool = False,
    **apply_kwargs: Any,
  ):
    validate(adapted, Adapted, 'adapted')
    self._most = validate(slots, int, 'slots', least=1)
    self._rank = validate(rank, int, 'rank', least=1, most=MOST_RANKS)
    self._merge = validate(merge, bool, 'merge')
    self._evicts = validate(evict, bool, 'evict')
    self._apply_kwargs = apply_kwargs
    self._ranks = tuple(range(1, self._rank + 1))  # an adapter's may be any
    adapted = with_space(adapted, SearchSpace((self._rank,), shared=False))
    self._adapted = adapted.fix(
      {'': {'A': 'lora' if merge else 'vector', 'B': 'lora', 'E': 'vector'}}
    )
    params = dequantize_heads(adapted, params)
    arrays, rebuild = arrays_of(params)
    params = rebuild(list(map(jnp.asarray, arrays)))
    self._params, self._rebuild = arrays_of(params)  # which hold no array of the host
    fresh = init_shapes(self._adapted, params)
    trainable, _ = self._adapted.split({**fresh, 'params': params})
    self._heads = {p: nn.meta.unbox(value) for p, value in flatten(trainable['params']).items()}
    sharding = self._params[0].sharding
    if isinstance(sharding, NamedSharding):
      sharding = NamedSharding(sharding.mesh, PartitionSpec())
    self._arrays = jax.device_put(self._empty(trainable[COLLECTION]), sharding)
    self._slots: dict[str, int] = {}  # of the adapters by name, least recently used first
    # Nothing is donated: an interrupted load leaves the old arrays, and calls that run use them.
    self._write = jax.jit(self._write_slot, out_shardings=sharding)
    self._run = jax.jit(self._run_batch)

  @functools.cached_property
  def _bases(self) -> list[str]:
    """The base's fingerprints, which only strict loads read."""
    _, frozen = self._adapted.split({'params': self._rebuild(self._params)}, adapter=False)
    return base_fingerprints(frozen['params'])

  @property
  def names(self) -> list[str]:
    """Names of the loaded adapters, the least recently used first."""
    return list(self._slots)

  def load(self, name: str, path: Path, *, strict: bool = True) -> None:
    """Loads an adapter, which replaces one of the same name.

    Args:
      name: the name that calls use.
      path: the file that `save_adapter` wrote.
      strict: whether an adapter that was trained on another base is an error; see `load_adapter`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, or of another model or base; or its structure is beyond the
        pool's, or the pool is full. Adapters that were loaded before stay.
    """
    validate(name, str, 'name')
    path, tensors, metadata = read_adapter(path)
    if strict:
      check_sizes(path, metadata, self._adapted)
    order_layers(path, metadata, self._adapted)
    self._check_fits(path, metadata)
    if strict:
      check_base(path, metadata, self._bases)
    slot = self._slots.get(name)
    free = set(range(1, self._most + 1)) - set(self._slots.values())
    if not (slot or free or self._evicts):
      raise ValueError(
        f'The pool is full, its {self._most} slots hold {listed(self._slots)}; evict one, or make '
        'a pool with more slots or with evict=True.'
      )
    loader = with_space(self._adapted, SearchSpace(self._ranks))
    stored = init_shapes(loader, self._rebuild(self._params))[COLLECTION]
    loader = with_space(loader, SearchSpace(self._ranks), metadata['ids'])
    genome, adapter, others = unpack(path, tensors, metadata, loader, stored)
    for group in loader.places.groups:
      if group.ids:  # more would be row 0, to which the slot adds zeros
        rows = group.arrays(adapter)['B_up'].shape[:-1]
        ids = np.pad(group.ids, (0, rows[-1] - len(group.ids)))
        adapter = replace(adapter, (*group.path, 'B_ids'), np.broadcast_to(ids, rows))
    heads = self._pad(path, flatten(others.pop('params', {})) or self._heads)
    if others:
      raise ValueError(
        f'The adapter {printable(path)} has its own {listed(others)}, and a pool holds only '
        'adapters and heads; load it with load_adapter.'
      )
    slot = slot or min(free, default=0) or next(iter(self._slots.values()))
    content = jax.tree.map(jnp.asarray, (slot, adapter, genome, heads))
    arrays = self._write(self._arrays, self._params, *content)
    others = {other: number for other, number in self._slots.items() if number != slot}
    self._arrays, self._slots = arrays, {**others, name: slot}

  def evict(self, name: str) -> None:
    """Frees the slot of an adapter; raises ValueError if there is none of this name."""
    self._slot(name)
    del self._slots[name]

  def __call__(self, x: Any, names: Sequence[str | None], **collections: Any) -> Any:
    """Runs each example with its adapter.

    Args:
      x: the model's input with the examples first, [batch, ...]; of several inputs a tuple of
        pytrees. Numbers without axes are the same for all.
      names: the adapter of each example; None is the base.
      **collections: the model's other collections, with leaves [batch, ...].

    Returns:
      The outputs [batch, ...]; of a number without axes, [batch]. If an adapter has fewer classes
      than the model, in a head with a bias, the logits of the others are -inf. With `mutable` a
      pair of outputs and updated collections, with leaves [batch, ...].

    Raises:
      TypeError: the names are not a list.
      ValueError: the pool has no adapter of a name, or names and examples are not as many.
    """
    inputs = x if isinstance(x, tuple) else (x,)
    validate(names, Iterable, 'names')
    names = [names] if isinstance(names, str) else list(names)
    slots = np.array([_BASE if name is None else self._slot(name) for name in names], np.int32)
    sizes = {np.shape(leaf)[0] for leaf in jax.tree.leaves((inputs, collections)) if np.ndim(leaf)}
    if sizes != {len(slots)}:
      raise ValueError(
        f'{len(slots)} names are given, but the inputs and collections have '
        f'{listed(map(str, sizes)) or "no"} examples; pass a name, or None, for each.'
      )
    used = dict(self._slots)
    for name in names:  # the most recently used come last
      if name is not None:
        used[name] = used.pop(name)
    self._slots = used
    return self._run(self._arrays, self._params, slots, inputs, collections)

  def _slot(self, name: Any) -> int:
    if name not in self.names:  # a list, which any value may be looked up in
      raise ValueError(
        f'There is no adapter {shown(name)} in the pool; it holds: {listed(self.names) or "none"}.'
      )
    return self._slots[name]

  def _empty(self, adapter: Any) -> dict[str, Any]:
    """The arrays of all slots, [stack..., slot, ...], with the base in each."""
    zeros: dict[KeyPath, Any] = {}
    for group in self._adapted.places.groups:
      at = len(group.stack_shape)
      stored = group.arrays(adapter)
      if group.ids:  # each slot has its own
        stored['B_ids'] = jax.ShapeDtypeStruct(stored['B_up'].shape[:-1], jnp.int32)
      for name, value in stored.items():
        shape = (*value.shape[:at], self._most + 1, *value.shape[at:])
        zeros[*group.path, name] = jnp.zeros(shape, value.dtype)
    heads = {path: jnp.stack([value] * (self._most + 1)) for path, value in self._heads.items()}
    return {'heads': heads, COLLECTION: update({}, zeros)}

  def _check_fits(self, path: Path, metadata: Mapping[str, Any]) -> None:
    """Raises ValueError if an adapter has a form that the pool's structure does not contain."""
    ours = self._adapted.spec
    for layer, forms, ids in zip(ours, metadata['layers'], metadata['ids'], strict=True):
      name = shown(layer.name)
      if len(ids) > len(layer.ids):
        raise ValueError(
          f'The adapter {printable(path)} trains {len(ids)} rows of {name}, and this pool holds '
          f'{len(layer.ids)}; make it of a model that is adapted with {len(ids)} ids.'
        )
      for tensor in 'ABC':
        kind, _, rank = forms[tensor][:20].partition(':')
        has = f'The adapter {printable(path)} has {shown(forms[tensor])} for {tensor} in '
        if kind == 'lora' and tensor == 'A' and not self._merge:
          raise ValueError(f'{has}{name}; a LoRA of A needs a pool with merge=True.')
        if kind == 'lora' and rank.isdecimal() and int(rank) > self._rank:
          raise ValueError(
            f'{has}{name}, and this pool holds rank {self._rank}; make it with rank={rank}.'
          )

  def _pad(self, path: Path, heads: Mapping[KeyPath, Any]) -> dict[KeyPath, Any]:
    """An adapter's heads with as many classes as the base's; the biases of the others are -inf."""
    heads, inputs = dict(heads), {}  # the input axes by path; a bias has none
    for site in self._adapted.places.other_sites:
      if site.bias_path in heads:
        inputs |= {site.kernel_path: site.layout.inputs, site.bias_path: ()}
    for head in inputs.keys() & heads.keys():
      value, most = heads[head], self._heads[head].shape
      if value.ndim == len(most):
        missing = np.maximum(np.subtract(most, value.shape), 0)
        missing[[*inputs[head]]] = 0  # classes are added, inputs are not
        fill = 0 if inputs[head] else -np.inf
        heads[head] = np.pad(value, [(0, size) for size in missing], constant_values=fill)
    check_heads(path, heads, self._heads)
    return heads

  def _write_slot(
    self, arrays: Any, params: Any, slot: Any, adapter: Any, genome: Any, heads: Any
  ) -> Any:
    """The arrays of all slots with an adapter of any structure written into one of them.

    Its forms become those of the pool's structure, which has no C and no D: they only shift the
    bias b, so the pool's E is D b + W C + E. Without b first, since a bfloat16 sum would round a
    small shift off.
    """
    write = jax.lax.dynamic_update_index_in_dim
    params, quantized = split_quantized(self._rebuild(params), self._adapted.places.param_shapes)
    written: dict[KeyPath, Any] = {}
    loader = with_space(self._adapted, SearchSpace(self._ranks))
    for group, loaded in zip(self._adapted.places.groups, loader.places.groups, strict=True):
      site, forms, ranks = group.site, loaded.forms(genome), loaded.space.ranks
      stored = loaded.scaled(loaded.arrays(adapter))
      to_pool = functools.partial(_as_union, ranks=ranks, merge=self._merge)
      new = over_stack(to_pool, len(group.stack_shape))(stored, forms)
      if (bias := site.bias(params)) is not None:
        kernel = quantized.get(site.kernel_path, site.kernel(params))
        zeros, of_bias = jnp.zeros(bias.shape), of_tensors(stored, ('C', 'D', 'E'))
        shift = merge_biases(kernel, zeros, of_bias, forms, site.layout, ranks)
        new['E'] = site.layout.vectors(bias) * new['D'] + site.layout.vectors(shift)
      for name, array in group.arrays(arrays[COLLECTION]).items():
        slots = write(array, new[name].astype(array.dtype), slot, len(group.stack_shape))
        written[*group.path, name] = slots
    heads = {
      path: write(array, heads[path].astype(array.dtype), slot, 0)
      for path, array in arrays['heads'].items()
    }
    return {'heads': heads, COLLECTION: update(arrays[COLLECTION], written)}

  def _run_batch(
    self, arrays: Any, params: Any, slots: Any, inputs: tuple, collections: Any
  ) -> Any:
    """The result of `__call__` for slots int [batch]; each example runs as a batch of 1."""
    genome, params = self._adapted.genome, self._rebuild(params)

    def run_one(slot: jax.Array, example: tuple, others: Any) -> Any:
      heads = {path: array[slot] for path, array in arrays['heads'].items()}
      variables = {**others, 'params': update(params, heads), COLLECTION: arrays[COLLECTION]}
      args = jax.tree.map(lambda batch, one: one[None] if np.ndim(batch) else one, inputs, example)
      call = Call(args, self._apply_kwargs)
      result = run(self._adapted, call, variables, jnp.asarray(genome), genome, slot)
      outputs, *updated = result if self._apply_kwargs.get('mutable') else (result,)
      outputs = jax.tree.map(lambda output: output[0] if np.ndim(output) else output, outputs)
      return (outputs, *updated) if updated else outputs

    axes = jax.tree.map(lambda leaf: 0 if np.ndim(leaf) else None, inputs)
    return jax.vmap(run_one, (0, axes, 0))(slots, inputs, collections)


def _as_union(
  adapter: Mapping[str, jax.Array], forms: jax.Array, ranks: Sequence[int], merge: bool
) -> dict[str, jax.Array]:
  """A layer's A and B as the pool's structure has them, and the form of D, which goes into E."""
  if 'B_ids' in adapter:
    return {name: adapter[name] for name in ('B_ids', 'B_up')}
  new = {'D': equation.flat_tensor(adapter, 'D', forms[3])}
  new['B_down'], new['B_up'] = equation.weight_factors(adapter, 'B', forms[1], ranks)
  if merge:
    new['A_down'], new['A_up'] = equation.weight_factors(adapter, 'A', forms[0], ranks)
  else:
    form = equation.flat_tensor(adapter, 'A', forms[0])
    new['A_vector'] = jnp.broadcast_to(form, new['B_up'].shape[-1:])
  return new
