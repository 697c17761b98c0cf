"""The mean gradient by the kernels and biases of an adapted model's base, in one pass over batches.

No kernel's gradient is ever stored. On the way back it is multiplied by thin random matrices from
both sides, and forgotten; the sums of these products have the mean gradient's first singular
vectors and values (Tropp et al., Practical sketching algorithms for low-rank matrix approximation,
arXiv 1609.00048, algorithm 7).
"""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from glora_jax.mesh import deal, on_host, options_of_one_pass, replicated, settle
from glora_jax.method.adapted import Adapted
from glora_jax.method.groups import Group
from glora_jax.method.modules import intercept
from glora_jax.method.site import Site
from glora_jax.method.space import FLAT_FORMS
from glora_jax.method.supports import COLLECTION
from glora_jax.search.allocation import Directions, RowGradients, directions_of
from glora_jax.search.errors import NonFiniteError
from glora_jax.search.taps import Probe, differentiated, member_probes, with_changed

# `loss(forward, batch, key)` is the mean over a batch; `forward` is called like the model.
Loss = Callable[[Callable[..., Any], Any, jax.Array], jax.Array]

_OVERSAMPLING = 4, 8  # directions of a sketch for each one that is wanted, and some more


class Sums(NamedTuple):
  """What a pass finds.

  Attributes:
    mean: the mean over the batches of what each site's gradient meets, by site and name.
    signal: share of the mean gradient's square by the kernels that is not noise of the batches,
      at most 1 and in the mean 0 where all is noise; None of a single batch.
  """

  mean: dict[str, dict[str, np.ndarray]]
  signal: float | None


class Ahead(NamedTuple):
  """The program of the pass, which compiles in the background.

  Attributes:
    program: what will be the compiled program.
    shapes: of its arguments: their structure, and the shape and type of every array.
  """

  program: concurrent.futures.Future[Any]
  shapes: Any


def _shapes(arguments: Any) -> Any:
  leaves, structure = jax.tree.flatten(arguments)
  return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


