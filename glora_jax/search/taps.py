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

from glora_jax.method.rules import Deferred
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


def tap_site(params: Any, site: Site, products: Products, probes: Probes) -> dict[KeyPath, Any]:
  """Changes of params that make the gradient of `products` the products of a site's gradients.

  A stack is tapped where a layer of it is used. Tapped as a whole, a scan's kernel would get the
  gradients of all layers first, and then their products.

  Args:
    params: parameters of the model.
    site: a linear module.
    products: what `init_products` returned.
    probes: as there.
  """
  of_bias = {} if site.bias_path is None else {site.bias_path: products.bias}
  watch = jax.tree_util.Partial(_tap, products._replace(bias=None), probes)
  kernel = Deferred.from_kernel(site.kernel(params), {}, None, site.layout, (), False)
  return {**of_bias, site.kernel_path: dataclasses.replace(kernel, watch=watch)}


def _tap(zeros: Products, probes: Probes, layout: Layout, kernel: jax.Array) -> jax.Array:
  return tap(layout, kernel, zeros, probes)
