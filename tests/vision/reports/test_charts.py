"""Charts have round numbers along their axes, and show the numbers that they were given."""

import dataclasses

import numpy as np
import pages
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glora_jax.search.choice import Curve
from glora_jax.vision.reports import curves, structure
from glora_jax.vision.reports.charts import axis

SIZES = st.floats(-1e7, 1e7).map(lambda value: round(value, 3))


@given(st.lists(SIZES, min_size=1, max_size=4), st.booleans())
def test_an_axis_has_few_round_numbers_around_all_values(values, whole):
  found = np.array(axis('', values, whole=whole).values)
  assert 2 <= len(found) <= 7
  [step] = {f'{step:.4g}' for step in np.diff(found)}
  room = 1e-8 * float(step)
  assert found[0] - room <= min(values) <= max(values) <= found[-1] + room
  assert f'{float(step):e}'.split('e')[0].rstrip('0').rstrip('.') in ('1', '2', '2.5', '5')
  assert not whole or not np.any(found % 1)


def test_a_loss_has_decades():
  assert axis('loss', [0.03, 4], is_log=True).values == [0.01, 0.1, 1, 10]


def test_the_search_shows_mean_and_best_of_every_generation(findings):
  charts, _ = curves.search_blocks(findings.result, findings.spec, findings.archive)
  shown = [[y for _, y in line.points] for line in charts.charts[0].lines]
  assert sorted(shown[0]) == pytest.approx([50, 60, 80, 90])
  assert shown[1:] == [pytest.approx([65, 75]), pytest.approx([80, 90])]


def test_a_long_curve_of_values_reaches_its_end(allocation):
  params = np.arange(1000)
  long = Curve(params, np.sqrt(params), 500)
  chart = structure.score_chart(dataclasses.replace(allocation, curve=long, budget=999))
  [line] = chart.lines
  assert chart.places(line.points)[-1][1] == 0
  assert len(line.points) < 1000
  nothing = Curve(np.zeros(1, np.int64), np.zeros(1), 0)
  [line] = structure.score_chart(dataclasses.replace(allocation, curve=nothing)).lines
  assert line.points == [(0, 0)]


@pytest.mark.parametrize(
  'line', ['', '{"stage": "head", "epoch": 1, "loss": NaN, "accuracy": null}\n']
)
def test_nothing_is_drawn_of_training_where_nothing_can_be(line, tmp_path, findings):
  metrics = tmp_path / 'metrics.jsonl'
  metrics.write_text(line)
  assert curves.training_blocks(str(metrics), findings.result) == []


def test_training_shows_every_stage_validation_and_the_best_epoch(tmp_path, findings):
  (tmp_path / 'metrics.jsonl').write_text(pages.METRICS)
  result = findings.result
  charts, _ = curves.training_blocks(str(tmp_path / 'metrics.jsonl'), result)
  shown = [(line.label, [y for _, y in line.points]) for line in charts.charts[0].lines]
  assert shown == [
    ('supernet', [25, 75]),
    ('lora:2', [50, 60]),
    ('lora:2', pytest.approx([45, 55])),
    ('searched, finetuned', [80]),
    ('searched, finetuned', [50]),
  ]
  best = [mark.at for mark in charts.charts[0].marks if mark.shape == 'star']
  assert best == [(2, pytest.approx(55)), (1, 50)]