@dataclass(frozen=True, eq=False)
class Pass:
  """A pass over batches.

  Attributes:
    adapted: the adapted model.
    variables: its variables, arrays or shapes; their supports do not matter.
    loss: see `Loss`.
    max_rank: number of directions that are wanted of each kernel.
    key: random key.
    mesh: devices that every batch is dealt to; None for one device.
  """

  adapted: Adapted
  variables: Mapping[str, Any]
  loss: Loss
  max_rank: int
  key: jax.Array
  mesh: jax.sharding.Mesh | None = None

  def run(self, batches: Iterable[Any], progress: bool = True, ahead: Ahead | None = None) -> Sums:
    """Goes over the batches.

    Raises:
      ValueError: there is no batch.
      NonFiniteError: a loss or its gradient is not finite.
    """
    slots, probes, fixed = self._arguments()
    placed = slots, probes
    slots, probes = jax.device_put(placed) if self.mesh is None else settle(self.mesh, placed)
    fixed = settle(self.mesh, fixed)
    sums = _RunningSums(self.adapted)
    for number, batch in enumerate(tqdm(batches, 'gradient', unit='batch', disable=not progress)):
      key = jax.random.fold_in(self.key, number)
      arguments = slots, probes, fixed, deal(self.mesh, batch), key
      fits = ahead is not None and ahead.shapes == _shapes(arguments)
      program = ahead.program.result() if ahead is not None and fits else self._program
      # The device goes on while the last batch's gradients are added up.
      sums.add(number, *program(*arguments))
    return sums.finished()

  def program(self, batch: Any) -> tuple[Any, tuple[Any, ...]]:
    """(compiled function, its arguments) for a batch, which may be shapes."""
    return self._program, (*self._arguments(), batch, self.key)

  def start_compiling(self, batch: Any) -> Ahead:
    """Compiles the program for batches like this one in a thread of its own, on one device.

    It is traced before, in this thread, whose settings of JAX are its own.
    """
    program, arguments = self.program(batch)
    compiler = concurrent.futures.ThreadPoolExecutor(1, 'compiler')
    compiled = compiler.submit(program.lower(*arguments).compile)
    compiler.shutdown(wait=False)
    return Ahead(compiled, _shapes(arguments))

  def readers(self, sums: Sums) -> Iterator[tuple[Group, Callable[[int], RowGradients]]]:
    """Every group, with what reads the gradients of its n-th row."""
    for group in self.adapted.groups:
      yield group, _reader(group, self.variables['params'], sums.mean, self.probes[group.name])

  @functools.cached_property
  def probes(self) -> dict[str, dict[str, Probe]]:
    """What the gradients of every group's kernels are multiplied by."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(self.key)))
    return {group.name: _draw_probes(group, self.max_rank, rng) for group in self.adapted.groups}

  def _arguments(self) -> tuple[Any, ...]:
    """(what the loss is differentiated by, probes, all variables but the supports)."""
    fixed = {name: value for name, value in self.variables.items() if name != COLLECTION}
    slots = {
      site.name: differentiated(fixed['params'], site, probes) for site, probes in self._sites()
    }
    return slots, self.probes, fixed

  def _sites(self, probes: Any = None) -> Iterator[tuple[Site, dict[str, Probe]]]:
    """Every site with its part of its group's probes."""
    for group in self.adapted.groups:
      yield from member_probes(group, (probes or self.probes)[group.name])

  @functools.cached_property
  def _program(self) -> Any:  # a compiled function
    return jax.jit(
      jax.value_and_grad(self._batch_loss),
      out_shardings=None if self.mesh is None else replicated(self.mesh),
      compiler_options=options_of_one_pass(),
    )

  def _batch_loss(self, slots, probes, variables, batch, key):
    params, taps = variables['params'], {}
    inside = isinstance(self.adapted.model, nn.Module)
    for site, parts in self._sites(probes):
      params, new = with_changed(params, site, slots[site.name], parts, inside)
      taps |= new
    forward = functools.partial(self.adapted.call_model, {**variables, 'params': params})
    # No interceptor where there is nothing to tap: it would slow down tracing.
    with nn.intercept_methods(functools.partial(intercept, taps)) if taps else nullcontext():
      value = self.loss(forward, batch, key)
    if not isinstance(value, jax.Array | np.ndarray | np.generic | float):
      given = f'is a {type(value).__name__}'
    elif jnp.shape(value):
      given = f'has shape {jnp.shape(value)}'
    elif not jnp.issubdtype(dtype := jnp.result_type(value), jnp.floating):
      given = f'is {dtype}'
    else:
      return value
    raise ValueError(f'The loss {given}; it must be one number, the mean over a batch.')


