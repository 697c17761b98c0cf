"""What tests of reports share: results made by hand."""

import numpy as np
import pages
import pytest

from glora_jax.method.space import Layer, SearchSpace, Spec
from glora_jax.search.allocation import Allocation
from glora_jax.search.choice import Curve
from glora_jax.search.unit_scores import UnitScores
from glora_jax.vision.data.catalog import expand
from glora_jax.vision.reports.table import Board, Cell, read_published


def result(task, accuracy, protocol):
  """What a run leaves, with the accuracy in percent for the result, less for the others."""
  labels = {
    'linear': ('linear probe', 10),
    'lora': ('lora:2', 2),
    'supernet': ('searched, in the supernet', 5),
    'search': ('searched', 0),
  }
  trained = read_published()['trained_on'][task.partition('/')[0]]
  images = {**pages.RESULT['data']['images'], trained: 30}
  data = {**pages.RESULT['data'], 'images': images}
  fields = {'data': data, 'task': task, 'protocol': protocol, 'train_on': trained}
  structures = {
    name: pages.structure(250_000, (accuracy - less) / 100, label=label)
    for name, (label, less) in labels.items()
  }
  return {**pages.RESULT, **fields, 'structures': structures}


@pytest.fixture
def make_board():
  """A function from the results' accuracies by task to a suite that has them."""

  def make(accuracies, suite='vtab/all', protocol='honest'):
    cells = {task.partition('/')[2]: Cell(task) for task in expand(suite)}
    results = {
      task.partition('/')[2]: result(task, share, protocol) for task, share in accuracies.items()
    }
    return Board(suite, cells, results)

  return make


@pytest.fixture
def allocation():
  """Two layers: a vector of A and E, and a LoRA of B of rank 2 in the second."""
  space = SearchSpace.distinct((1, 2))
  spec = Spec((Layer('attn/qkv', 4, 8, space=space), Layer('mlp/fc2', 8, 4, space=space)))
  genome = np.array([[2, 0, 0, 0, 2], [0, 4, 0, 0, 0]], np.int8)
  scores = UnitScores(
    A_vector=np.array([3.0, 0.0]),
    A_lora=np.zeros((2, 2)),
    B_lora=np.array([[0.0, 0.0], [4.0, 1.0]]),
    C_vector=np.zeros(2),
    E_vector=np.array([2.0, 0.0]),
  )
  curve = Curve(np.array([0, 8, 16, 40]), np.array([0.0, 3.0, 5.0, 10.0]), knee=2)
  return Allocation(genome, {}, spec, scores, curve, 40, False)


@pytest.fixture
def findings(allocation):
  """What the page of a run is written from."""
  return pages.make_findings(allocation)


@pytest.fixture
def board(allocation):
  """A grid of five structures."""
  return pages.make_grid(allocation)


@pytest.fixture(params=['run', 'grid', 'suite', 'generalization'])
def any_page(request, tmp_path, findings, board, make_board):
  """The elements of a page of each kind; of a suite one task is done, one failed, one not ready."""
  if request.param == 'run':
    return pages.write_run(tmp_path, findings)
  if request.param == 'grid':
    return pages.write_board(tmp_path, board)
  if request.param == 'generalization':  # the widest table
    shifted = make_board({f'generalization/{seed}': 70.0 for seed in (0, 1)}, 'generalization/all')
    for result in shifted.results.values():
      for found in result['structures'].values():
        found['other_test_accuracies'] = dict.fromkeys(('v2', 'sketch', 'a', 'r'), 0.1)
    return pages.write_board(tmp_path, shifted)
  suite = make_board({'vtab/cifar100': 70.0})
  suite.failed['dtd'] = 'The loss was not finite.'
  suite.missing['kitti'] = f'kitti needs {pages.SCRIPT}.'
  return pages.write_board(tmp_path, suite)
