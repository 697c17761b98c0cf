"""The mean gradient of a base model's kernels and biases, from one pass over batches.

No kernel's gradient is ever stored. The backward pass multiplies it by thin random matrices from
both sides (`taps`). The products are linear in the gradient, so their mean over the batches is that
of the mean gradient, and has its first singular vectors and values (Tropp et al., Practical
sketching algorithms for low-rank matrix approximation, arXiv 1609.00048, algorithm 7).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.compiling import keep_last, reported
from glora_jax.mesh import options_of_one_pass, replicated, settle, split_rows
from glora_jax.method.adapted import Adapted, call_model
from glora_jax.method.adapter import COLLECTION
from glora_jax.method.forward import Forward, Loss, check_data, loss_and_metrics
from glora_jax.method.groups import Group
from glora_jax.method.site import Site
from glora_jax.method.space import FLAT_FORMS
from glora_jax.method.validation import as_batch
from glora_jax.progress import progress_bar
from glora_jax.search.errors import NonFiniteError
from glora_jax.search.taps import (
  Probe,
  Probes,
  Products,
  Sketch,
  init_products,
  tap_site,
)
from glora_jax.search.unit_scores import Directions, LayerGradients, find_directions
from glora_jax.tree import KeyPath, on_host, update

Mean = dict[str, Products]  # products of the mean gradient in float64, by site

# Columns of the right probe: 4 for each direction that is wanted, and 8 more.
_COLUMNS_PER_DIRECTION, _MORE_COLUMNS = 4, 8


@dataclass(frozen=True, eq=False)
class Gradient:
  """What a batch's gradient is computed with; no arrays, so that its program can be kept.

  Attributes:
    adapted: the adapted model.
    loss: see `fit`.
    mesh: devices that every batch is split over; None for one device.
  """

  adapted: Adapted
  loss: Loss
  mesh: jax.sharding.Mesh | None

  @property
  def groups(self) -> list[Group]:
    """The layers that have a choice: all but chosen rows of tables."""
    return [group for group in self.adapted.places.groups if not group.ids]

  @functools.cached_property
  def program(self) -> Any:
    """The compiled `(sums, probes, variables, batch, key) -> (sums, (loss, is finite, norm))`."""
    program = jax.jit(
      self.add_batch,
      donate_argnums=0,
      out_shardings=None if self.mesh is None else replicated(self.mesh),
      compiler_options=options_of_one_pass(),
    )
    return reported('gradient', program)

  def add_batch(self, total, probes, variables, batch, key):
    """The sums with a batch's gradient, and (its loss, whether all is finite, its norm)."""
    products = self.init_products(variables['params'], probes)
    take_gradient = jax.value_and_grad(self._batch_loss)
    loss, gradient = take_gradient(products, probes, variables, batch, key)
    gradient = jax.tree.map(lambda part: part.astype(jnp.float32), gradient)
    leaves = jax.tree.leaves(gradient)
    finite = jnp.stack([jnp.isfinite(part).all() for part in leaves]).all()
    # Scaled, since the square of a float32 is 0 or infinite long before the number is.
    largest = jnp.stack([jnp.abs(part).max() for part in leaves]).max()
    scaled = jax.tree.map(lambda part: part / jnp.where(largest, largest, 1), gradient)
    norm = largest * jnp.sqrt(self.square(scaled))
    return jax.tree.map(jnp.add, total, gradient), (loss, finite, norm)

  def _batch_loss(self, products, probes, variables, batch, key):
    params = variables['params']
    changes: dict[KeyPath, Any] = {}
    for site in self.sites:
      changes |= tap_site(params, site, products[site.name], probes[site.name])
    forward = _Base(self.adapted, {**variables, 'params': update(params, changes)})
    return loss_and_metrics(self.loss(forward, batch, key))[0]

  def init_products(self, params: Any, probes: Any) -> dict[str, Products]:
    """The arrays that the loss is differentiated with respect to, by site."""
    return {site.name: init_products(params, site, probes[site.name]) for site in self.sites}

  @property
  def sites(self) -> list[Site]:
    """The adapted kernels."""
    return [group.site for group in self.groups]

  def square(self, products: Mapping[str, Products]) -> Any:
    """The squared gradient of all kernels, estimated from the left sketches.

    These are the gradient's projections on random orthonormal columns, `width` of `in` dimensions,
    which have width / in of its square on average.
    """
    return sum(
      site.in_features / left.shape[-2] * (left * left).sum()
      for site in self.sites
      for left in [products[site.name].kernel.left]
    )


_kept_gradient = keep_last(Gradient)


