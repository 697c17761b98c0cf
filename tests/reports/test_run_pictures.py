"""The pictures of a report: what they show is what they were given, for few classes and many, and any name."""

import json

import numpy as np
import pytest
from PIL import Image

from glora_jax.reports import run_pictures


@pytest.fixture
def figures(monkeypatch):
  """The figures that were drawn, beside their files."""
  drawn, save = [], run_pictures.save
  monkeypatch.setattr(
    run_pictures,
    'save',
    lambda figure, path, **options: (drawn.append(figure), save(figure, path, **options)),
  )
  return drawn


def texts(axis):
  return [text.get_text() for text in axis.texts]


def matrix_of(number, errors, rng=np.random.default_rng(0)):
  matrix = np.diag(rng.integers(5, 90, number))
  for _ in range(errors):
    matrix[tuple(rng.permutation(number)[:2])] += rng.integers(1, 9)
  return matrix


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('number', [2, 10, 40])
def test_a_confusion_matrix_shows_every_count_and_the_share_that_was_found(
  tmp_path, figures, number
):
  matrix = matrix_of(number, 2 * number)
  matrix[1] = 0  # a class without test images
  names = [f'class $_{n} of a rather long name^{{' for n in range(number)]
  run_pictures.draw_confusion(str(tmp_path / 'confusion.png'), names, matrix)
  (axis,) = figures[0].axes
  assert sorted(map(int, texts(axis))) == sorted(matrix[matrix > 0].tolist())
  labels = [label.get_text() for label in axis.get_yticklabels()]
  assert [label.split()[-1] for label in labels[:2]] == [
    f'{100 * matrix[0, 0] / matrix[0].sum():.0f}%',
    'none',
  ]
  assert all(label.startswith('class $_') for label in labels)
  with Image.open(tmp_path / 'confusion.png') as picture:
    assert max(picture.size) < 2600


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('errors', [0, 1, 300])
def test_of_many_classes_the_most_confused_pairs_are_shown(tmp_path, figures, errors):
  matrix = matrix_of(150, errors)
  run_pictures.draw_confusion(
    str(tmp_path / 'confusion.png'), [f'class {n}' for n in range(150)], matrix
  )
  pairs = run_pictures.confused_pairs(matrix)
  (axis,) = figures[0].axes
  assert texts(axis) == [
    f' {count} of {matrix[true].sum()}' for true, _, count in pairs[: run_pictures.PAIRS]
  ]
  assert [bar.get_width() for bar in axis.patches] == [
    count for *_, count in pairs[: run_pictures.PAIRS]
  ]
  assert ('No two' in axis.get_title(loc='left')) == (not errors)


def test_pairs_are_ordered_by_how_often_they_were_confused():
  matrix = np.array([[50, 2, 0], [7, 40, 2], [0, 0, 30]])
  assert run_pictures.confused_pairs(matrix) == [(1, 0, 7), (0, 1, 2), (1, 2, 2)]


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('number, size', [(1, 8), (7, 224), (12, 28)])
def test_errors_stand_below_their_classes(tmp_path, figures, number, size):
  images = np.random.default_rng(0).integers(0, 256, (number, size, size, 3), np.uint8)
  run_pictures.draw_errors(
    str(tmp_path / 'errors.png'),
    images,
    ['Abyssinian, $5'] * number,
    ['a_b'] * number,
    np.linspace(1, 0.5, number),
  )
  shown = [axis for axis in figures[0].axes if axis.images]
  assert len(shown) == number
  for axis, image, probability in zip(shown, images, np.linspace(1, 0.5, number), strict=True):
    np.testing.assert_array_equal(axis.images[0].get_array(), image)
    assert axis.get_title() == f'Abyssinian, $5\n→ a_b ({100 * probability:.1f}%)'


def test_training_shows_loss_and_accuracy_of_every_stage_and_validation_where_it_was_measured(
  tmp_path, figures
):
  lines = [
    {
      'stage': stage,
      'step': 10 * n,
      'epoch': n,
      'loss': 2 / n,
      'accuracy': n / 10,
      **({'val_accuracy': n / 20, 'val_loss': 3 / n} if stage == 'finetune_choice' else {}),
    }
    for stage in ('supernet', 'baselines/linear', 'finetune_choice')
    for n in (1, 2, 3)
  ]
  (tmp_path / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  run_pictures.draw_training(str(tmp_path / 'training.png'), str(tmp_path / 'metrics.jsonl'))
  loss, accuracy = figures[0].axes
  assert [line.get_label() for line in loss.lines] == [
    'supernet',
    'linear probe',
    'winner, to choose the epochs',
    'its validation images',
  ]
  np.testing.assert_allclose(
    [line.get_ydata() for line in loss.lines], [[2, 1, 2 / 3]] * 3 + [[3, 1.5, 1]]
  )
  np.testing.assert_allclose(
    [line.get_ydata() for line in accuracy.lines], [[10, 20, 30]] * 3 + [[5, 10, 15]]
  )
