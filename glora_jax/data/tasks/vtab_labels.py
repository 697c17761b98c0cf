"""Labels of VTAB-1k that are computed from the features of an example.

They are those of the benchmark's own data code, google-research/task_adaptation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from glora_jax.data.tfds_examples import Example

_FEWEST_OBJECTS = 3  # of a CLEVR scene
_DISTANCES = (0, 8, 8.5, 9, 9.5, 10, 100)  # bounds of CLEVR's classes
_DEPTHS = (-100, 8, 20, 999)  # bounds of KITTI's classes, in metres
_NO_VEHICLE = 1000.0  # depth beyond the last bound
_VEHICLES = 3  # KITTI's object types below are car, van and truck


def last_below(value: float, bounds: Sequence[float]) -> int:
  """The largest index whose bound is below the value.

  Example:
    >>> last_below(8.5, (0, 8, 8.5, 9))
    1
  """
  return max(index for index, bound in enumerate(bounds) if bound < value)


def clevr_count(example: Example) -> int:
  """The number of objects, 3 to 10, counted from 0."""
  return len(_objects(example, 'size')) - _FEWEST_OBJECTS


def clevr_distance(example: Example) -> int:
  """The distance of the nearest object to the camera in six bins."""
  return last_below(_objects(example, 'pixel_coords')[:, 2].min(), _DISTANCES)


def kitti_distance(example: Example) -> int:
  """The depth of the nearest vehicle in three bins, or the class of images without vehicles."""
  is_vehicle = _objects(example, 'type') < _VEHICLES
  depths = _objects(example, 'location').reshape(-1, 3)[is_vehicle, 2]
  return last_below(np.append(depths, _NO_VEHICLE).min(), _DEPTHS)


def dsprites_orientation(example: Example) -> int:
  """The orientation, one of 40, in 16 bins of 40 / 16 = 5 / 2."""
  return 2 * int(example['label_orientation']) // 5


def _objects(example: Example, feature: str) -> np.ndarray:
  return np.asarray(example['objects'][feature])
