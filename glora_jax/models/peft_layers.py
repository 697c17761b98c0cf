"""Layers of ours out of the torch modules that an adapter of HF PEFT speaks of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from glora_jax.method.adapted import Adapted
from glora_jax.method.groups import Group
from glora_jax.method.space import FLAT_FORMS, TENSORS, WEIGHT_TENSORS, Tensor
from glora_jax.models.peft_file import AdapterFile, FlatForm, Forms, LowRank
from glora_jax.models.peft_names import Naming
from glora_jax.models.verification import grouped


class Part(NamedTuple):
  """A torch module that makes up a layer of ours, alone or beside others.

  Attributes:
    name: its full name.
    outputs: number of its outputs.
    forms: what the adapter says of it; empty where that is nothing.
  """

  name: str
  outputs: int
  forms: Forms


class AdaptedLayer(NamedTuple):
  """A layer of ours that an adapter speaks of.

  Attributes:
    group: the layers that it shares arrays with.
    index: its place in their stack.
    row: its row of the genome.
    parts: the torch modules that it is made of, in the order of their outputs.
  """

  group: Group
  index: tuple[int, ...]
  row: int
  parts: tuple[Part, ...]


def match_layers(file: AdapterFile, adapted: Adapted, naming: Naming) -> list[AdaptedLayer]:
  """The layers that an adapter speaks of.

  Args:
    file: the adapter.
    adapted: the adapted model.
    naming: what the torch model calls its modules.

  Raises:
    ValueError: the adapter speaks of other modules, too, or of modules of other sizes.
  """
  remaining = dict(file.modules)
  layers = []
  for group in adapted.groups:
    for index, row in group.slices():
      parts = []
      for site in group.members:
        names = naming.modules(site, index)
        outputs = site.out_features // len(names)
        parts += [Part(name, outputs, remaining.pop(name, {})) for name in names]
      if any(part.forms for part in parts):
        layers.append(AdaptedLayer(group, index, row, tuple(parts)))
  if remaining:
    raise ValueError(
      f'{file.path} adapts {grouped(remaining)}, and no adapted layer of this model has '
      'that name; adapt the layer, or correct names.'
    )
  for layer in layers:
    for part in layer.parts:
      _check_shapes(file.path, layer.group, part)
  return layers


def _check_shapes(path: str, group: Group, part: Part) -> None:
  """Raises ValueError unless an adapter's tensors have the sizes of the module."""
  sizes = {'in': group.in_features, 'out': part.outputs}
  for tensor, form in part.forms.items():
    if not group.has_bias and tensor not in WEIGHT_TENSORS:
      raise ValueError(f'{path} has {tensor} for {part.name}, and {group.name} has no bias.')
    axes = ('in', 'one') if tensor == 'C' else ('in', 'out')
    expected = tuple(sizes.get(axis, 1) for axis in axes)
    if isinstance(form, LowRank):
      found = (form.down.shape[0], form.up.shape[1])
    else:
      flat_axis = 'in' if tensor == 'C' else 'out'
      expected = (1,) if form.form == 'constant' else (sizes[flat_axis],)
      found = form.values.shape
    if found != expected:
      raise ValueError(
        f'{path} is of another model: its {tensor} of {part.name} is {found}, and {group.name} '
        f'needs {expected}.'
      )


def combine(layer: AdaptedLayer, params: Any) -> Forms:
  """The forms of a layer's tensors, out of those of its parts.

  Args:
    layer: the layer.
    params: parameters of the model.
  """
  if len(layer.parts) == 1:
    return layer.parts[0].forms
  combined: Forms = {}
  for tensor in ('A', 'B', 'D', 'E'):
    forms = [part.forms.get(tensor) for part in layer.parts]
    if any(isinstance(form, LowRank) for form in forms):
      loras = [_as_lora(layer, *of_part) for of_part in zip(layer.parts, forms, strict=True)]
      combined[tensor] = _side_by_side(layer, loras)
    elif any(forms):
      combined[tensor] = FlatForm('vector', _vector(layer, forms))
  columns = [_column(layer, part) for part in layer.parts]  # C of each, [in]
  if all(np.array_equal(column, columns[0]) for column in columns):
    if columns[0].any():
      combined['C'] = FlatForm('vector', columns[0])
    return combined
  shifts = _shifts(layer, columns, params)
  if 'E' in combined:
    shifts = shifts + combined['E'].values
  combined['E'] = FlatForm('vector', shifts)
  return combined


