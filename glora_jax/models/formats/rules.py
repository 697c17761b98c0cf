"""Rules: how a parameter of ours is made of a file's tensors, and they of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

BLOCKS = 'blocks/'  # before the paths of parameters that are stacked over the blocks


class Rule(NamedTuple):
  """One parameter of ours and the tensors that it is made of; it reads and writes.

  Attributes:
    ours: path of the parameter. A rule for a stacked one speaks of a single block.
    theirs: names of the tensors; '{}' stands for the number of the block.
    to_ours: makes the parameter of the tensors.
    to_theirs: makes the tensors of the parameter.
  """

  ours: str
  theirs: tuple[str, ...]
  to_ours: Callable[..., np.ndarray]
  to_theirs: Callable[[np.ndarray], tuple[np.ndarray, ...]]

  @property
  def is_stacked(self) -> bool:
    """Whether our parameter is stacked over the blocks."""
    return self.ours.startswith(BLOCKS)

  @property
  def is_per_block(self) -> bool:
    """Whether the file has tensors of their own for each block."""
    return any('{}' in name for name in self.theirs)

  def names_in_block(self, number: int) -> list[str]:
    """Names of the tensors of one block."""
    return [name.format(number) for name in self.theirs]


def same(ours: str, theirs: str) -> Rule:
  """A parameter that is one tensor of the file as it stands."""
  return Rule(ours, (theirs,), lambda tensor: tensor, lambda parameter: (parameter,))


def torch_linear(ours: str, theirs: str) -> list[Rule]:
  """A `torch.nn.Linear`, whose weight is [out, in]."""
  return [
    Rule(
      f'{ours}/kernel',
      (f'{theirs}.weight',),
      lambda weight: weight.T,
      lambda kernel: (kernel.T,),
    ),
    same(f'{ours}/bias', f'{theirs}.bias'),
  ]


def torch_qkv(ours: str, theirs: Sequence[str]) -> list[Rule]:
  """Three `torch.nn.Linear` for queries, keys and values, side by side in one layer of ours."""
  return [
    Rule(
      f'{ours}/kernel',
      tuple(f'{name}.weight' for name in theirs),
      lambda *weights: np.concatenate([weight.T for weight in weights], axis=1),
      lambda kernel: tuple(part.T for part in np.split(kernel, 3, axis=1)),
    ),
    Rule(
      f'{ours}/bias',
      tuple(f'{name}.bias' for name in theirs),
      lambda *biases: np.concatenate(biases),
      lambda bias: tuple(np.split(bias, 3)),
    ),
  ]


def torch_norm(ours: str, theirs: str) -> list[Rule]:
  """A `torch.nn.LayerNorm`."""
  return [same(f'{ours}/scale', f'{theirs}.weight'), same(f'{ours}/bias', f'{theirs}.bias')]


def torch_conv(ours: str, theirs: str) -> list[Rule]:
  """A `torch.nn.Conv2d`, [out, in, height, width]; ours is [height, width, in, out]."""
  return [
    Rule(
      f'{ours}/kernel',
      (f'{theirs}.weight',),
      lambda weight: weight.transpose(2, 3, 1, 0),
      lambda kernel: (kernel.transpose(3, 2, 0, 1),),
    ),
    same(f'{ours}/bias', f'{theirs}.bias'),
  ]


def positions(theirs: str, *, lacks_class_position: bool) -> Rule:
  """The position embedding; ours is zero where the file has no position for the class token."""
  if not lacks_class_position:
    return same('pos_embed', theirs)
  return Rule(
    'pos_embed',
    (theirs,),
    lambda grid: np.concatenate([np.zeros_like(grid[:, :1]), grid], axis=1),
    lambda pos_embed: (pos_embed[:, 1:],),
  )
