"""Draws method.png, the picture of GLoRA in the README: `python notebooks/pictures/method.py`."""

import pathlib

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patches

FROZEN, SCALE, SHIFT, PROMPT, RED, INK = (
  '#d9d9d9',
  '#f6c667',
  '#5aa7a7',
  '#8e6bb0',
  '#c0392b',
  '#333333',
)
FORMS = ('none', 'constant', 'vector', 'LoRA')
TENSORS = (('A', SCALE), ('B', SHIFT), ('C', PROMPT), ('D', SCALE), ('E', SHIFT))


def box(axis, x, y, width, height, color, label='', **options):
  axis.add_patch(
    patches.FancyBboxPatch(
      (x, y),
      width,
      height,
      boxstyle='round,pad=0,rounding_size=0.06',
      facecolor=color,
      edgecolor=INK,
      linewidth=0.8,
      **options,
    )
  )
  axis.text(x + width / 2, y + height / 2, label, ha='center', va='center', fontsize=11, color=INK)


def arrow(axis, start, end):
  axis.annotate('', end, start, arrowprops={'arrowstyle': '-|>', 'color': INK, 'linewidth': 1.2})


def layer(axis):
  """The five tensors of one linear layer."""
  box(axis, 1.5, 2.0, 1.6, 1.6, FROZEN, 'W\nfrozen')
  box(axis, 4.0, 2.4, 0.8, 0.8, FROZEN, 'b\nfrozen')
  for x, y, name, what, color in (
    (0.1, 3.1, 'A', 'scales W', SCALE),
    (0.1, 1.9, 'B', 'shifts W', SHIFT),
    (1.8, 0.75, 'C', 'prompt through W', PROMPT),
    (3.4, 3.9, 'D', 'scales b', SCALE),
    (4.6, 3.9, 'E', 'shifts b', SHIFT),
  ):
    box(axis, x, y, 0.8, 0.55, color, name)
    axis.text(x + 0.4, y - 0.22, what, ha='center', fontsize=8, color=INK)
  for start, end in (
    ((0.95, 3.3), (1.45, 3.1)),
    ((0.95, 2.2), (1.45, 2.4)),
    ((2.2, 1.35), (2.2, 1.95)),
    ((3.9, 3.6), (4.2, 3.25)),
    ((4.95, 3.6), (4.65, 3.25)),
  ):
    arrow(axis, start, end)
  axis.text(
    2.75,
    -0.05,
    "W' = W + W * A + B        b' = b + b * D + E + C W",
    ha='center',
    fontsize=10.5,
    color=INK,
  )


def supernet(axis):
  """Forms of every tensor in every layer, and the path of one step through them."""
  rng = np.random.default_rng(3)
  for column, (name, color) in enumerate(TENSORS):
    axis.text(1.0 + 0.85 * column, 4.25, name, ha='center', fontsize=11, color=INK)
    forms = FORMS if name in 'AB' else FORMS[::2] + FORMS[3:] if name == 'C' else FORMS[:3]
    for row in range(3):
      chosen = rng.integers(len(forms))
      for number in range(len(forms)):
        x, y = 0.72 + 0.85 * column + 0.15 * number, 3.35 - 1.1 * row
        axis.add_patch(
          patches.Rectangle(
            (x, y),
            0.12,
            0.6,
            facecolor=color if number == chosen else 'white',
            edgecolor=INK,
            linewidth=0.7,
          )
        )
  for row in range(3):
    axis.text(
      0.45, 3.65 - 1.1 * row, f'layer {row + 1}', ha='right', va='center', fontsize=8.5, color=INK
    )
  axis.text(
    2.4,
    0.55,
    'every step draws a form for each: none, constant, vector, LoRA',
    ha='center',
    fontsize=8.5,
    color=INK,
  )
  axis.text(2.4, -0.05, 'genome: int8 [layers, 5]', ha='center', fontsize=10.5, color=INK)


def search(axis):
  """Accuracy against parameters of a population, and its best within the budget."""
  rng = np.random.default_rng(1)
  params = rng.uniform(0.4, 4.6, 70)
  accuracy = 1.2 + 2.3 * (1 - np.exp(-params / 1.6)) + rng.normal(0, 0.35, 70)
  axis.scatter(params, accuracy, s=14, color='#aaaaaa', linewidths=0)
  axis.plot([3.2, 3.2], [0.9, 4.2], '--', color=INK, linewidth=1)
  axis.text(3.28, 1.0, 'budget', fontsize=8.5, color=INK)
  best = np.argmax(np.where(params < 3.2, accuracy, 0))
  axis.plot(params[best], accuracy[best], '*', color=RED, markersize=18)
  axis.annotate('', (0.3, 4.3), (0.3, 0.85), arrowprops={'arrowstyle': '-|>', 'color': INK})
  axis.annotate('', (4.9, 0.85), (0.3, 0.85), arrowprops={'arrowstyle': '-|>', 'color': INK})
  axis.text(0.15, 2.5, 'accuracy', rotation=90, va='center', ha='right', fontsize=8.5, color=INK)
  axis.text(2.6, 0.5, 'trained parameters', ha='center', fontsize=8.5, color=INK)
  axis.text(2.6, -0.05, 'a population is one compiled call', ha='center', fontsize=10.5, color=INK)


def fold(axis):
  """The winner inside the base weights."""
  box(axis, 0.3, 2.0, 1.6, 1.6, FROZEN, 'W')
  for number, (name, color) in enumerate(TENSORS):
    box(axis, 0.2 + 0.36 * number, 3.8, 0.3, 0.4, color, name)
  arrow(axis, (2.05, 2.8), (2.75, 2.8))
  box(axis, 2.9, 2.0, 1.6, 1.6, '#c5dcdc', "W'")
  axis.text(2.4, 1.35, 'same class, same size, same speed', ha='center', fontsize=8.5, color=INK)
  axis.text(
    2.4, -0.05, 'params = adapted.fold(variables, genome)', ha='center', fontsize=10.5, color=INK
  )


def main():
  figure, axes = plt.subplots(
    1, 4, figsize=(16, 4), layout='constrained', width_ratios=(5.6, 4.8, 5, 4.9)
  )
  titles = (
    '1  Five support tensors per linear layer',
    '2  Train a supernet of all their forms',
    '3  Search the best within a budget',
    '4  Fold: nothing is left but the base model',
  )
  for axis, title, drawing in zip(axes, titles, (layer, supernet, search, fold), strict=True):
    axis.set(xlim=(-0.3, 5.6 if drawing is layer else 5.0), ylim=(-0.3, 4.7))
    axis.axis('off')
    axis.set_title(title, loc='left', fontsize=12, color=INK)
    drawing(axis)
  figure.savefig(pathlib.Path(__file__).with_suffix('.png'), dpi=110)


if __name__ == '__main__':
  main()
