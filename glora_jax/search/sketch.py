"""The mean gradient by the kernels and biases of an adapted model's base, in one pass over batches.

No kernel's gradient is ever stored. On the way back it is multiplied by thin random matrices from
both sides, and forgotten; the sums of these products have the mean gradient's first singular
vectors and values (Tropp et al., Practical sketching algorithms for low-rank matrix approximation,
arXiv 1609.00048, algorithm 7).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from glora_jax.compiling import reported
from glora_jax.mesh import options_of_one_pass, replicated, settle, split_rows
from glora_jax.method.adapted import Adapted, call_model
from glora_jax.method.adapter import COLLECTION
from glora_jax.method.forward import Forward, Loss, loss_and_metrics
from glora_jax.method.groups import Group
from glora_jax.method.modules import intercept
from glora_jax.method.site import Site
from glora_jax.method.space import FLAT_FORMS
from glora_jax.method.validation import check_only_arrays
from glora_jax.search.allocation import Directions, RowGradients, directions_of
from glora_jax.search.errors import NonFiniteError
from glora_jax.search.taps import Probe, differentiated, member_probes, with_changed
from glora_jax.tree import on_host

Mean = dict[str, dict[str, Any]]  # of what gradients met, by site and name

_OVERSAMPLING = 4, 8  # directions of a sketch for each one that is wanted, and some more


@dataclass(frozen=True, eq=False)
class Pass:
  """A pass over batches.

  Attributes:
    adapted: the adapted model.
    variables: its variables, arrays or shapes; their supports do not matter.
    loss: see `Loss`.
    max_rank: number of directions that are wanted of each kernel.
    key: random key.
    mesh: devices that every batch is split over; None for one device.
  """

  adapted: Adapted
  variables: Mapping[str, Any]
  loss: Loss
  max_rank: int
  key: jax.Array
  mesh: jax.sharding.Mesh | None = None

  def run(self, batches: Iterable[Any], progress: bool = True) -> tuple[Mean, float | None]:
    """Goes over the batches.

    Returns:
      The mean over the batches, and the share of its square by the kernels that is not noise of
      the batches: at most 1, in the mean 0 where all is noise; None of a single batch.

    Raises:
      ValueError: there are no batches.
      NonFiniteError: a loss or its gradient is not finite.
    """
    total, probes, fixed = self.start()
    placed = total, probes
    total, probes = jax.device_put(placed) if self.mesh is None else settle(self.mesh, placed)
    fixed, found = settle(self.mesh, fixed), []
    for number, batch in enumerate(tqdm(batches, 'gradient', unit='batch', disable=not progress)):
      check_only_arrays(f'arrays of batch {number}', batch)
      key = jax.random.fold_in(self.key, number)
      arguments = total, probes, fixed, split_rows(self.mesh, batch), key
      total, of_batch = self.program(*arguments)
      found.append(of_batch)
      jax.block_until_ready(found[-2:-1])  # no more than two batches wait for the device
    if not found:
      raise ValueError('There are no batches; pass at least one.')
    losses, finite, norms = np.array(jax.device_get(found), np.float64).T
    _check_finite(losses, finite)
    return self._finished(jax.device_get(total), norms**2)

  def readers(self, mean: Mean) -> Iterator[tuple[Group, Callable[[int], RowGradients]]]:
    """Every group, with what reads the gradients of its n-th row."""
    for group in self.adapted.places.groups:
      yield group, _reader(group, self.variables['params'], mean, self.probes[group.name])

  @functools.cached_property
  def probes(self) -> dict[str, dict[str, Probe]]:
    """What the gradients of every group's kernels are multiplied by."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(self.key)))
    return {
      group.name: _draw_probes(group, self.max_rank, rng) for group in self.adapted.places.groups
    }

  def _finished(self, total: Any, squares: np.ndarray) -> tuple[Mean, float | None]:
    """The mean gradient, and how much of it is not noise, by the squares of the batches' own."""
    count = len(squares)
    mean = jax.tree.map(lambda part: np.asarray(part, np.float64) / count, total)
    square = float(self._square(mean))
    if count == 1:
      return mean, None
    # Of noise alone the mean square is `count` times that of its mean.
    return mean, 1 - (squares.mean() / square - 1) / (count - 1) if square else 0.0

  def _square(self, gradients: Mapping[str, Mapping[str, Any]]) -> Any:
    """The squared gradient by all kernels, as far as the sketches from the left see it."""
    return sum(
      group.in_features / left.shape[-2] * (left * left).sum()
      for group in self.adapted.places.groups
      for site in group.members
      for left in [gradients[site.name]['B_left']]
    )

  def start(self) -> tuple[Any, ...]:
    """(sums of the gradients, probes, all variables but the supports) before the first batch."""
    fixed = {name: value for name, value in self.variables.items() if name != COLLECTION}
    shapes = jax.eval_shape(self._differentiated, fixed['params'], self.probes)
    zeros = jax.tree.map(lambda part: np.zeros(part.shape, np.float32), shapes)
    return zeros, self.probes, fixed

  def _differentiated(self, params: Any, probes: Any) -> dict[str, Any]:
    """What the loss is differentiated by, by site."""
    return {site.name: differentiated(params, site, parts) for site, parts in self._sites(probes)}

  def _sites(self, probes: Any) -> Iterator[tuple[Site, dict[str, Probe]]]:
    """Every site with its part of its group's probes."""
    for group in self.adapted.places.groups:
      yield from member_probes(group, probes[group.name])

  @functools.cached_property
  def program(self) -> Any:
    """The compiled `(sums, probes, variables, batch, key) -> (sums, what is said of the batch)`."""
    program = jax.jit(
      self._add_batch,
      donate_argnums=0,
      out_shardings=None if self.mesh is None else replicated(self.mesh),
      compiler_options=options_of_one_pass(),
    )
    return reported('gradient', program)

  def _add_batch(self, total, probes, variables, batch, key):
    """The sums with a batch's gradient, and (its loss, whether all is finite, its norm)."""
    slots = self._differentiated(variables['params'], probes)
    loss, found = jax.value_and_grad(self._batch_loss)(slots, probes, variables, batch, key)
    found = jax.tree.map(lambda part: part.astype(jnp.float32), found)
    finite = jnp.stack([jnp.isfinite(part).all() for part in jax.tree.leaves(found)]).all()
    # Scaled, since the square of a float32 is 0 or infinite long before the number is.
    largest = jnp.stack([jnp.abs(part).max() for part in jax.tree.leaves(found)]).max()
    scaled = jax.tree.map(lambda part: part / jnp.where(largest, largest, 1), found)
    norm = largest * jnp.sqrt(self._square(scaled))
    return jax.tree.map(jnp.add, total, found), (loss, finite, norm)

  def _batch_loss(self, slots, probes, variables, batch, key):
    params, has_taps = variables['params'], False
    inside = isinstance(self.adapted.model, nn.Module)
    for site, parts in self._sites(probes):
      params, is_tapped = with_changed(params, site, slots[site.name], parts, inside)
      has_taps |= is_tapped
    forward = _Base(self.adapted, {**variables, 'params': params})
    # No interceptor where there is nothing to tap: it would slow down tracing.
    with nn.intercept_methods(intercept) if has_taps else nullcontext():
      return loss_and_metrics(self.loss(forward, batch, key))[0]