def _as_lora(layer: AdaptedLayer, part: Part, form: LowRank | FlatForm | None) -> LowRank | None:
  """A constant or vector of A or B as a LoRA of rank one, which is the same matrix."""
  if not isinstance(form, FlatForm):
    return form
  down = np.ones((layer.group.in_features, 1), np.float32)
  return LowRank(down, np.broadcast_to(form.values, (1, part.outputs)))


def _side_by_side(layer: AdaptedLayer, forms: Sequence[LowRank | None]) -> LowRank:
  """One LoRA of LoRAs that read the same inputs; those with the same `down` share it."""
  downs: list[np.ndarray] = []
  places = []  # of each part's `down` among them
  for form in forms:
    same = [n for n, down in enumerate(downs) if form and np.array_equal(down, form.down)]
    if form and not same:
      downs.append(form.down)
    places.append(same[0] if same else len(downs) - 1)
  starts = np.cumsum([0, *(down.shape[1] for down in downs)])
  up = np.zeros((starts[-1], layer.group.out_features), np.float32)
  output = 0
  for part, form, place in zip(layer.parts, forms, places, strict=True):
    if form:
      up[starts[place] : starts[place + 1], output : output + part.outputs] = form.up
    output += part.outputs
  return LowRank(np.concatenate(downs, axis=1), up)


def _vector(layer: AdaptedLayer, forms: Sequence[Any]) -> np.ndarray:
  """Constants and vectors of the parts as one vector, [out]."""
  return np.concatenate(
    [
      np.broadcast_to(form.values if form else np.zeros(1, np.float32), part.outputs)
      for part, form in zip(layer.parts, forms, strict=True)
    ]
  )


def _column(layer: AdaptedLayer, part: Part) -> np.ndarray:
  """C of a part, [in]."""
  form = part.forms.get('C')
  if form is None:
    return np.zeros(layer.group.in_features, np.float32)
  return (form.down @ form.up)[:, 0] if isinstance(form, LowRank) else form.values


def _shifts(layer: AdaptedLayer, columns: Sequence[np.ndarray], params: Any) -> np.ndarray:
  """C @ W of each part with the C of its own, [out]."""
  matrices = []
  for site in layer.group.members:
    kernel = np.asarray(site.kernel(params))
    matrices.append(np.asarray(site.layout.matrices(kernel))[layer.index])
  outputs = np.cumsum([part.outputs for part in layer.parts])[:-1]
  split = np.split(np.concatenate(matrices, axis=-1), outputs, axis=-1)
  return np.concatenate([column @ matrix for column, matrix in zip(columns, split, strict=True)])


def fill(supports: Any, layer: AdaptedLayer, tensor: Tensor, form: LowRank | FlatForm) -> int:
  """Writes a form into a layer's supports, in place; returns its code.

  Args:
    supports: the arrays of the layer's group, with the stack's axes first.
    layer: the layer.
    tensor: the tensor of the equation.
    form: what it is.
  """
  flat, group = FLAT_FORMS[tensor], layer.group
  if isinstance(form, LowRank):
    code = len(flat) + group.space.ranks.index(form.down.shape[1])
  else:
    code = flat.index(form.form)
  alleles = [code if name == tensor else 0 for name in TENSORS]
  for name, part in group.used_parts(alleles).items():
    place = (*layer.index, *part)
    values = _values(name, form)
    supports[name][place] = values.reshape(supports[name][place].shape)
  return code


def _values(name: str, form: LowRank | FlatForm) -> np.ndarray:
  if isinstance(form, FlatForm):
    return form.values
  return form.down if name.endswith('_down') else form.up
