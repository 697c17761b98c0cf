"""The sentence on a run: the winner is told apart from other rows where the images allow it."""

import pytest
from pages import row
from scipy import stats

from glora_jax.reports import verdict


def result(winner, linear, other, paired):
  """A run on 800 test images with a row beside the winner."""
  kept = {verdict.PAIRED: paired}
  return {
    'linear': row(0, linear, **kept),
    'winner': row(9, winner),
    'winner_supernet': None,
    'presets': {'lora': row(9, other, **kept)},
    'structure': 'gradient',
    'data': {'images': {'test': 800}},
  }


@pytest.mark.parametrize('winner_only, row_only, is_doubtful', [(24, 0, False), (84, 60, True)])
def test_answers_to_the_same_images_decide_for_every_row(winner_only, row_only, is_doubtful):
  paired = {'winner_only': winner_only, 'row_only': row_only}
  told = verdict.tell_verdict(result(0.955, 0.925, 0.925, paired))
  for name in ('3.0 points more than the linear probe', 'than lora, the best row beside it'):
    _, _, rest = told.partition(name)
    doubt = " (too little for these images to tell apart: McNemar's exact test"
    assert rest.startswith(doubt) == is_doubtful


def test_equal_accuracies_are_told_without_a_doubt():
  told = verdict.tell_verdict(result(0.9, 0.9, 0.9, {'winner_only': 2, 'row_only': 2}))
  assert told.endswith(
    'as accurate as the linear probe and as accurate as lora, the best row beside it.'
  )


@pytest.mark.parametrize('counts', [(0, 0), (0, 5), (7, 7), (12, 3), (40, 64)])
def test_mcnemars_exact_test_is_the_binomial_one(counts):
  expected = stats.binomtest(counts[0], sum(counts)).pvalue if sum(counts) else 1
  assert verdict.mcnemar(*counts) == pytest.approx(expected)
