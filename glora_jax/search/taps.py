"""Kernels whose gradients are never stored: only their products with thin matrices are.

The directions of a kernel's gradient G can be found from G times a thin matrix and from a thin
matrix times G, so `tap` lets the backward pass compute these products and drop G at once. Without
it, the gradients of all kernels would be in memory together.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from glora_jax.method.modules import ModuleCall, beside
from glora_jax.method.site import Layout, Site
from glora_jax.tree import KeyPath


class Probe(NamedTuple):
  """Thin matrices that a matrix [stack..., in, out] is multiplied by.

  Attributes:
    left: [stack..., in, width], whose transpose is multiplied from the left.
    right: [stack..., out, width].
  """

  left: Any
  right: Any


class Probes(NamedTuple):
  """The probes of a kernel W with the gradient G.

  Attributes:
    kernel: for G, which a LoRA of B follows.
    scaled_kernel: for W * G, which a LoRA of A follows; None if no layer can have one.
  """

  kernel: Probe
  scaled_kernel: Probe | None


class Sketch(NamedTuple):
  """The products of a matrix [stack..., in, out] with a `Probe`.

  Attributes:
    left: [stack..., width, out].
    right: [stack..., in, width].
  """

  left: Any
  right: Any


class Products(NamedTuple):
  """The stored products of the gradients of a kernel W and its bias.

  Attributes:
    kernel: sketch of the gradient G.
    scaled_kernel: sketch of W * G; None without its probe.
    scale: W * G summed over the inputs, [stack..., out].
    bias: gradient of the bias, in the shape that it has in the params; None without bias.
  """

  kernel: Sketch
  scaled_kernel: Sketch | None
  scale: Any
  bias: Any = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def tap(layout: Layout, kernel: jax.Array, zeros: Products, probes: Probes) -> jax.Array:
  """Returns the kernel; the gradient of `zeros` is the products of the kernel's gradient.

  The kernel does not depend on `zeros`, so their true gradient is zero. The rule for the backward
  pass says otherwise: it multiplies the kernel's gradient by the probes, returns the products as
  the gradient of `zeros`, and none for the kernel. So `jax.grad` with respect to `zeros` gets the
  products out of the backward pass. `tests/search/test_allocate.py` compares them with full
  gradients (`test_scores_are_those_of_full_gradients`).

  Args:
    layout: layout of the kernel.
    kernel: kernel of a layer or of a stack of layers.
    zeros: zeros in the shapes of the products.
    probes: the probes.
  """
  del layout, zeros, probes
  return kernel


def _tap_forward(layout, kernel, zeros, probes):
  del layout, zeros
  return kernel, (kernel, probes)


def _tap_backward(layout, residuals, gradient):
  kernel, probes = residuals
  return None, _multiply(layout, kernel, gradient, probes), None


tap.defvjp(_tap_forward, _tap_backward)


def _multiply(layout: Layout, kernel: jax.Array, gradient: jax.Array, probes: Probes) -> Products:
  """The products of a kernel's gradient, in float32."""
  gradient = layout.matrices(gradient).astype(jnp.float32)
  scaled = layout.matrices(kernel).astype(jnp.float32) * gradient
  return Products(
    kernel=_sketch(gradient, probes.kernel),
    scaled_kernel=None if probes.scaled_kernel is None else _sketch(scaled, probes.scaled_kernel),
    scale=scaled.sum(-2),
  )


def _sketch(matrix: jax.Array, probe: Probe) -> Sketch:
  return Sketch(jnp.swapaxes(probe.left, -1, -2) @ matrix, matrix @ probe.right)


def init_products(params: Any, site: Site, probes: Probes) -> Products:
  """The zeros, and the site's bias, whose gradients of the loss are a site's products."""
  kernel = jax.ShapeDtypeStruct(site.kernel_shape, jnp.float32)
  shapes = jax.eval_shape(functools.partial(_multiply, site.layout), kernel, kernel, probes)
  zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
  return zeros._replace(bias=site.bias(params) if site.has_bias else None)


def tap_site(
  params: Any, site: Site, products: Products, probes: Probes, can_intercept: bool
) -> tuple[dict[KeyPath, Any], bool]:
  """Changes of params that make the gradient of `products` the products of a site's gradients.

  Args:
    params: parameters of the model.
    site: a linear module.
    products: what `init_products` returned.
    probes: as there.
    can_intercept: whether calls of modules can be intercepted.

  Returns:
    The changes by path, and whether the kernel is tapped in its module's call, which `intercept`
    must see.
  """
  of_bias = {} if site.bias_path is None else {site.bias_path: products.bias}
  zeros = products._replace(bias=None)
  if site.shared or not (can_intercept and site.lifts):
    kernel = tap(site.layout, site.kernel(params), zeros, probes)
    return {**of_bias, site.kernel_path: kernel}, False
  # The kernel of a scan has all layers. Tapped here, it would get all their gradients first, and
  # then their products. So zeros and probes go into the scan next to the kernel, and each iteration
  # taps its own part of it.
  arrays, structure = jax.tree.flatten((zeros, probes))
  shapes = tuple(array.shape[len(site.lifts) :] for array in arrays)
  by_number = {str(number): array for number, array in enumerate(arrays)}
  run = _RunTapped(site.local, structure, shapes)
  return {**of_bias, **beside(site, by_number, run)}, True


@dataclasses.dataclass(frozen=True)
class _RunTapped:
  """Runs a linear module with its kernel tapped, in an iteration of a scan.

  Attributes:
    layout: layout of the kernel that the module sees.
    structure: structure of the zeros and probes next to the kernel.
    shapes: their shapes in the module, which the scan's axes have been removed from. Beside the
      kernel the arrays have as many dimensions as the kernel.
  """

  layout: Layout
  structure: jax.tree_util.PyTreeDef
  shapes: tuple[tuple[int, ...], ...]

  def __call__(self, call: ModuleCall) -> Any:
    arrays = [call.arrays[str(number)].reshape(shape) for number, shape in enumerate(self.shapes)]
    zeros, probes = self.structure.unflatten(arrays)
    return call.with_params(kernel=tap(self.layout, call.params['kernel'], zeros, probes))