class _RunningSums:
  """Adds up gradients on the host, one batch behind the device."""

  def __init__(self, adapted: Adapted):
    self._scales = {
      site.name: group.in_features for group in adapted.groups for site in group.members
    }
    self._pending: tuple[int, Any, Any] | None = None
    self._sum: Any = None
    self._squares, self._count = 0.0, 0

  def add(self, number: int, loss: jax.Array, gradients: Any) -> None:
    """Takes a batch's loss and gradients, and adds those of the batch before."""
    self._settle()
    self._pending = number, loss, gradients

  def finished(self) -> Sums:
    """The mean, and how much of it is not noise."""
    self._settle()
    if not self._count:
      raise ValueError('There are no batches; give at least one.')
    mean, count = jax.tree.map(lambda total: total / self._count, self._sum), self._count
    square = self._square(mean)
    if count == 1 or not square:
      return Sums(mean, None if count == 1 else 0.0)
    # With noise alone the batches' mean square is `count` times the mean's.
    return Sums(mean, 1 - (self._squares / count / square - 1) / (count - 1))

  def _settle(self) -> None:
    if self._pending is None:
      return
    number, loss, gradients = self._pending
    self._pending = None
    if not np.isfinite(loss).all():
      raise NonFiniteError(
        f'The loss of batch {number} is {float(loss)}; it must be finite. Check the images, the '
        'labels and the pretrained weights.'
      )
    found = jax.tree.map(functools.partial(np.asarray, dtype=np.float32), gradients)
    if not all(np.isfinite(gradient).all() for gradient in jax.tree.leaves(found)):
      raise NonFiniteError(
        f'The gradient of batch {number} is not finite, and its loss is {float(loss):g}: the root '
        'of 0 is such a loss, for instance. Change the loss, or compute it in float32.'
      )
    self._sum = found if self._sum is None else jax.tree.map(np.add, self._sum, found)
    self._squares += self._square(found)
    self._count += 1

  def _square(self, gradients: Mapping[str, Mapping[str, np.ndarray]]) -> float:
    """The squared gradient by all kernels, as far as the sketches from the left see it."""
    total = 0.0
    for site, found in gradients.items():
      left = found['B_left']  # [stack..., width, out]
      total += self._scales[site] / left.shape[-2] * float(np.vdot(left, left))
    return total


def _draw_probes(group: Group, max_rank: int, rng: np.random.Generator) -> dict[str, Probe]:
  """Orthonormal columns, at random, by 'B' and, where A has a LoRA on offer, 'A'."""
  sizes, probes = (group.in_features, group.out_features), {}
  times, more = _OVERSAMPLING
  width = min(times * max_rank + more, *sizes)
  widths = min(3 * width + 1, group.in_features), width
  names = ('B', 'A') if max(group.space.A or (0,)) >= len(FLAT_FORMS['A']) else ('B',)
  for name in names:
    drawn = [
      np.linalg.qr(rng.standard_normal(shape, np.float32)).Q
      for shape in zip(sizes, widths, strict=True)
    ]
    probes[name] = Probe(*(np.broadcast_to(m, (*group.stack_shape, *m.shape)) for m in drawn))
  return probes


def _reader(
  group: Group, params: Any, mean: Mapping[str, Mapping[str, np.ndarray]], probes: dict[str, Probe]
) -> Callable[[int], RowGradients]:
  """What gives the gradients of a group's row, its members side by side along the outputs."""
  names = mean[group.members[0].name]
  found = {name: _side_by_side(group, mean, name) for name in names}
  kernels = [
    _flat(site.layout.matrices(on_host(site.kernel(params)).astype(np.float32)), 2)
    for site in group.members
  ]

  def directions(name: str, row: int) -> Directions | None:
    if name not in probes:
      return None
    left = _flat(probes[name].left, 2)[row]
    return directions_of(found[f'{name}_right'][row], found[f'{name}_left'][row], left)

  def read(row: int) -> RowGradients:
    bias = found['bias'][row] if 'bias' in found else None
    kernel = np.concatenate([part[row] for part in kernels], -1)
    prompt = None if bias is None else kernel @ bias
    return RowGradients(
      directions('B', row), directions('A', row), found['scale'][row], bias, prompt
    )

  return read


def _side_by_side(
  group: Group, mean: Mapping[str, Mapping[str, np.ndarray]], name: str
) -> np.ndarray:
  """What the members' gradients met, [row, ...]: side by side by outputs, added up by inputs."""
  parts = []
  for site in group.members:
    part = mean[site.name][name]
    parts.append(_flat(site.layout.vectors(part) if name == 'bias' else part, 1 + ('_' in name)))
  return np.sum(parts, axis=0) if name.endswith('_right') else np.concatenate(parts, axis=-1)


def _flat(stacked: Any, kept: int) -> np.ndarray:
  """An array with all axes but the last ones as one."""
  return stacked.reshape(-1, *stacked.shape[stacked.ndim - kept :])