@dataclass(frozen=True, eq=False)
class Pass:
  """One pass over batches, which sketches the mean gradient of the base.

  Attributes:
    adapted: the adapted model.
    variables: its variables, arrays or shapes; their adapter does not matter.
    loss: see `fit`.
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

  @functools.cached_property
  def gradient(self) -> Gradient:
    """The gradient of a batch; the same one, with its program, as in the last pass like this."""
    return _kept_gradient(self.adapted, self.loss, self.mesh)

  def run(self, batches: Iterable[Any], progress: bool = True) -> tuple[Mean, float | None]:
    """The mean gradient of the batches, and its signal.

    Returns:
      The products of the mean gradient, and the signal: the share of the kernels' squared gradient
      that is not noise between batches. It is at most 1, and 0 on average if all is noise; None for
      one batch.

    Raises:
      ValueError: there are no batches, or a label is not a class.
      NonFiniteError: a loss or its gradient is not finite.
    """
    (total, probes, fixed), measured = settle(self.mesh, self.start()), []
    bar = progress_bar(batches, 'gradient', unit='batch', wanted=progress)
    for number, batch in enumerate(bar):
      key, arrays = jax.random.fold_in(self.key, number), as_batch(batch)
      arguments = total, probes, fixed, split_rows(self.mesh, arrays), key
      total, of_batch = self.gradient.program(*arguments)
      check_data(self.loss, [arrays], self.adapted)  # now the loss knows how many classes there are
      measured.append(of_batch)
      jax.block_until_ready(measured[-2:-1])  # no more than two batches wait for the device
    if not measured:
      raise ValueError('There are no batches; pass at least one.')
    losses, finite, norms = np.array(jax.device_get(measured), np.float64).T
    _check_finite(losses, finite)
    count = len(norms)
    mean = jax.tree.map(lambda part: np.asarray(part, np.float64) / count, jax.device_get(total))
    return mean, self._signal(mean, norms**2)

  def readers(self, mean: Mean) -> Iterator[tuple[Group, Callable[[int], LayerGradients]]]:
    """Every group with a choice, and a function that returns the gradients of its n-th layer."""
    for group in self.gradient.groups:
      yield group, _reader(group, self.variables['params'], mean, self.probes[group.name])

  @functools.cached_property
  def probes(self) -> dict[str, Probes]:
    """The probes of every group's kernels."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(self.key)))
    return {group.name: _draw_probes(group, self.max_rank, rng) for group in self.gradient.groups}

  def start(self) -> tuple[Any, ...]:
    """(sums of the products, probes, all variables but the adapter) before the first batch."""
    fixed = {name: value for name, value in self.variables.items() if name != COLLECTION}
    shapes = jax.eval_shape(self.gradient.init_products, fixed['params'], self.probes)
    zeros = jax.tree.map(lambda part: np.zeros(part.shape, np.float32), shapes)
    return zeros, self.probes, fixed

  def _signal(self, mean: Mean, squares: np.ndarray) -> float | None:
    """The share of the squared mean gradient that is not noise, given each batch's `squares`.

    With signal S and noise N of one batch, the square of a batch's gradient is S + N on average,
    and that of the mean over n batches S + N / n. Both are measured; this is S relative to the
    latter.
    """
    count, square = len(squares), float(self.gradient.square(mean))
    if count == 1:
      return None
    return 1 - (squares.mean() / square - 1) / (count - 1) if square else 0.0


class _Base(Forward):
  """The model without its adapter, whose kernels the gradient is computed of."""

  def __call__(self, *inputs: Any, genome: Any = None, **kwargs: Any) -> Any:
    """The model's outputs."""
    del genome
    return call_model(self.adapted, self.variables, *inputs, **kwargs)


def _check_finite(losses: np.ndarray, finite: np.ndarray) -> None:
  """Raises NonFiniteError if a batch's loss or its gradient is not finite."""
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
    f'The loss of batch {number} is {loss}; it must be finite. Check the examples and the '
    'pretrained weights.'
  )


def _draw_probes(group: Group, max_rank: int, rng: np.random.Generator) -> Probes:
  """Random orthonormal columns, the same for all layers of the group's stack."""
  fan_in, fan_out = group.in_features, group.out_features
  width = min(_COLUMNS_PER_DIRECTION * max_rank + _MORE_COLUMNS, fan_in, fan_out)
  left_width = min(3 * width + 1, fan_in)

  def draw(*shape: int) -> np.ndarray:
    columns = np.linalg.qr(rng.standard_normal(shape, np.float32)).Q
    return np.broadcast_to(columns, (*group.stack_shape, *columns.shape))

  def probe() -> Probe:
    return Probe(left=draw(fan_in, left_width), right=draw(fan_out, width))

  has_lora_of_A = max(group.space.A or (0,)) >= len(FLAT_FORMS['A'])
  return Probes(kernel=probe(), scaled_kernel=probe() if has_lora_of_A else None)


def _reader(
  group: Group, params: Any, mean: Mean, probes: Probes
) -> Callable[[int], LayerGradients]:
  """A function that returns the gradients of a group's n-th layer."""
  site, products = group.site, mean[group.name]
  kernel_sketch, scales = _flatten_sketch(products.kernel), _flatten_stack(products.scale, 1)
  scaled_sketch = products.scaled_kernel and _flatten_sketch(products.scaled_kernel)
  biases = kernels = None  # only C reads the kernel, and it needs a bias
  if group.has_bias:
    biases = _flatten_stack(site.layout.vectors(products.bias), 1)
    kernel: Any = on_host(site.kernel(params))
    kernels = _flatten_stack(site.layout.matrices(kernel.astype(np.float32)), 2)

  def directions(sketch: Sketch, probe: Probe, index: int) -> Directions:
    probe_left = _flatten_stack(probe.left, 2)[index]
    return find_directions(sketch.right[index], sketch.left[index], probe_left)

  def read(index: int) -> LayerGradients:
    scaled = None
    if scaled_sketch is not None and probes.scaled_kernel is not None:
      scaled = directions(scaled_sketch, probes.scaled_kernel, index)
    bias = prompt = None
    if biases is not None and kernels is not None:
      bias = biases[index]
      prompt = kernels[index] @ bias
    kernel = directions(kernel_sketch, probes.kernel, index)
    return LayerGradients(kernel, scaled, scales[index], bias, prompt)

  return read


def _flatten_sketch(sketch: Sketch) -> Sketch:
  return Sketch(_flatten_stack(sketch.left, 2), _flatten_stack(sketch.right, 2))


def _flatten_stack(array: Any, ndim: int) -> np.ndarray:
  """An array [stack..., rest...] as [layer, rest...], with `ndim` dimensions of the rest."""
  return array.reshape(-1, *array.shape[array.ndim - ndim :])
