"""How numbers are shown: in cells of tables, and in the titles of pictures."""

from typing import Any

from matplotlib.axes import Axes

from glora_jax.reports import drawing

Answer = dict[str, Any]  # of a question, as JSON types
METRICS = ('val_accuracy', 'test_accuracy', 'val_loss', 'test_loss')
TITLES = ('val accuracy', 'test accuracy', 'val loss', 'test loss')


def number(value: float | None, metric: str, signed: bool = False) -> str:
  """An accuracy in percent, or a loss."""
  if value is None:
    return 'none'
  sign = '+' if signed else ''
  return f'{100 * value:{sign}.1f}' if 'accuracy' in metric else f'{value:{sign}.3f}'


def points(value: float) -> str:
  """A difference of accuracies, in points of percent."""
  return number(value, 'accuracy', signed=True)


def loss(value: float) -> str:
  """A difference of losses."""
  return number(value, 'loss', signed=True)


def numbers(scores: dict[str, float]) -> list[str]:
  """A cell for each of `METRICS`."""
  return [number(scores[metric], metric) for metric in METRICS]


def means(summary: dict[str, dict[str, float]]) -> list[str]:
  """Mean and standard deviation of each of `METRICS`, out of `mean_and_spread`."""
  cells = []
  for metric in METRICS:
    mean, spread = summary[metric]['mean'], summary[metric]['spread']
    cells.append(f'{number(mean, metric)} ± {number(spread, metric)}')
  return cells


def correlation(value: float | None) -> str:
  """A correlation that may not exist."""
  return 'none' if value is None else f'{value:+.2f}'


def typographic(text: str) -> str:
  """The text with minus signs in place of hyphens."""
  return text.replace('-', '\N{MINUS SIGN}')


def set_title(axis: Axes, question: str, answer: str) -> None:
  """Writes a question over a panel, and its answer in smaller letters below."""
  axis.set_title(f'{question}\n', loc='left', fontsize=14, fontweight='bold')
  line = axis.text(
    0,
    1.025,
    typographic(answer),
    transform=axis.transAxes,
    fontsize=10.5,
    color=drawing.palette().dim,
  )
  line.set_in_layout(False)


def draw_star(axis: Axes, x: float, y: float, label: str | None) -> None:
  """Marks what the search has chosen."""
  color = drawing.palette().red
  axis.plot(x, y, '*', color=color, markersize=16, label=label, zorder=5)
