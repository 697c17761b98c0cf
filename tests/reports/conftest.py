"""What tests of reports share: results of suites made by hand, and a look at what was drawn."""

import pytest

from glora_jax.data.catalog import expand
from glora_jax.reports import drawing
from glora_jax.reports.scoreboard import Board


def result(task, accuracy, protocol, others):
  """What a run leaves, with the accuracy in percent for the winner, less for the rest."""

  def subnet(less):
    accuracies = {'test_accuracy': (accuracy - less) / 100}
    if others:
      accuracies['other_test_accuracies'] = {name: value / 100 for name, value in others.items()}
    return {
      'params': 250_000,
      'val_accuracy': None if protocol == 'paper' else 0.5,
      **accuracies,
    }

  return {
    'task': task,
    'protocol': protocol,
    'seed': 42,
    'budget': 300_000,
    'normalization': 'inception',
    'weights': 'in21k-B/16',
    'linear': subnet(10),
    'winner_supernet': subnet(5),
    'winner': subnet(0),
    'presets': {'lora': subnet(2)},
    'data': {'origin': f'TFDS {task}', 'notes': ['A note.']},
  }


@pytest.fixture
def make_board():
  """A function from the winners' accuracies by task to a suite that has them."""

  def make(accuracies, suite='vtab/all', protocol='honest', others=None):
    results = {
      task: result(task, accuracy, protocol, others) for task, accuracy in accuracies.items()
    }
    return Board(suite, expand(suite), results)

  return make


@pytest.fixture
def figures(monkeypatch):
  """The figures that were saved, beside their files."""
  saved = []
  savefig = drawing.Figure.savefig

  def remember(figure, *arguments, **options):
    saved.append(figure)
    savefig(figure, *arguments, **options)

  monkeypatch.setattr(drawing.Figure, 'savefig', remember)
  return saved
