"""The gradients of folds of batches by the kernels and biases of an adapted model's base.

A kernel that is small is differentiated as it is. Of a large one no gradient is ever stored: on the
way back it is multiplied by thin matrices and forgotten, with random ones on the right in a first
pass over the batches, which finds the directions that matter, and with these on the left in a
second one. Both passes run the same compiled program.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import nullcontext
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from glora_jax.limits import shown
from glora_jax.mesh import deal, options_of_one_pass, replicated, settle
from glora_jax.method.adapted import Adapted
from glora_jax.method.modules import intercept
from glora_jax.method.site import Site
from glora_jax.method.supports import COLLECTION
from glora_jax.search.checked import NonFiniteError
from glora_jax.search.row_gradients import (
  RowGradients,
  Sums,
  joint_bases,
  random_probes,
  read_rows,
)
from glora_jax.search.taps import Probe, differentiated, member_probes, with_changed

# `loss(forward, batch, key)` is the mean over a batch; `forward` is called like the model.
Loss = Callable[[Callable[..., Any], Any, jax.Array], jax.Array]
Batches = Sequence[Any] | Callable[[], Iterable[Any]]

_OVERSAMPLING = 4  # directions beyond those that are wanted, which a sketch needs to find these


@dataclasses.dataclass(frozen=True)
class Settings:
  """How gradients are measured.

  Attributes:
    folds: number of folds; batch i belongs to fold i % folds.
    max_rank: number of directions that are wanted of each kernel.
    mesh: devices that every batch is dealt to; None for one device.
    progress: whether to show a bar.
  """

  folds: int
  max_rank: int
  mesh: jax.sharding.Mesh | None = None
  progress: bool = True

  @property
  def size(self) -> int:
    """Directions that are kept of each fold's sketch."""
    return self.max_rank + _OVERSAMPLING

  @property
  def width(self) -> int:
    """Columns of a sketch, and directions of the joint basis."""
    return self.folds * self.size


class Ahead(NamedTuple):
  """The program of both passes, which compiles in the background.

  Attributes:
    program: what will be the compiled program.
    shapes: of its arguments: their structure, and the shape and type of every array.
  """

  program: concurrent.futures.Future[Any]
  shapes: Any

  def fits(self, arguments: Any) -> bool:
    """Whether the program is for these arguments."""
    return self.shapes == _shapes(arguments)


def _shapes(arguments: Any) -> Any:
  leaves, structure = jax.tree.flatten(arguments)
  return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


def measure(
  adapted: Adapted,
  variables: Mapping[str, Any],
  loss: Loss,
  batches: Batches,
  key: jax.Array,
  settings: Settings,
  ahead: Ahead | None = None,
) -> Iterator[RowGradients]:
  """The gradients of every row at the base model, with its heads as they are.

  Args:
    adapted: the adapted model.
    variables: its variables; the supports in them do not matter.
    loss: see `Loss`.
    batches: see `allocate`.
    key: random key; a batch has the same one in both passes.
    settings: folds, directions and devices.
    ahead: the program, if it was started before.

  Yields:
    Every group's rows, in the order of `adapted.groups`.

  Raises:
    ValueError: there are fewer batches than folds, they can be read only once, or a loss or its
      gradient is not finite.
  """
  if isinstance(batches, Sized):
    _require_batches(len(batches), settings.folds)  # before anything is compiled
  elif not callable(batches) and not isinstance(batches, Iterator):
    raise ValueError(
      f'batches={shown(batches)} must be a list, or a function that gives the batches again.'
    )
  variables = {**variables, 'params': adapted.full_precision(variables['params'])}
  passes = Passes(adapted, variables, loss, batches, key, settings, ahead)
  probes = passes.random_probes()
  sums = passes.run(probes, 'directions' if probes else 'gradients')
  bases = {
    group.name: joint_bases(group, sums, settings.size)
    for group in adapted.groups
    if group.name in probes
  }
  if probes:
    onto = {
      group: {
        name: Probe(bases[group][name].astype(np.float32), np.zeros_like(probe.right))
        for name, probe in of_group.items()
      }
      for group, of_group in probes.items()
    }
    for site, found in passes.run(onto, 'values').items():
      sums[site] |= {name: part for name, part in found.items() if name.endswith('_left')}
  for group in adapted.groups:
    yield from read_rows(group, variables['params'], sums, bases.get(group.name, {}))


