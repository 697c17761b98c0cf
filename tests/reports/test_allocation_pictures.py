"""The picture of an allocation shows its units, its structure and its curve."""

import dataclasses

import numpy as np
import pytest
from matplotlib import colors

from glora_jax.method.genomes import count_params
from glora_jax.method.space import Layer, SearchSpace, Spec
from glora_jax.reports import allocation_pictures, curves, drawing
from glora_jax.search.allocated import Allocation
from glora_jax.search.allocation import Values
from glora_jax.search.choice import Curve, choose, trace_curve

SPACE = SearchSpace(
  (1, 2), A=('none', 'vector'), B=(0, 3, 4), C=('none', 'vector'), D='none', E=('none', 'vector')
)
SPEC = Spec((Layer('first', 6, 4, space=SPACE), Layer('second', 4, 6, space=SPACE)))
BUDGET = 24


def allocation():
  rng = np.random.default_rng(0)
  values = Values(*(rng.random(shape) for shape in ((3, 2), (3, 2, 2), (3, 2, 2), (3, 2), (3, 2))))
  genome = choose(SPEC, values.mean(), BUDGET, floor=False)
  curve = trace_curve(SPEC, values.mean())
  return Allocation(genome, {}, SPEC, values, curve, BUDGET, False)


@pytest.mark.parametrize('theme', drawing.PALETTES)
def test_values_purchases_and_curve_are_those_of_the_allocation(tmp_path, figures, theme):
  chosen = allocation()
  with drawing.theme(theme) as palette:
    allocation_pictures.draw_allocation(str(tmp_path / 'allocation.png'), chosen)
  bars, curve, grid = figures[0].axes[:3]

  heights = sum(bar.get_height() for bar in bars.patches)
  assert heights == count_params(SPEC, chosen.genome) > 0
  assert f'{heights:,.0f} trained' in bars.get_title(loc='left')

  labels = [label.get_text() for label in grid.get_yticklabels()]
  assert labels == ['A vector', 'B LoRA, part 1', 'B LoRA, part 2', 'C vector', 'E vector']
  (image,) = grid.images
  expected = chosen.values.mean()
  scale = 100_000 / chosen.curve.values[-1]
  np.testing.assert_allclose(image.get_array()[1], scale * expected.B_lora[:, 0] / 10)
  np.testing.assert_allclose(image.get_array()[4], scale * expected.E_vector / (4, 6))
  assert image.get_array().mask[3].tolist() == [True, False]  # C only where it is smaller
  assert colors.to_hex(image.cmap(1.0)) == palette.teal
  dots = grid.collections[0].get_offsets()
  bought = {(unit.row, unit.form, unit.part) for unit in chosen.units() if unit.bought}
  assert len(dots) == len(bought)

  line = curve.lines[0]
  np.testing.assert_array_equal(line.get_xdata(), chosen.curve.params)
  np.testing.assert_allclose(line.get_ydata(), 100 * chosen.curve.values / chosen.curve.values[-1])
  assert [text.get_text() for text in curve.get_legend().get_texts()][1] == 'budget, 24'


def test_values_that_are_worth_nothing_are_drawn_as_zero(tmp_path, figures):
  nothing = Curve(np.zeros(1, np.int64), np.zeros(1), 0)
  worthless = Values(*(-part for part in allocation().values))
  chosen = dataclasses.replace(allocation(), values=worthless, curve=nothing)
  assert curves.value_curve(chosen).percent.tolist() == [0]
  allocation_pictures.draw_allocation(str(tmp_path / 'allocation.png'), chosen)
  (image,) = figures[0].axes[2].images
  assert set(image.get_array().compressed()) == {0}
