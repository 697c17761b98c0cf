"""Kernels whose gradient is never stored: on the way back it meets thin matrices, and is gone."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from glora_jax.method.groups import Group
from glora_jax.method.modules import ModuleCall, put_beside
from glora_jax.method.site import Layout, Site
from glora_jax.tree import replace


class Probe(NamedTuple):
  """Thin matrices that a kernel's gradient is multiplied by.

  Attributes:
    left: [stack..., in, width]; the product has shape [stack..., width, out].
    right: [stack..., out, width]; the product has shape [stack..., in, width].
  """

  left: Any
  right: Any


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def tapped(layout: Layout, kernel: jax.Array, slots: Any, probes: Any) -> jax.Array:
  """The kernel itself, whose gradient ends here: only products of it go to the slots.

  Args:
    layout: layout of the kernel.
    kernel: kernel of a layer or of a stack of layers.
    slots: zeros in the shapes of the products.
    probes: what the gradient, and the kernel times the gradient, are multiplied by.

  Returns:
    The kernel.
  """
  del layout, slots, probes
  return kernel


def _tapped_forward(layout, kernel, slots, probes):
  del layout, slots
  return kernel, (kernel, probes)


def _tapped_backward(layout, residuals, gradient):
  kernel, probes = residuals
  return None, _products(layout, kernel, gradient, probes), None


tapped.defvjp(_tapped_forward, _tapped_backward)


def _products(
  layout: Layout, kernel: jax.Array, gradient: jax.Array, probes: Mapping[str, Probe]
) -> dict[str, jax.Array]:
  """What a kernel's gradient meets, and is forgotten."""
  gradient = layout.matrices(gradient).astype(jnp.float32)
  scaled = layout.matrices(kernel).astype(jnp.float32) * gradient
  found = {'scale': scaled.sum(-2)}
  for name, matrix in (('B', gradient), ('A', scaled)):
    if name in probes:
      found[f'{name}_right'] = matrix @ probes[name].right
      found[f'{name}_left'] = jnp.swapaxes(probes[name].left, -1, -2) @ matrix
  return found


def member_probes(
  group: Group, probes: Mapping[str, Probe]
) -> Iterator[tuple[Site, dict[str, Probe]]]:
  """Every member with its part of the probes of the outputs."""
  start = 0
  for site in group.members:
    outputs = slice(start, start + site.out_features)
    start = outputs.stop
    yield (
      site,
      {name: probe._replace(right=probe.right[..., outputs, :]) for name, probe in probes.items()},
    )


def differentiated(params: Any, site: Site, probes: Mapping[str, Probe]) -> dict[str, Any]:
  """What the loss is differentiated by at a site: zeros that get the products, and its bias."""
  kernel = jax.ShapeDtypeStruct(site.kernel_shape, jnp.float32)
  shapes = jax.eval_shape(functools.partial(_products, site.layout), kernel, kernel, probes)
  slots = jax.tree.map(lambda part: jnp.zeros(part.shape, part.dtype), shapes)
  return slots | ({'bias': site.bias(params)} if site.has_bias else {})


@dataclasses.dataclass(frozen=True)
class _RunTapped:
  """Runs a linear module with its kernel tapped where it is called, inside a scan.

  Tapped from outside, all layers of the scan would have their gradients at once.

  Attributes:
    layout: layout of the kernel that the module sees.
  """

  layout: Layout

  def __call__(self, call: ModuleCall) -> Any:
    kernel = call.params['kernel']
    stack, fan_in, fan_out = self.layout.sizes(kernel.shape)
    axes = {'in': fan_in, 'out': fan_out, 'width': -1}
    shaped = {
      name: value.reshape(*stack, *(axes[axis] for axis in _AXES[name.split('_')[-1]]))
      for name, value in call.arrays.items()
    }
    slots = {name: value for name, value in shaped.items() if not name.startswith(_PROBE)}
    probes = {
      name: Probe(shaped[f'{_PROBE}{name}_in'], shaped[f'{_PROBE}{name}_out'])
      for name in ('A', 'B')
      if f'{_PROBE}{name}_in' in shaped
    }
    return call.with_params(kernel=tapped(self.layout, kernel, slots, probes))


_PROBE = 'probe_'
# What the axes are of a product, and of a probe, by the end of its name.
_AXES = {
  'scale': ('out',),
  'right': ('in', 'width'),
  'left': ('width', 'out'),
  'in': ('in', 'width'),
  'out': ('out', 'width'),
}


def with_changed(
  params: Any, site: Site, changed: Mapping[str, Any], probes: Mapping[str, Probe], inside: bool
) -> tuple[Any, bool]:
  """Params with the kernel and bias of a site that are differentiated.

  Args:
    params: parameters of the model.
    site: a linear module.
    changed: what `differentiated` returned.
    probes: as there.
    inside: whether modules' calls can be intercepted.

  Returns:
    The params, and whether the kernel is tapped in its module's call, which `intercept` must see.
  """
  if site.bias_path is not None:
    params = replace(params, site.bias_path, changed['bias'])
  slots = {name: value for name, value in changed.items() if name != 'bias'}
  if not (inside and site.lifts) or site.shared:
    kernel = tapped(site.layout, site.kernel(params), slots, probes)
    return replace(params, site.kernel_path, kernel), False
  leaves = dict(slots)
  for name, probe in probes.items():
    leaves |= {f'{_PROBE}{name}_in': probe.left, f'{_PROBE}{name}_out': probe.right}
  return put_beside(params, site, leaves, _RunTapped(site.local)), True
