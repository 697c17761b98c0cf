"""The pictures of a run show the arrays that they were given."""

import json

import numpy as np
import pytest
from matplotlib import colors

from glora_jax.method.space import Layer, SearchSpace, Spec
from glora_jax.reports import drawing, run_pictures
from glora_jax.search.archive import Archive

SPEC = Spec(tuple(Layer(f'layer{n}', 6, 4, space=SearchSpace(ranks=(1, 2))) for n in range(3)))


def archive_of(genomes, correct, generation):
  number = len(genomes)
  return Archive(
    np.array(genomes, np.int8),
    np.array(correct),
    1.0 * np.arange(number, 0, -1),
    np.array(generation),
  )


@pytest.mark.parametrize('theme', drawing.PALETTES)
def test_the_structure_shows_every_form_and_the_parameters_of_every_layer(tmp_path, figures, theme):
  genome = np.array([[0, 1, 2, 1, 2], [3, 4, 1, 0, 0], [0, 0, 3, 0, 1]], np.int8)
  with drawing.theme(theme) as palette:
    run_pictures.draw_structure(str(tmp_path / 'structure.png'), SPEC, genome)
  bars, grid = figures[0].axes
  costs = [1 + 1 * 7 + 1 + 4, 1 * 10 + 2 * 10 + 6, 2 * 7 + 1]
  assert [bar.get_height() for bar in bars.patches] == costs
  assert f'{sum(costs)} trained' in bars.get_title(loc='left')
  (image,) = grid.images
  rank1 = drawing.blend(palette.purple, palette.paper, 0.3)
  none, constant, vector, rank2 = palette.blank, palette.yellow, palette.teal, palette.purple
  shown = [[colors.to_hex(image.cmap(int(cell))) for cell in row] for row in image.get_array()]
  assert shown == [
    [none, rank1, none],
    [constant, rank2, none],
    [rank1, vector, rank2],
    [constant, none, none],
    [vector, none, constant],
  ]
  legend = [text.get_text() for text in figures[0].legends[0].get_texts()]
  assert legend == ['none', 'constant', 'vector', 'LoRA, its rank']
  assert [text.get_text() for text in grid.texts] == ['1', '1', '2', '2']


def test_the_search_shows_mean_and_best(tmp_path, figures):
  archive = archive_of(np.zeros((4, 3, 5)), [5, 7, 6, 9], [0, 0, 1, 1])
  run_pictures.draw_search(str(tmp_path / 'search.png'), archive, 10, [0.5, 0.7], ' (careful)')
  accuracy, loss, volume = figures[0].axes
  mean, best = accuracy.lines
  np.testing.assert_allclose(mean.get_ydata(), [60, 75])
  np.testing.assert_allclose(best.get_ydata(), [70, 90])
  np.testing.assert_allclose(loss.lines[1].get_ydata(), [0.3, 0.1])
  np.testing.assert_allclose(volume.lines[0].get_ydata(), [0.5, 0.7])
  assert len(accuracy.collections[0].get_offsets()) == 4
  title = accuracy.get_title(loc='left')
  assert title == '4 subnets on 10 images (careful)'


@pytest.mark.parametrize('budget', [None, 30])
def test_the_front_shows_winner_presets_and_budget(tmp_path, figures, budget):
  genomes = np.zeros((3, 3, 5), np.int8)
  genomes[1, :, 0] = 2  # 3 vectors of 4
  genomes[2, :, 0] = 3  # 3 of rank 1
  archive = archive_of(genomes, [5, 9, 8], [0, 0, 0])
  result = {'winner': {'genome': genomes[1].tolist()}, 'budget': budget}
  presets = {'linear': {'params': 0, 'accuracy': 0.4}, 'lora': {'params': 90, 'accuracy': 0.95}}
  run_pictures.draw_pareto(
    str(tmp_path / 'pareto.png'), SPEC, archive, 10, result, presets, ' (careful)'
  )
  (axis,) = figures[0].axes
  points = np.array(axis.collections[0].get_offsets())
  np.testing.assert_allclose(points, [(0, 50), (12, 10), (30, 20)])
  drawn = {line.get_label(): np.array(line.get_xydata()) for line in axis.lines}
  np.testing.assert_allclose(drawn['winner'], [(12, 10)])
  np.testing.assert_allclose(drawn['front of these'], [(0, 50), (12, 10)])
  assert [text.get_text() for text in axis.texts] == ['linear', 'lora']
  assert ('budget' in drawn) == (budget is not None)
  assert axis.get_title(loc='left').endswith('10 images (careful)')


def write_metrics(path, stages):
  """Three measurements of each stage, of validation images where a stage chooses by them."""
  measurements = [
    {
      'stage': stage,
      'step': 10 * n,
      'epoch': n,
      'loss': 2 / n,
      'accuracy': n / 10,
      **({'val_accuracy': n / 20, 'val_loss': 3 / n} if stage == 'finetune_choice' else {}),
    }
    for stage in stages
    for n in (1, 2, 3)
  ]
  path.write_text('\n'.join(map(json.dumps, measurements)))


def test_training_shows_every_stage_and_validation_where_it_was_measured(tmp_path, figures):
  metrics = tmp_path / 'metrics.jsonl'
  write_metrics(metrics, ('supernet', 'baselines/linear', 'finetune_choice'))
  run_pictures.draw_training(str(tmp_path / 'training.png'), str(metrics))
  loss, accuracy = figures[0].axes
  assert [line.get_label() for line in loss.lines] == [
    'supernet',
    'linear probe',
    'winner, to choose the epochs',
    'its validation images',
  ]
  losses = [line.get_ydata() for line in loss.lines]
  np.testing.assert_allclose(losses, [[2, 1, 2 / 3]] * 3 + [[3, 1.5, 1]])
  accuracies = [line.get_ydata() for line in accuracy.lines]
  np.testing.assert_allclose(accuracies, [[10, 20, 30]] * 3 + [[5, 10, 15]])


def test_more_stages_than_colours_still_look_different(tmp_path, figures):
  stages = [f'baselines/{n}' for n in range(len(drawing.LIGHT.series) + 3)]
  write_metrics(tmp_path / 'metrics.jsonl', stages)
  run_pictures.draw_training(str(tmp_path / 'training.png'), str(tmp_path / 'metrics.jsonl'))
  loss, _ = figures[0].axes
  looks = {(line.get_color(), line.get_marker()) for line in loss.lines}
  assert len(looks) == len(loss.lines) == len(stages)
