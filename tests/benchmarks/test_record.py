"""The record: what counts as the same, what as close, and what is listed."""

import json
import math

import numpy as np
import pytest
from places import ROOT

from benchmarks.record import comparing, training

FOLDER = ROOT / 'tests' / 'golden' / 'record'


def verdicts(recorded, found):
  return {held.path: held.verdict for held in comparing.compare(recorded, found)}


@pytest.mark.parametrize(
  'recorded, found, verdict',
  [
    ([10**6, 5], [10**6 + 1, 5], 'differs'),  # whole numbers are counts
    (['1.0'], ['1.000001'], 'differs'),
    ([1.0, 1e-9], [1.0, 5e-6], 'close'),  # against the largest of the list
    ([1.0, 1e-9], [1.0, 5e-5], 'differs'),
    ([1.0, 2.0], [1.0], 'differs'),
    (1.0, math.nan, 'differs'),
    ('lora', 2.0, 'differs'),
    (None, None, 'same'),
  ],
)
def test_what_is_close_is_told_from_what_differs(recorded, found, verdict):
  assert verdicts({'value': recorded}, {'value': found}) == {'value': verdict}


def test_a_digest_tells_arrays_apart_that_have_the_same_numbers_in_another_order():
  values = np.random.default_rng(0).normal(size=10)
  digests = [comparing.digest({'a': order}) for order in (values, values[::-1])]
  assert digests[0][:2] == pytest.approx(digests[1][:2])  # norm and sum
  assert digests[0] != pytest.approx(digests[1], rel=1e-2)
  assert comparing.digest({'a': values[:4], 'b': values[4:]}) == digests[0]


@pytest.mark.parametrize('mode', training.MODES)
def test_a_search_ends_in_the_archive_that_is_recorded(mode, monkeypatch):
  monkeypatch.syspath_prepend(ROOT / 'tests' / 'search')
  recorded = json.loads((FOLDER / 'training.json').read_text())
  assert comparing.plain(training.search(mode)) == recorded[f'search/{mode}']
