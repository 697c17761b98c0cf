"""Pictures of errors show what they were given, for few classes and many, and any name."""

import numpy as np
import pytest
from PIL import Image

from glora_jax.reports import error_pictures


def texts(axis):
  return [text.get_text() for text in axis.texts]


def matrix_of(number, errors):
  rng = np.random.default_rng(0)
  matrix = np.diag(rng.integers(5, 90, number))
  for _ in range(errors):
    matrix[tuple(rng.permutation(number)[:2])] += rng.integers(1, 9)
  return matrix


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('number', [2, 40])
def test_a_confusion_matrix_shows_every_count_and_the_share_that_was_found(
  tmp_path, figures, number
):
  matrix = matrix_of(number, 2 * number)
  matrix[1] = 0  # a class without test images
  names = [f'class $_{n} of a rather long name^{{' for n in range(number)]
  error_pictures.draw_confusion(str(tmp_path / 'confusion.png'), names, matrix)
  (axis,) = figures[0].axes
  assert sorted(map(int, texts(axis))) == sorted(matrix[matrix > 0].tolist())
  labels = [label.get_text() for label in axis.get_yticklabels()]
  share = f'{100 * matrix[0, 0] / matrix[0].sum():.0f}%'
  assert [label.split()[-1] for label in labels[:2]] == [share, 'none']
  assert all(label.startswith('class $_') for label in labels)
  with Image.open(tmp_path / 'confusion.png') as picture:
    assert max(picture.size) < 2600


def test_right_answers_and_errors_are_shaded_each_by_the_share_of_their_class(tmp_path, figures):
  matrix = np.array([[6, 2, 0], [0, 10, 0], [1, 0, 9]])
  error_pictures.draw_confusion(str(tmp_path / 'confusion.png'), ['a', 'b', 'c'], matrix)
  (image,) = figures[0].axes[0].images
  red, green, blue = np.moveaxis(np.asarray(image.get_array()), -1, 0)
  assert red[0, 1] > green[0, 1]  # an error is red,
  assert green[1, 1] > red[1, 1]  # a right answer teal,
  assert red[0, 2] == green[0, 2] == blue[0, 2] == 1  # and nothing is white
  assert blue[0, 1] < blue[2, 0] < 1  # a quarter of a class is stronger than a tenth
  assert red[1, 1] < red[2, 2] < red[0, 0]


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('errors', [0, 1, 300])
def test_of_many_classes_the_most_confused_pairs_are_shown(tmp_path, figures, errors):
  matrix = matrix_of(150, errors)
  names = [f'class {n}' for n in range(150)]
  error_pictures.draw_confusion(str(tmp_path / 'confusion.png'), names, matrix)
  pairs = error_pictures.confused_pairs(matrix)[: error_pictures.PAIRS]
  (axis,) = figures[0].axes
  assert texts(axis) == [f' {pair.count} of {matrix[pair.true].sum()}' for pair in pairs]
  assert [bar.get_width() for bar in axis.patches] == [pair.count for pair in pairs]
  assert ('No two' in axis.get_title(loc='left')) == (not errors)


def test_pairs_are_ordered_by_how_often_they_were_confused():
  matrix = np.array([[50, 2, 0], [7, 40, 2], [0, 0, 30]])
  assert error_pictures.confused_pairs(matrix) == [(1, 0, 7), (0, 1, 2), (1, 2, 2)]


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('number, size', [(1, 8), (7, 224), (12, 28)])
def test_errors_stand_below_their_classes(tmp_path, figures, number, size):
  images = np.random.default_rng(0).integers(0, 256, (number, size, size, 3), np.uint8)
  probabilities = np.linspace(1, 0.5, number)
  error_pictures.draw_errors(
    str(tmp_path / 'errors.png'),
    images,
    ['Abyssinian, $5'] * number,
    ['a_b'] * number,
    probabilities,
  )
  shown = [axis for axis in figures[0].axes if axis.images]
  assert len(shown) == number
  for axis, image, probability in zip(shown, images, probabilities, strict=True):
    np.testing.assert_array_equal(axis.images[0].get_array(), image)
    assert axis.get_title() == f'Abyssinian, $5\n→ a_b ({100 * probability:.1f}%)'