@dataclasses.dataclass(frozen=True, eq=False)
class Passes:
  """Passes over the batches, by one compiled program."""

  adapted: Adapted
  variables: Mapping[str, Any]
  loss: Loss
  batches: Batches
  key: jax.Array
  settings: Settings
  ahead: Ahead | None = None

  def run(self, probes: Mapping[str, dict[str, Probe]], title: str) -> Sums:
    """One pass: the mean of each fold's gradients, or of their products with the probes."""
    mesh, sums = self.settings.mesh, _FoldSums(self.settings.folds)
    changed = self._changed(self._fixed['params'], probes)
    placed = (changed, probes)
    changed, probes = jax.device_put(placed) if mesh is None else settle(mesh, placed)
    with tqdm(desc=title, unit='batch', disable=not self.settings.progress) as bar:
      for number, batch in enumerate(_read(self.batches)):
        key = jax.random.fold_in(self.key, number)
        # The device goes on while the last batch's gradients are added up.
        arguments = changed, probes, self._fixed, deal(mesh, batch), key
        gradient = self._gradient
        if self.ahead is not None and self.ahead.fits(arguments):
          gradient = self.ahead.program.result()
        sums.add(number, *gradient(*arguments))
        bar.update()
      return sums.means()

  def random_probes(self) -> dict[str, dict[str, Probe]]:
    """Probes of the first pass, for every group whose gradients are not stored."""
    key = jax.random.fold_in(self.key, 0)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    width = self.settings.width
    return {
      group.name: random_probes(group, width, rng)
      for group in self.adapted.groups
      if min(group.in_features, group.out_features) > width  # else the gradient itself is smaller
    }

  def program(self, batch: Any) -> tuple[Any, tuple[Any, ...]]:
    """(compiled function, arguments) of a pass, of variables and a batch that may be shapes."""
    return self._gradient, self._arguments(batch)

  def lowered(self, batch: Any) -> jax.stages.Lowered:
    """The program of a pass, lowered; see `program`."""
    return self._gradient.lower(*self._arguments(batch))

  def start_compiling(self) -> Ahead:
    """Compiles the program for batches like the first in a thread of its own, on one device.

    It is traced before, in this thread, whose settings of JAX are its own.
    """
    batch = next(_read(self.batches), None)
    if batch is None:
      _require_batches(0, self.settings.folds)
    compiler = concurrent.futures.ThreadPoolExecutor(1, 'compiler')
    program = compiler.submit(self.lowered(batch).compile)
    compiler.shutdown(wait=False)
    return Ahead(program, _shapes(self._arguments(batch)))

  def _arguments(self, batch: Any) -> tuple[Any, ...]:
    """The arguments of the program, with probes as in a first pass."""
    probes = self.random_probes()
    return self._changed(self._rest['params'], probes), probes, self._rest, batch, self.key

  def _changed(self, params: Any, probes: Mapping[str, dict[str, Probe]]) -> dict[str, Any]:
    """What the loss is differentiated by, by site."""
    return {site.name: differentiated(params, site, parts) for site, parts in self._sites(probes)}

  @property
  def _rest(self) -> dict[str, Any]:
    """All variables but the supports."""
    return {name: value for name, value in self.variables.items() if name != COLLECTION}

  @functools.cached_property
  def _fixed(self) -> dict[str, Any]:
    """The same on the devices."""
    return settle(self.settings.mesh, self._rest)

  @functools.cached_property
  def _gradient(self) -> Any:  # a compiled function
    mesh = self.settings.mesh
    return jax.jit(
      jax.value_and_grad(self._batch_loss),
      out_shardings=None if mesh is None else replicated(mesh),
      compiler_options=options_of_one_pass(),
    )

  def _sites(self, probes: Mapping[str, dict[str, Probe]]) -> Iterator[tuple[Site, Any]]:
    """Every site with its part of its group's probes, if it has any."""
    for group in self.adapted.groups:
      yield from member_probes(group, probes.get(group.name, {}))

  def _batch_loss(self, changed, probes, variables, batch, key):
    params, taps = variables['params'], {}
    inside = isinstance(self.adapted.model, nn.Module)
    for site, parts in self._sites(probes):
      params, new = with_changed(params, site, changed[site.name], parts, inside)
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


class _FoldSums:
  """Adds up gradients on the host, one batch behind the device."""

  def __init__(self, folds: int):
    self._folds = folds
    self._pending: tuple[int, Any, Any] | None = None
    self._sums: Any = None
    self._counts = np.zeros(folds, int)

  def add(self, number: int, loss: jax.Array, gradients: Any) -> None:
    """Takes a batch's loss and gradients, and adds those of the batch before."""
    self._settle()
    self._pending = number, loss, gradients

  def means(self) -> Sums:
    """The mean over the batches of each fold."""
    self._settle()
    _require_batches(self._counts.sum(), self._folds)
    counts = self._counts.astype(np.float32)
    return jax.tree.map(lambda total: (total.T / counts).T, self._sums)

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
    fold = number % self._folds
    if self._sums is None:
      self._sums = jax.tree.map(lambda x: np.zeros((self._folds, *x.shape), np.float32), found)
    jax.tree.map(functools.partial(_add_to_fold, fold), self._sums, found)
    self._counts[fold] += 1


def _add_to_fold(fold: int, total: np.ndarray, gradient: np.ndarray) -> None:
  total[fold] += gradient


def _require_batches(number: int, folds: int) -> None:
  """Raises ValueError where some fold would have no batch."""
  if number < folds:
    raise ValueError(
      f'folds={folds} need at least as many batches, and there are {number}; give more and smaller '
      'batches, or take fewer folds.'
    )


def _read(batches: Batches) -> Iterator[Any]:
  """The batches, from the first."""
  if callable(batches):
    return iter(batches())
  if isinstance(batches, Iterator):
    raise ValueError(
      f'batches is a {type(batches).__name__}, which can be read only once; pass a list, or a '
      'function that gives the batches again.'
    )
  return iter(batches)
