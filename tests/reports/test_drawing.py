"""Pictures: colours that everybody can tell apart, light and dark, and nothing left behind."""

import itertools
import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib import colors
from PIL import Image

from glora_jax.reports import drawing

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
VISION = {
  'trichromacy': np.eye(3),
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


def lab(color, vision):
  """CIELAB of a colour, as somebody sees it."""
  encoded = np.array(colors.to_rgb(color))
  linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
  xyz = TO_XYZ @ np.clip(VISION[vision] @ linear, 0, 1) / TO_XYZ.sum(axis=1)
  x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
  return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def nearest(colours, vision):
  """The smallest CIE 1976 difference of any two colours."""
  return min(
    np.linalg.norm(lab(color, vision) - lab(other, vision))
    for color, other in itertools.combinations(colours, 2)
  )


def test_the_measure_knows_a_pair_that_colour_blind_people_confuse():
  pair = ['#d62728', '#2ca02c']  # matplotlib's own red and green
  assert nearest(pair, 'trichromacy') > 100
  assert nearest(pair, 'deuteranopia') < 10


@pytest.mark.parametrize('vision', VISION)
@pytest.mark.parametrize('theme', drawing.PALETTES)
def test_colour_blind_people_can_tell_the_colours_apart(theme, vision):
  palette = drawing.PALETTES[theme]
  assert nearest([palette.teal, palette.red, palette.purple, palette.yellow], vision) > 30
  assert nearest(palette.series, vision) > 15


@pytest.mark.parametrize('theme', drawing.PALETTES)
def test_what_is_drawn_stands_out_from_the_paper(theme):
  palette = drawing.PALETTES[theme]
  for color in (palette.ink, palette.dim):
    assert drawing.contrast(color, palette.paper) > 7
  for color in (palette.teal, palette.red, palette.purple):
    assert drawing.contrast(color, palette.paper) > 3
  for color in (*palette.series, palette.grey):
    assert drawing.contrast(color, palette.paper) > 2


@pytest.mark.parametrize('theme', drawing.PALETTES)
def test_text_on_any_of_the_colours_can_be_read(theme):
  with drawing.theme(theme) as palette:
    for color in (palette.teal, palette.red, palette.purple, palette.yellow, palette.blank):
      assert drawing.contrast(drawing.readable_on(color), color) > 3.5


def settings():
  """All settings of matplotlib; asking for its backend would choose one."""
  return {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != 'backend'}


def test_a_theme_colours_the_whole_picture_and_leaves_the_settings_as_they_were(tmp_path):
  before = settings()
  corners = {}
  for theme in drawing.PALETTES:
    with drawing.theme(theme) as palette:
      figure, axis = drawing.panels(figsize=(1, 1))
      axis.set_title('title')
      drawing.save(figure, tmp_path / 'picture.png', dpi=50)
      assert drawing.palette() is palette
      assert axis.title.get_color() == palette.ink
    with Image.open(tmp_path / 'picture.png') as image:
      corners[theme] = colors.to_hex(np.array(image)[0, 0, :3] / 255)
  assert corners == {name: palette.paper for name, palette in drawing.PALETTES.items()}
  assert drawing.palette() is drawing.LIGHT
  assert settings() == before


def test_a_theme_ends_where_drawing_fails():
  with pytest.raises(ValueError, match='no picture'), drawing.theme('dark'):
    raise ValueError('no picture')
  assert drawing.palette() is drawing.LIGHT


@pytest.mark.parametrize('frame', [False, True])
def test_every_panel_has_the_frame_that_was_asked_for(frame):
  figure, axes = drawing.panels(2, 3, figsize=(3, 2), frame=frame)
  assert axes.shape == (2, 3)
  for axis in figure.axes:
    sides = {side for side, spine in axis.spines.items() if spine.get_visible()}
    assert sides == ({'left', 'bottom', 'top', 'right'} if frame else {'left', 'bottom'})


def test_letters_that_the_font_lacks_are_one_sentence(tmp_path, caplog):
  figure, axis = drawing.panels(figsize=(4, 3))
  axis.set_title('a \u72ac \u732b \u72ac')
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    drawing.save(figure, tmp_path / 'x.png')
  assert not caught
  assert f'{tmp_path}/x.png has boxes in place of letters' in caplog.text
  assert 'that the font of pictures lacks: \u72ac, \u732b.' in caplog.text
