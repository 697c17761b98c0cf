"""Figures that know of no display: drawing one leaves matplotlib's backend, a notebook's for instance, as it is."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from glora_jax.files import Path, whole


def panels(
  rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], **options: Any
) -> tuple[Figure, Any]:
  """A figure and its axes, as `matplotlib.pyplot.subplots` gives them; `figsize` in inches."""
  figure = Figure(figsize=figsize, layout='constrained')
  return figure, figure.subplots(rows, columns, **options)


def save(figure: Figure, path: Path, *, dpi: int = 150, **options: Any) -> None:
  """Writes a PNG, whole or not at all."""
  with whole(path) as temporary:
    figure.savefig(temporary, format='png', dpi=dpi, **options)
