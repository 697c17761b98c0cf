"""Where the linear layers of an NNX model are, and whether it runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from glora_jax.method.sample import Sample
from glora_jax.method.site import Site
from glora_jax.method.trace import find as by_use
from glora_jax.nnx.frozen import Frozen
from glora_jax.tree import Path, plain_path


def find(
  model: nnx.Module,
  inputs: tuple,
  kwargs: Mapping[str, Any],
  *,
  convs: bool = False,
  split: Mapping[str, int],
) -> by_use.Found:
  """The linear layers of a model's call; see `glora_jax.method.trace.find.find`.

  Returns:
    What was found, with rows in the order of the modules, which depends on no backend.

  Raises:
    ValueError: `split` does not fit.
  """
  frozen = Frozen(model)
  frozen.states[1:] = jax.tree.map(_value, frozen.states[1:])
  params = frozen.variables()['params']
  found = by_use.find(frozen, params, inputs, kwargs, convs=convs, split=split)
  # A model that is one linear layer gives it its name.
  name = frozen.__name__
  named = [site if site.path else dataclasses.replace(site, kind=name) for site in found.sites]
  return found._replace(sites=tuple(numbered(_in_module_order(named, model))))


def _value(leaf: Any) -> Any:
  """State itself; zeros where `nnx.eval_shape` has left its shape alone."""
  return jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf


def _in_module_order(sites: Sequence[Site], model: nnx.Module) -> list[Site]:
  """Sites in the order of the modules that hold their kernels."""
  order = {plain_path(path): number for number, (path, _) in enumerate(nnx.iter_graph(model))}

  def place(site: Site) -> tuple[int, Path]:
    owners = (site.kernel_path[:end] for end in range(len(site.kernel_path) - 1, -1, -1))
    return next(order[owner] for owner in owners if owner in order), site.kernel_path

  return sorted(sites, key=place)


def numbered(sites: Sequence[Site]) -> list[Site]:
  """Sites with the rows of their layers, one site after another."""
  result, first = [], 0
  for site in sites:
    rows = tuple(range(first, first + math.prod(site.stack_shape)))
    result.append(dataclasses.replace(site, rows=rows))
    first += len(rows)
  return result


def runs(model: nnx.Module, inputs: tuple, kwargs: Mapping[str, Any]) -> bool:
  """Whether a model can be called; it is only traced, and stays as it is."""
  graphdef, state = nnx.split(model)
  sample = Sample(inputs, kwargs)

  def call(state, arrays):
    args, keywords = sample.arguments(arrays)
    return nnx.merge(graphdef, state, copy=True)(*args, **keywords)

  try:
    jax.eval_shape(call, state, sample.arrays)
  except Exception:
    return False
  return True