class _Base(Forward):
  """The model without its adapter, as the gradient by its kernels needs it."""

  def __call__(self, *inputs: Any, genome: Any = None, **kwargs: Any) -> Any:
    """What the model returns."""
    del genome
    return call_model(self.adapted, self.variables, *inputs, **kwargs)


def _check_finite(losses: np.ndarray, finite: np.ndarray) -> None:
  """Raises NonFiniteError where a batch's loss or its gradient is not finite."""
  wrong = np.flatnonzero(~np.isfinite(losses) | (finite == 0))
  if not len(wrong):
    return
  number, loss = wrong[0], losses[wrong[0]]
  if np.isfinite(loss):
    raise NonFiniteError(
      f'The gradient of batch {number} is not finite, though its loss is {loss:g}, as with the '
      'root of 0. Change the loss, or compute it in float32.'
    )
  raise NonFiniteError(
    f'The loss of batch {number} is {loss}; it must be finite. Check the images, the labels and '
    'the pretrained weights.'
  )


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
  group: Group, params: Any, mean: Mean, probes: dict[str, Probe]
) -> Callable[[int], RowGradients]:
  """What gives the gradients of a group's row, its members side by side along the outputs."""
  names = mean[group.members[0].name]
  found = {name: _side_by_side(group, mean, name) for name in names}
  kernels = []
  for site in group.members:
    kernel: Any = on_host(site.kernel(params))
    kernels.append(_flat(site.layout.matrices(kernel.astype(np.float32)), 2))

  def directions(name: str, row: int) -> Directions:
    left = _flat(probes[name].left, 2)[row]
    return directions_of(found[f'{name}_right'][row], found[f'{name}_left'][row], left)

  def read(row: int) -> RowGradients:
    bias = found['bias'][row] if 'bias' in found else None
    kernel = np.concatenate([part[row] for part in kernels], -1)
    prompt = None if bias is None else kernel @ bias
    scaled = directions('A', row) if 'A' in probes else None
    return RowGradients(directions('B', row), scaled, found['scale'][row], bias, prompt)

  return read


def _side_by_side(group: Group, mean: Mean, name: str) -> np.ndarray:
  """What the members' gradients met, [row, ...]: side by side by outputs, added up by inputs."""
  parts = []
  for site in group.members:
    part = mean[site.name][name]
    parts.append(_flat(site.layout.vectors(part) if name == 'bias' else part, 1 + ('_' in name)))
  return np.sum(parts, axis=0) if name.endswith('_right') else np.concatenate(parts, axis=-1)


def _flat(stacked: Any, kept: int) -> np.ndarray:
  """An array with all axes but the last ones as one."""
  return stacked.reshape(-1, *stacked.shape[stacked.ndim - kept :])
