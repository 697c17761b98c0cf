"""The tasks of the structures' benchmark: what a seed draws, and labels that pictures bear out."""

import gzip
import pickle

import numpy as np
import pytest
from scipy import ndimage

from benchmarks.structures import admission, confirming_scenes, rendering, scenes, tasks


class Unwanted:
  """What no file of arrays holds."""


def small_pool(sizes, seed=0):
  """Random pictures, as many of each class as `sizes` says, in random order."""
  rng = np.random.default_rng(seed)
  labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int32)
  images = rng.integers(0, 256, (len(labels), 28, 28, 3), dtype=np.uint8)
  return tasks.Pool(images, labels, len(sizes))


def pictures(split):
  """The pictures of a split, as a set."""
  return {image.tobytes() for image in split.images}


def test_splits_of_a_seed_are_disjoint_and_as_large_as_asked():
  pool = small_pool([700] * 9)
  drawn = tasks.draw(pool, 3)
  assert {name: len(split.labels) for name, split in drawn.items()} == {
    'train': 800,
    'val': 200,
    'test': 4000,
  }
  more = tasks.more_validation(pool, 3)
  everyone = set().union(*map(pictures, drawn.values()), pictures(more))
  assert len(everyone) == 6000


def test_no_seed_learns_from_a_test_image_and_the_test_images_stay():
  pool = small_pool([300] * 5)
  first, second = tasks.draw(pool, 0), tasks.draw(pool, 1)
  np.testing.assert_array_equal(first['test'].images, second['test'].images)
  assert not pictures(first['test']) & (pictures(second['train']) | pictures(second['val']))
  assert pictures(first['train']) != pictures(second['train'])
  np.testing.assert_array_equal(tasks.draw(pool, 1)['train'].labels, second['train'].labels)


def test_classes_have_equal_shares_while_there_are_images():
  drawn = tasks.draw(small_pool([1100, 1000, 1200, 1300, 1000]), 0)
  for name, share in {'train': 160, 'val': 40, 'test': 800}.items():
    assert np.bincount(drawn[name].labels).tolist() == [share] * 5
  uneven = tasks.balanced_order(np.array([0] * 7 + [1] * 2 + [2] * 3), 0)
  assert sorted(uneven.tolist()) == list(range(12))


def test_too_few_images_are_refused():
  with pytest.raises(ValueError, match='has 1000 images; more than 1000 are needed'):
    tasks.draw(small_pool([500, 500]), 0)


def test_a_task_that_does_not_exist_is_named():
  with pytest.raises(ValueError, match="no task 'count_stars'"):
    tasks.load_pool('count_stars')


def test_a_picture_is_kept_once_and_not_at_all_with_two_labels():
  images = small_pool([6]).images
  images[3], images[5] = images[0], images[1]
  assert tasks.distinct(images, np.array([0, 1, 2, 0, 1, 2])).tolist() == [0, 2, 4]


def test_a_pickle_of_an_array_is_read_and_nothing_else():
  array = np.arange(6, dtype=np.uint8).reshape(2, 3)
  written = pickle.dumps(array, protocol=3).replace(b'numpy._core', b'numpy.core')
  np.testing.assert_array_equal(tasks._read_array(gzip.compress(written)), array)
  with pytest.raises(pickle.UnpicklingError, match='Unwanted; only plain arrays are read'):
    tasks._read_array(gzip.compress(pickle.dumps(Unwanted())))


def test_rendered_pictures_are_the_same_every_time_and_their_labels_take_turns(monkeypatch):
  monkeypatch.setattr(tasks, 'RENDERED', 10)
  images, labels = tasks.render(scenes.discs, 4, 7)
  assert labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
  np.testing.assert_array_equal(images, tasks.render(scenes.discs, 4, 7)[0])
  assert (images != tasks.render(scenes.discs, 4, 8)[0]).any(axis=(1, 2, 3)).all()


@pytest.fixture
def plain(monkeypatch):
  """Scenes whose background is black and whose colors are white, without noise and clutter."""
  black = np.zeros((28, 28, 3))
  monkeypatch.setattr(rendering, 'gradient', lambda *_: black)
  monkeypatch.setattr(rendering, 'tint', lambda *_: np.ones(3))
  monkeypatch.setattr(rendering, 'finish', lambda rng, picture, noise: picture[..., 0])


@pytest.fixture
def black(plain, monkeypatch):
  """Scenes without noise, clutter and colors."""
  monkeypatch.setattr(confirming_scenes, 'clutter', lambda *_, **__: np.zeros((28, 28, 3)))


