"""The units of everything as one path: what they are, what they cost, what is kept of them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from glora_jax.method.adapted import Adapted
from glora_jax.method.space import FLAT_FORMS
from glora_jax.search.allocation import Values
from glora_jax.tree import get

MAX_RANK = 8


def everything(rows: int) -> np.ndarray:
  """A and E as vectors, B as LoRA of the largest rank considered, int8 [row, 5]."""
  return np.tile(np.array([2, len(FLAT_FORMS['B']) + MAX_RANK - 1, 0, 0, 2], np.int8), (rows, 1))


def unit_sums(adapted: Adapted, supports: Any) -> Values:
  """Numbers like the supports', summed over the units of `everything`, as values of all rows."""
  rows = len(adapted.spec)
  vectors = {name: np.zeros(rows) for name in ('A_vector', 'C_vector', 'E_vector')}
  parts = np.zeros((rows, MAX_RANK))
  for group in adapted.groups:
    arrays = {
      name: np.asarray(value).reshape(len(group.rows), *value.shape[len(group.stack_shape) :])
      for name, value in get(supports, group.path).items()
    }
    for number, row in enumerate(group.rows):
      vectors['A_vector'][row] = arrays['A_up'][number, 0].sum()
      vectors['E_vector'][row] = arrays['E'][number].sum()
      of_parts = arrays['B_down'][number].sum(0) + arrays['B_up'][number].sum(1)
      parts[row] = of_parts[:MAX_RANK]
  return Values(A_lora=np.zeros_like(parts), B_lora=parts, **vectors)


class Units(NamedTuple):
  """Which units are kept, bool.

  Attributes:
    A_vector: [row].
    B_lora: [row, rank].
    E_vector: [row].
  """

  A_vector: np.ndarray
  B_lora: np.ndarray
  E_vector: np.ndarray


def kept_units(importance: Values, costs: Values, budget: float) -> Units:
  """The units of largest importance per parameter that fill a budget."""
  flat = np.concatenate(
    [
      importance.A_vector / costs.A_vector,
      (importance.B_lora / costs.B_lora).ravel(),
      importance.E_vector / costs.E_vector,
    ]
  )
  sizes = np.concatenate([costs.A_vector, costs.B_lora.ravel(), costs.E_vector])
  kept = np.zeros(len(flat), bool)
  left = budget
  for unit in np.argsort(-flat, kind='stable'):
    if sizes[unit] <= left:
      kept[unit] = True
      left -= sizes[unit]
  rows = len(costs.A_vector)
  return Units(kept[:rows], kept[rows:-rows].reshape(rows, -1), kept[-rows:])


def masks(adapted: Adapted, supports: Any, kept: Units) -> Any:
  """Factors 0 or 1 for the supports that make a unit vanish: its up factor, or its vector."""

  def whole(group, name, shape):
    mask = np.ones((len(group.rows), *shape[len(group.stack_shape) :]), np.float32)
    for number, row in enumerate(group.rows):
      if name == 'A_up':
        mask[number] = kept.A_vector[row]
      elif name == 'E':
        mask[number] = kept.E_vector[row]
      elif name == 'B_up':
        mask[number] = 0
        mask[number, :MAX_RANK] = kept.B_lora[row][:, None]
    return jnp.asarray(mask.reshape(shape))

  new = jax.tree.map(lambda value: value, supports)
  for group in adapted.groups:
    place = get(new, group.path)
    for name in place:
      place[name] = whole(group, name, place[name].shape)
  return new
