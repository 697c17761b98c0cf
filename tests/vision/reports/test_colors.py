"""Colours that everybody can tell apart, light and dark."""

import itertools

import numpy as np
import pytest

from glora_jax.vision.reports import page

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
VISION = {
  'protanopia': np.array(
    [
      [0.152286, 1.052583, -0.204868],
      [0.114503, 0.786281, 0.099216],
      [-0.003882, -0.048116, 1.051998],
    ]
  ),
  'deuteranopia': np.array(
    [
      [0.367322, 0.860646, -0.227968],
      [0.280085, 0.672501, 0.047413],
      [-0.011820, 0.042940, 0.968881],
    ]
  ),
}
TO_XYZ = np.array(
  [
    [0.4124564, 0.3575761, 0.1804375],
    [0.2126729, 0.7151522, 0.0721750],
    [0.0193339, 0.1191920, 0.9503041],
  ]
)
THEMES = pytest.mark.parametrize('palette', page.PALETTES.values(), ids=page.PALETTES)


def linear(color):
  """Linear light of a colour of sRGB, '#rrggbb'."""
  encoded = np.frombuffer(bytes.fromhex(color[1:]), np.uint8) / 255
  return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def lab(color, vision):
  """CIELAB of a colour, as somebody sees it."""
  xyz = TO_XYZ @ np.clip(VISION[vision] @ linear(color), 0, 1) / TO_XYZ.sum(axis=1)
  x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
  return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def nearest(colours, vision):
  """The smallest CIE 1976 difference of any two colours."""
  return min(
    np.linalg.norm(lab(color, vision) - lab(other, vision))
    for color, other in itertools.combinations(colours, 2)
  )


@pytest.mark.parametrize('vision', VISION)
@THEMES
def test_colour_blind_people_can_tell_the_colours_apart(palette, vision):
  assert nearest([palette[name] for name in ('teal', 'red', 'purple', 'yellow')], vision) > 30
  assert nearest([color for name, color in palette.items() if 'series' in name], vision) > 15