def shapes(picture):
  """Connected components of what is brighter than half."""
  marked, number = ndimage.label(picture > 0.5, np.ones((3, 3)))
  return [np.argwhere(marked == index + 1) for index in range(number)]


@pytest.mark.parametrize('label', range(5))
def test_a_picture_of_discs_has_as_many_parts_as_the_label_says(plain, label):
  for seed in range(5):
    assert len(shapes(scenes.discs(np.random.default_rng(seed), label))) == label + 1


@pytest.mark.parametrize('label', range(8))
def test_a_bar_lies_along_the_angle_that_the_label_says(plain, label):
  for seed in range(5):
    (points,) = shapes(scenes.bars(np.random.default_rng(seed), label))
    _, _, directions = np.linalg.svd(points - points.mean(0))
    angle = np.arctan2(directions[0, 0], directions[0, 1])
    assert round(angle / (np.pi / 8)) % 8 == label


@pytest.fixture
def uncluttered(plain, monkeypatch):
  """As `plain`, for the final scenes: no clouds and no lines either."""
  monkeypatch.setattr(rendering, 'smooth_field', lambda *_: np.zeros((28, 28, 3)))
  monkeypatch.setattr(rendering, 'stroke', lambda picture, *_: picture)


def is_ring(points):
  """Whether a shape does not cover its own middle."""
  return np.hypot(*(points - points.mean(0)).T).min() > 0.75


@pytest.mark.parametrize('label', range(6))
def test_a_picture_of_the_count_has_as_many_parts_as_the_label_says(uncluttered, label):
  for seed in range(5):
    assert len(shapes(scenes.count(np.random.default_rng(seed), label))) == label + 1


@pytest.mark.parametrize('label', range(8))
def test_an_arrow_points_where_the_label_says(uncluttered, label):
  for seed in range(5):
    (points,) = shapes(scenes.angle(np.random.default_rng(seed), label))
    offsets = points - points.mean(0)
    _, _, directions = np.linalg.svd(offsets)
    along = offsets @ directions[0]
    # The head is wider than the shaft, so most of an arrow lies before the middle of its length.
    forward = directions[0] * np.sign(-(along.max() + along.min()))
    angle = np.arctan2(*forward)
    assert round(-angle / (np.pi / 4)) % 8 == -label % 8


