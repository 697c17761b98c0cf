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
TRAINED = '#bfe2e2'
FORMS = {'vector': LIGHT.teal, 'LoRA': LIGHT.purple, '': LIGHT.paper}
STRUCTURE = {  # an example
  'layer 1': ('vector', '', '', '', 'vector'),
  'layer 2': ('', 'LoRA', '', '', 'vector'),
  'layer 3': ('LoRA', 'LoRA', '', '', ''),
}
SMALL, LARGE = 11, 12.5  # sizes of text


def write(axis: Axes, x: float, y: float, text: str, size: float = SMALL, **options) -> None:
  """Text in the picture's ink, centred at x."""
  axis.text(x, y, text, **{'ha': 'center', 'fontsize': size, 'color': LIGHT.ink, **options})


def box(axis: Axes, corner, width: float, height: float, color: str, label: str) -> None:
  """A labelled box; `corner` is its lower left."""
  outline = {'boxstyle': 'round,pad=0,rounding_size=0.06', 'edgecolor': LIGHT.ink}
  axis.add_patch(
    patches.FancyBboxPatch(corner, width, height, facecolor=color, linewidth=0.8, **outline)
  )
  x, y = corner
  ink = LIGHT.paper if color == LIGHT.purple else LIGHT.ink
  write(axis, x + width / 2, y + height / 2, label, SMALL, va='center', color=ink)


def bar(axis: Axes, corner, width: float, height: float, color: str) -> None:
  """A bar; `corner` is its lower left."""
  outline = {'edgecolor': LIGHT.ink, 'linewidth': 0.7}
  axis.add_patch(patches.Rectangle(corner, width, height, facecolor=color, **outline))


def arrow(axis: Axes, start, end) -> None:
  """An arrow from a point to another."""
  style = {'arrowstyle': '-|>', 'color': LIGHT.ink, 'linewidth': 1.2}
  axis.annotate('', end, start, arrowprops=style)


def draw_layer(axis: Axes) -> None:
  """The five tensors of a linear layer."""
  box(axis, (1.6, 2.3), 1.5, 1.5, FROZEN, 'W\nfrozen')
  box(axis, (3.8, 2.3), 1.1, 0.9, FROZEN, 'b\nfrozen')
  for name, purpose, corner in (
    ('A', 'scales W', (0.1, 3.4)),
    ('B', 'shifts W', (0.1, 2.1)),
    ('C', 'prompt, through W', (1.95, 0.9)),
    ('D', 'scales b', (3.25, 4.0)),
    ('E', 'shifts b', (4.65, 4.0)),
  ):
    box(axis, corner, 0.8, 0.55, TRAINED, name)
    x, y = corner
    write(axis, x + 0.4, y - 0.33, purpose)
  arrow(axis, (0.95, 3.6), (1.55, 3.35))
  arrow(axis, (0.95, 2.4), (1.55, 2.7))
  arrow(axis, (2.35, 1.5), (2.35, 2.25))
  arrow(axis, (3.75, 3.6), (4.1, 3.25))
  arrow(axis, (4.95, 3.6), (4.6, 3.25))
  write(axis, 2.65, 0.0, "W' = W + W * A + B", LARGE)
  write(axis, 2.65, -0.5, "b' = b + b * D + E + C W", LARGE)


def draw_scores(axis: Axes) -> None:
  """Scores of units by parameter, in order, and where the budget ends."""
  scores, chosen = 2.9 * 0.88 ** np.arange(20), 9
  forms = ['LoRA' if number in (1, 3, 4, 7) else 'vector' for number in range(chosen)]
  for number, score in enumerate(scores):
    color = FORMS[forms[number]] if number < chosen else LIGHT.paper
    bar(axis, (0.5 + 0.24 * number, 1.15), 0.19, score, color)
  edge = 0.475 + 0.24 * chosen
  axis.plot([edge, edge], [0.95, 4.4], '--', color=LIGHT.ink, linewidth=1)
  write(axis, edge + 0.12, 4.1, 'budget of parameters', ha='left')
  for place, (form, text) in enumerate({'vector': 'a vector', 'LoRA': 'a rank of a LoRA'}.items()):
    bar(axis, (edge + 0.15, 3.55 - 0.45 * place), 0.19, 0.25, FORMS[form])
    write(axis, edge + 0.5, 3.55 - 0.45 * place, text, ha='left')
  arrow(axis, (0.35, 1.1), (0.35, 4.4))
  write(axis, 0.2, 2.7, 'score per parameter', rotation=90, va='center', ha='right')
  write(axis, 2.8, 0.6, 'vectors and ranks of all layers, best first')
  write(axis, 2.8, -0.25, 'one gradient gives all scores', LARGE)


def draw_structure(axis: Axes) -> None:
  """The form of every tensor in every layer."""
  for column, name in enumerate('ABCDE'):
    write(axis, 1.3 + 0.97 * column, 4.2, name, LARGE)
  for row, (layer, forms) in enumerate(STRUCTURE.items()):
    write(axis, 0.65, 3.6 - 0.85 * row, layer, ha='right', va='center')
    for column, form in enumerate(forms):
      corner = 0.85 + 0.97 * column, 3.3 - 0.85 * row
      box(axis, corner, 0.9, 0.6, FORMS[form], form)
  write(axis, 2.8, 0.6, 'each none, constant, vector or LoRA')
  write(axis, 2.8, -0.25, 'only these and the head are trained', LARGE)


def draw_fold(axis: Axes) -> None:
  """The structure inside the base weights."""
  for x, color, ending, text in (
    (0.3, FROZEN, '', 'the base'),
    (3.5, TRAINED, "'", 'the folded model'),
  ):
    box(axis, (x, 1.9), 1.2, 1.2, color, f'W{ending}')
    box(axis, (x + 1.3, 1.9), 0.5, 1.2, color, f'b{ending}')
    write(axis, x + 0.9, 1.45, text)
  for number, name in enumerate('ABCDE'):
    box(axis, (0.2 + 0.42 * number, 3.7), 0.36, 0.55, TRAINED, name)
  write(axis, 1.2, 3.25, '+', LARGE)
  arrow(axis, (2.35, 2.5), (3.35, 2.5))
  write(axis, 2.8, 0.6, 'same class, same size, same speed')
  write(axis, 2.8, -0.25, 'params = adapted.fold(variables)', LARGE)


def main() -> None:
  """Draws the four steps, two in a line."""
  figure = Figure(figsize=(8.4, 6.4), layout='constrained')
  drawings = {
    '1  Adapt each linear layer': draw_layer,
    '2  Score, and fill a budget': draw_scores,
    '3  Train the chosen structure': draw_structure,
    '4  Fold into the weights': draw_fold,
  }
  for axis, (title, draw) in zip(figure.subplots(2, 2).flat, drawings.items(), strict=True):
    axis.set(xlim=(-0.3, 5.7), ylim=(-0.7, 4.8))
    axis.axis('off')
    axis.set_title(title, loc='left', fontsize=LARGE + 1, fontweight='bold', color=LIGHT.ink)
    draw(axis)
  figure.get_layout_engine().set(w_pad=0.15, h_pad=0.12)
  figure.supxlabel('Schematic: scores and structure are made up.', fontsize=SMALL, color=LIGHT.dim)
  figure.savefig(pathlib.Path(__file__).with_suffix('.png'), dpi=170)


if __name__ == '__main__':
  main()
