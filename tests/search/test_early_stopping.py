"""Early stopping: what is selected is what full evaluation selects."""

import jax
import numpy as np
import pytest
from tiny_models import problem, reference_scores

from glora_jax.search import early_stopping

VALID = 21  # of 24 candidates; the others are padding
PARENTS = 4


def test_the_images_that_most_get_wrong_come_first():
  wrong = np.array([[0, 1, 1, 0], [0, 1, 0, 0], [0, 1, 1, 1]], bool)
  assert early_stopping.hardest_first(wrong).tolist() == [1, 2, 3, 0]


@pytest.mark.parametrize(
  'model, chunk, fitness',
  [
    ('mlp', 1, 'accuracy'),
    ('mlp', 1, 'loss'),
    ('mlp', 3, 'accuracy'),
    ('mlp', 3, 'loss'),
    ('vit', 3, 'accuracy'),
  ],
)
def test_stopping_early_selects_the_parents_of_full_evaluation(model, chunk, fitness):
  adapted, *arguments = problem(model, 'up_front', 24)
  correct, loss = (values[:VALID] for values in reference_scores(model, 24))
  valid = np.arange(24) < VALID
  sign = 1 if fitness == 'loss' else -1
  costs = sign * (loss if fitness == 'loss' else correct)
  stop = early_stopping.make_stopping_scorer(adapted, fitness=fitness, chunk=chunk, block=3)
  no_parents = np.full(PARENTS, np.inf)
  good_parents = np.sort(costs)[2 : 2 + PARENTS]
  for parents in (no_parents, good_parents):
    found = stop(*arguments, valid, sign * parents)
    found_correct, found_loss, exact = (np.asarray(values)[:VALID] for values in found)
    np.testing.assert_array_equal(found_correct[exact], correct[exact])
    np.testing.assert_allclose(found_loss[exact], loss[exact], rtol=1e-5)
    assert (found_correct >= correct).all()
    assert (found_loss <= loss + 1e-4).all()
    bar = np.sort(np.concatenate([costs, parents]))[PARENTS - 1]
    assert exact[costs <= bar - 1e-4].all()  # whoever can be a parent was scored to the end
    assert fitness == 'loss' or not exact.all()


@pytest.mark.parametrize('chunk', [1, 2])
def test_no_type_is_promoted_by_itself(chunk):
  adapted, *arguments = problem('mlp', 'up_front', 4)
  stop = early_stopping.make_stopping_scorer(adapted, chunk=chunk)
  with jax.numpy_dtype_promotion('strict'):
    valid, parents = np.ones(4, bool), np.zeros(PARENTS, np.float32)
    assert jax.eval_shape(stop.compiled, *arguments, valid, parents).exact.shape == (4,)