@pytest.mark.parametrize('label', range(9))
def test_the_ring_is_in_the_cell_that_the_label_says(uncluttered, label):
  for seed in range(5):
    parts = shapes(scenes.position(np.random.default_rng(seed), label))
    (ring,) = [points for points in parts if is_ring(points)]
    row, column = ((ring.mean(0) + 0.5) // (28 / 3)).astype(int)
    assert 3 * row + column == label
    assert len(parts) == 3


@pytest.mark.parametrize('label', range(4))
def test_two_squares_are_as_far_apart_as_the_label_says(uncluttered, label):
  for seed in range(5):
    parts = shapes(scenes.distance(np.random.default_rng(seed), label))
    if len(parts) == 1:  # close squares may touch
      assert label == 0
      continue
    apart = np.hypot(*(parts[0].mean(0) - parts[1].mean(0)))
    assert -0.4 < apart - (5 + 4.5 * label) < 2.5 + 0.4


@pytest.mark.parametrize('label', range(6))
def test_a_shape_is_as_large_as_the_label_says(uncluttered, label, monkeypatch):
  radii = []
  monkeypatch.setattr(
    rendering,
    'coverage',
    lambda shape, center, radius, angle: radii.append(radius) or np.zeros((28, 28)),
  )
  for seed in range(5):
    scenes.size(np.random.default_rng(seed), label)
  assert {int((radius - 2.5) // 1.3) for radius in radii} == {label}


@pytest.mark.parametrize(
  'shape, area',
  [
    (rendering.disc, np.pi * 36),
    (rendering.square, (2 * 0.87 * 6) ** 2),
    (rendering.triangle, 3 * np.sqrt(3) * (0.6 * 6) ** 2),
    (rendering.cross, 2 * 12 * 3 - 9),
    (rendering.bar, 12 * 12 / 7),
    (rendering.ring, np.pi * (36 - 4.8**2)),
  ],
)
def test_a_shape_covers_its_area_wherever_it_is_and_however_turned(shape, area):
  for center, angle in [((13.5, 13.5), 0.0), ((12.2, 14.9), 0.7)]:
    assert rendering.coverage(shape, center, 6.0, angle).sum() == pytest.approx(area, rel=0.05)


@pytest.mark.parametrize('label', range(5))
def test_the_square_is_where_the_label_says_seen_from_the_ring(uncluttered, label, monkeypatch):
  placed = {}

  def record(shape, center, radius, angle):
    placed[shape] = np.asarray(center), radius
    return np.zeros((28, 28))

  monkeypatch.setattr(rendering, 'coverage', record)
  for seed in range(5):
    scenes.relation(np.random.default_rng(seed), label)
    (ring, radius), (square, inner) = placed[rendering.ring], placed[rendering.square]
    offset = square - ring
    if label == 4:
      assert np.hypot(*offset) + inner * 1.3 < radius
      continue
    sides = [offset[0] < 0, offset[1] < 0, offset[0] > 0, offset[1] > 0]
    assert sides[label]
    assert abs(offset[label % 2]) > abs(offset[1 - label % 2])
    assert np.hypot(*offset) > radius


def test_centers_that_do_not_fit_are_refused():
  rng = np.random.default_rng(0)
  with pytest.raises(ValueError, match='20 centers do not fit 15 pixels apart'):
    rendering.spread(rng, 20, 3.0, 15)
  with pytest.raises(ValueError, match='40 pixels apart do not fit'):
    rendering.pair(rng, 3.0, 40)


@pytest.mark.parametrize(
  'linear, finetuning, full, admitted',
  [(50, 70, 69, True), (50, 59.9, 60, False), (80, 97.5, 96, False), (80, 96, 97, False)],
)
def test_admission_asks_for_headroom(linear, finetuning, full, admitted):
  accuracy = {'linear': linear, 'finetuning': finetuning, 'full': full}
  assert admission.is_admitted(accuracy) == admitted


def test_a_task_says_how_many_test_images_it_has():
  drawn = tasks.draw(tasks.load_pool('digits'), 0)
  assert len(drawn['test'].labels) == tasks.TASKS['digits'].tests


@pytest.mark.parametrize('label', range(6))
def test_as_many_discs_are_in_the_ring_as_the_label_says(monkeypatch, label):
  drawn = []

  def add_shape(rng, picture, shape, center, radius):
    drawn.append((shape, center, radius))
    return picture

  monkeypatch.setattr(confirming_scenes, 'add_shape', add_shape)
  for seed in range(5):
    drawn.clear()
    confirming_scenes.inside(np.random.default_rng(seed), label)
    (_, middle, ring), *discs = drawn
    away = np.array([np.hypot(*(center - middle)) for _, center, _ in discs])
    radii = np.array([radius for _, _, radius in discs])
    assert len(discs) == 5
    assert (away + radii < ring).sum() == label
    assert (away - radii > ring).sum() == 5 - label


@pytest.mark.parametrize('label', range(6))
def test_discs_stand_in_the_order_that_the_label_says(black, label):
  picture = confirming_scenes.order(np.random.default_rng(0), label)
  columns = np.array_split(np.arange(28), 3)
  brightness = [picture[:, part].max() for part in columns]
  assert (
    np.argsort(np.argsort(brightness)).tolist()
    == np.argsort(np.argsort(confirming_scenes._ORDERS[label])).tolist()
  )


@pytest.mark.parametrize('label', range(8))
def test_the_gap_of_a_ring_is_where_the_label_says(black, label):
  for seed in range(5):
    picture = confirming_scenes.gap(np.random.default_rng(seed), label)
    points = np.argwhere(picture > 0.1)
    system = np.column_stack([2 * points, np.ones(len(points))])
    circle = np.linalg.lstsq(system, (points**2).sum(1), rcond=None)[0]  # fitted to what is there
    y, x = circle[:2] - np.average(points, axis=0, weights=picture[tuple(points.T)])
    assert round(np.arctan2(y, x) / (np.pi / 4)) % 8 == label


@pytest.mark.parametrize('label, turned', [(0, np.fliplr), (1, np.flipud), (2, np.rot90)])
def test_a_mirrored_picture_is_its_own_image(black, label, turned):
  picture = confirming_scenes.mirror(np.random.default_rng(0), label)
  image = turned(turned(picture)) if turned is np.rot90 else turned(picture)
  np.testing.assert_allclose(picture, image, atol=1e-6)
  other = confirming_scenes.mirror(np.random.default_rng(0), 3)
  assert not np.allclose(other, turned(other))


def test_a_polygon_has_the_area_of_a_disc_whatever_its_corners(black):
  rows, columns = np.mgrid[-20:20:0.1, -20:20:0.1]
  for corners in range(3, 9):
    area = (confirming_scenes._polygon(columns, rows, 9.0, corners) < 0).sum() * 0.01
    assert area == pytest.approx(np.pi * 81, rel=0.02)
