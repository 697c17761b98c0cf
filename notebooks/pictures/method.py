"""Draws method.png, the picture of GLoRA in the README: `python notebooks/pictures/method.py`."""

import pathlib
import types

import numpy as np
from matplotlib import patches
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from glora_jax.vision.reports.page import PALETTES

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
SMALL, LARGE = 12, 14  # sizes of text


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
  write(axis, x + width / 2, y + height / 2, label, SMALL, va='center', color=ink)


def bar(axis: Axes, corner, width: float, height: float, color: str) -> None:
  """A bar, by its lower left corner."""
  outline = {'edgecolor': LIGHT.ink, 'linewidth': 0.7}
  axis.add_patch(patches.Rectangle(corner, width, height, facecolor=color, **outline))


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
    write(axis, x + 0.4, y - 0.28, purpose)
  arrow(axis, (0.95, 3.3), (1.45, 3.1))
  arrow(axis, (0.95, 2.2), (1.45, 2.4))
  arrow(axis, (2.2, 1.35), (2.2, 1.95))
  arrow(axis, (3.9, 3.6), (4.2, 3.25))
  arrow(axis, (4.95, 3.6), (4.65, 3.25))
  write(axis, 2.6, -0.25, "W' = W + W * A + B     b' = b + b * D + E + C W", LARGE)


def draw_scores(axis: Axes) -> None:
  """Scores of units by parameter, in order, and where the budget ends."""
  scores, colors = 2.9 * 0.88 ** np.arange(20), [*TENSORS.values()]
  rng, chosen = np.random.default_rng(8), 9
  for number, score in enumerate(scores):
    color = colors[rng.choice(len(colors), p=(0.15, 0.5, 0.05, 0.05, 0.25))]
    bar(axis, (0.5 + 0.22 * number, 0.95), 0.17, score, color if number < chosen else LIGHT.paper)
  edge = 0.475 + 0.22 * chosen
  axis.plot([edge, edge], [0.7, 4.0], '--', color=LIGHT.ink, linewidth=1)
  write(axis, edge + 0.1, 3.7, 'budget of parameters', ha='left')
  arrow(axis, (0.35, 0.9), (0.35, 4.2))
  write(axis, 0.15, 2.5, 'score', rotation=90, va='center', ha='right')
  write(axis, 2.6, 0.35, 'layers and forms, best first')
  write(axis, 2.6, -0.25, 'by one gradient, or by a search', LARGE)


def draw_structure(axis: Axes) -> None:
  """The form of every tensor in every layer."""
  rng = np.random.default_rng(3)
  for column, (name, color) in enumerate(TENSORS.items()):
    write(axis, 1.2 + 0.85 * column, 4.25, name, LARGE)
    for row in range(3):
      chosen = rng.integers(len(FORMS[name]))
      for number in range(len(FORMS[name])):
        corner = 0.92 + 0.85 * column + 0.15 * number, 3.35 - 1.1 * row
        bar(axis, corner, 0.12, 0.6, color if number == chosen else LIGHT.paper)
  for row in range(3):
    write(axis, 0.7, 3.65 - 1.1 * row, f'layer {row + 1}', ha='right', va='center')
  write(axis, 2.6, 0.35, 'each none, constant, vector or LoRA')
  write(axis, 2.6, -0.25, 'only these and the head are trained', LARGE)


def draw_fold(axis: Axes) -> None:
  """The structure inside the base weights."""
  box(axis, (0.7, 2.0), 1.6, 1.6, FROZEN, 'W')
  for number, (name, color) in enumerate(TENSORS.items()):
    box(axis, (0.6 + 0.36 * number, 3.8), 0.3, 0.4, color, name)
  arrow(axis, (2.45, 2.8), (3.15, 2.8))
  box(axis, (3.3, 2.0), 1.6, 1.6, FOLDED, "W'")
  write(axis, 2.8, 1.35, 'same class, same size, same speed')
  write(axis, 2.8, -0.25, 'params = adapted.fold(variables)', LARGE)


def main() -> None:
  """Draws the four steps, two in a line."""
  figure = Figure(figsize=(10, 6.6), layout='constrained')
  drawings = {
    '1  Five small tensors for each linear layer': draw_layer,
    '2  What is worth training?': draw_scores,
    '3  Train a structure: a form for each tensor': draw_structure,
    '4  Fold: the plain model, with new weights': draw_fold,
  }
  for axis, (title, draw) in zip(figure.subplots(2, 2).flat, drawings.items(), strict=True):
    axis.set(xlim=(-0.3, 5.6), ylim=(-0.6, 4.7))
    axis.axis('off')
    axis.set_title(title, loc='left', fontsize=LARGE, fontweight='bold', color=LIGHT.ink)
    draw(axis)
  figure.savefig(pathlib.Path(__file__).with_suffix('.png'), dpi=140)


if __name__ == '__main__':
  main()
