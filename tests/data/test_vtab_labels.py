"""Label rules of VTAB-1k are those of the benchmark's tables."""

import hypothesis
import hypothesis.strategies as st
import numpy as np

from glora_jax.data.tasks import vtab

DISTANCES = [(0, 8), (8, 8.5), (8.5, 9), (9, 9.5), (9.5, 10), (10, 100)]


@hypothesis.given(st.lists(st.floats(0.125, 100, width=32), min_size=3, max_size=10))
def test_clevr_rules_are_those_of_the_table(distances):
  objects = {
    'size': np.zeros(len(distances)),
    'pixel_coords': np.array([[0, 0, distance] for distance in distances]),
  }
  assert vtab.clevr_count({'objects': objects}) == len(distances) - 3
  nearest = min(distances)
  expected = next(n for n, (low, high) in enumerate(DISTANCES) if low < nearest <= high)
  assert vtab.clevr_distance({'objects': objects}) == expected


@hypothesis.given(st.lists(st.tuples(st.integers(0, 7), st.floats(-50, 200, width=32)), max_size=6))
def test_kitti_takes_the_nearest_vehicle_and_has_a_class_for_none(objects):
  example = {
    'objects': {
      'type': np.array([kind for kind, _ in objects], int),
      'location': np.array([[1, 2, depth] for _, depth in objects]),
    }
  }
  depths = [depth for kind, depth in objects if kind in (0, 1, 2)]
  bounds = (8, 20)
  expected = sum(min(depths) > bound for bound in bounds) if depths else 3
  assert vtab.kitti_distance(example) == expected


@hypothesis.given(st.integers(0, 31), st.integers(0, 39))
def test_dsprites_bins_are_floors(x, orientation):
  example = {'label_x_position': x, 'label_orientation': orientation}
  assert vtab.find('dsprites_loc').label(example) == int(np.floor(x / (32 / 16)))
  assert vtab.find('dsprites_ori').label(example) == int(np.floor(orientation / (40 / 16)))
