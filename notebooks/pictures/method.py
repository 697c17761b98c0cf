"""Draws method.png, the picture of GLoRA in the README: `python notebooks/pictures/method.py`."""

import pathlib
import types

import numpy as np
from matplotlib import patches
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from glora_jax.reports.page import PALETTES

LIGHT = types.SimpleNamespace(**PALETTES['light'])
FROZEN = '#d9d9d9'
FOLDED = '#bfe2e2'
TENSORS = {
  'A': LIGHT.yellow,
  'B': LIGHT.teal,
  'C': LIGHT.purple,
  'D': LIGHT.yellow,
  'E': LIGHT.teal,
}
FORMS = {
  'A': ('none', 'constant', 'vector', 'LoRA'),
  'B': ('none', 'constant', 'vector', 'LoRA'),
  'C': ('none', 'vector', 'LoRA'),
  'D': ('none', 'constant', 'vector'),
  'E': ('none', 'constant', 'vector'),
}
SMALL, LARGE = 8.5, 10.5  # sizes of text


def write(axis: Axes, x: float, y: float, text: str, size: float = SMALL, **options) -> None:
  """Text in the picture's ink, centred at x."""
  axis.text(x, y, text, **{'ha': 'center', 'fontsize': size, 'color': LIGHT.ink, **options})


def box(axis: Axes, corner, width: float, height: float, color: str, label: str) -> None:
  """A labelled box, by its lower left corner."""
  outline = {'boxstyle': 'round,pad=0,rounding_size=0.06', 'edgecolor': LIGHT.ink}
  axis.add_patch(
    patches.FancyBboxPatch(corner, width, height, facecolor=color, linewidth=0.8, **outline)
  )
  x, y = corner
  ink = LIGHT.paper if color == LIGHT.purple else LIGHT.ink
  write(axis, x + width / 2, y + height / 2, label, 11, va='center', color=ink)


def arrow(axis: Axes, start, end) -> None:
  """An arrow from a point to another."""
  style = {'arrowstyle': '-|>', 'color': LIGHT.ink, 'linewidth': 1.2}
  axis.annotate('', end, start, arrowprops=style)


def draw_layer(axis: Axes) -> None:
  """The five tensors of a linear layer."""
  box(axis, (1.5, 2.0), 1.6, 1.6, FROZEN, 'W\nfrozen')
  box(axis, (4.0, 2.4), 0.8, 0.8, FROZEN, 'b\nfrozen')
  for name, purpose, corner in (
    ('A', 'scales W', (0.1, 3.1)),
    ('B', 'shifts W', (0.1, 1.9)),
    ('C', 'prompt through W', (1.8, 0.75)),
    ('D', 'scales b', (3.4, 3.9)),
    ('E', 'shifts b', (4.6, 3.9)),
  ):
    box(axis, corner, 0.8, 0.55, TENSORS[name], name)
    x, y = corner
    write(axis, x + 0.4, y - 0.22, purpose, 8)
  arrow(axis, (0.95, 3.3), (1.45, 3.1))
  arrow(axis, (0.95, 2.2), (1.45, 2.4))
  arrow(axis, (2.2, 1.35), (2.2, 1.95))
  arrow(axis, (3.9, 3.6), (4.2, 3.25))
  arrow(axis, (4.95, 3.6), (4.65, 3.25))
  write(axis, 2.75, -0.05, "W' = W + W * A + B        b' = b + b * D + E + C W", LARGE)


def draw_supernet(axis: Axes) -> None:
  """Forms of every tensor in every layer, and the path of a step through them."""
  rng = np.random.default_rng(3)
  for column, (name, color) in enumerate(TENSORS.items()):
    write(axis, 1.0 + 0.85 * column, 4.25, name, 11)
    for row in range(3):
      chosen = rng.integers(len(FORMS[name]))
      for number in range(len(FORMS[name])):
        axis.add_patch(
          patches.Rectangle(
            (0.72 + 0.85 * column + 0.15 * number, 3.35 - 1.1 * row),
            0.12,
            0.6,
            facecolor=color if number == chosen else LIGHT.paper,
            edgecolor=LIGHT.ink,
            linewidth=0.7,
          )
        )
  for row in range(3):
    write(axis, 0.45, 3.65 - 1.1 * row, f'layer {row + 1}', ha='right', va='center')
  write(axis, 2.4, 0.55, 'every step draws a form for each: none, constant, vector, LoRA')
  write(axis, 2.4, -0.05, 'genome: int8 [layers, 5]', LARGE)


def draw_search(axis: Axes) -> None:
  """Accuracy against parameters of a population, and its best within the budget."""
  rng = np.random.default_rng(1)
  budget = 3.2
  params = rng.uniform(0.4, 4.6, 70)
  accuracy = 1.2 + 2.3 * (1 - np.exp(-params / 1.6)) + rng.normal(0, 0.35, 70)
  best = np.argmax(np.where(params < budget, accuracy, 0))
  axis.scatter(params, accuracy, s=14, color=LIGHT.grey, linewidths=0)
  axis.plot([budget, budget], [0.9, 4.2], '--', color=LIGHT.ink, linewidth=1)
  write(axis, budget + 0.08, 1.0, 'budget', ha='left')
  axis.plot(params[best], accuracy[best], '*', color=LIGHT.red, markersize=18)
  arrow(axis, (0.3, 0.85), (0.3, 4.3))
  arrow(axis, (0.3, 0.85), (4.9, 0.85))
  write(axis, 0.15, 2.5, 'accuracy', rotation=90, va='center', ha='right')
  write(axis, 2.6, 0.5, 'trained parameters')
  write(axis, 2.6, -0.05, 'a population is one compiled call', LARGE)


def draw_fold(axis: Axes) -> None:
  """The winner inside the base weights."""
  box(axis, (0.3, 2.0), 1.6, 1.6, FROZEN, 'W')
  for number, (name, color) in enumerate(TENSORS.items()):
    box(axis, (0.2 + 0.36 * number, 3.8), 0.3, 0.4, color, name)
  arrow(axis, (2.05, 2.8), (2.75, 2.8))
  box(axis, (2.9, 2.0), 1.6, 1.6, FOLDED, "W'")
  write(axis, 2.4, 1.35, 'same class, same size, same speed')
  write(axis, 2.4, -0.05, 'params = adapted.fold(variables, genome)', LARGE)


def main() -> None:
  """Draws the four panels beside each other."""
  figure = Figure(figsize=(16, 4), layout='constrained')
  axes = figure.subplots(1, 4, width_ratios=(5.6, 4.8, 5, 4.9))
  drawings = {
    '1  Five support tensors per linear layer': draw_layer,
    '2  Train a supernet of all their forms': draw_supernet,
    '3  Search the best within a budget': draw_search,
    '4  Fold: nothing is left but the base model': draw_fold,
  }
  for axis, (title, draw) in zip(axes, drawings.items(), strict=True):
    axis.set(xlim=(-0.3, 5.6 if draw is draw_layer else 5.0), ylim=(-0.3, 4.7))
    axis.axis('off')
    axis.set_title(title, loc='left', fontsize=12, color=LIGHT.ink)
    draw(axis)
  figure.savefig(pathlib.Path(__file__).with_suffix('.png'), dpi=110)


if __name__ == '__main__':
  main()
