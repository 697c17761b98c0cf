"""Where the linear layers of an NNX model are, and whether it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from glora_jax.method import trace
from glora_jax.method.sample import Sample
from glora_jax.method.site import Site
from glora_jax.nnx.frozen import Frozen


def find(
  model: nnx.Module,
  inputs: tuple,
  kwargs: Mapping[str, Any],
  *,
  convs: bool = False,
  split: Mapping[str, int],
) -> trace.Found:
  """The linear layers of a model's call; see `glora_jax.method.trace.find`.

  Raises:
    ValueError: the model does not run on these inputs, or `split` does not fit.
  """
  frozen = Frozen(model)
  call = _Call(frozen)
  values = frozen.variables()['params']
  found = trace.find(call, values, inputs, kwargs, convs=convs, split=split)
  return found._replace(sites=tuple(_named(site, frozen.name) for site in found.sites))


def _named(site: Site, name: str) -> Site:
  """A site of which a model that is one linear layer gives its name."""
  return site if site.path else dataclasses.replace(site, kind=name)


class _Call:
  """A frozen model's call as a function of its parameters, by the model's name."""

  def __init__(self, frozen: Frozen):
    self._frozen = frozen
    self.__name__ = frozen.name

  def __call__(self, values: Any, *args: Any, **kwargs: Any) -> Any:
    return self._frozen.apply({'params': values}, *args, **kwargs)


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
