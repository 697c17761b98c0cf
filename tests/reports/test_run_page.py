"""What the page of a run tells of errors, further test sets, and names that Markdown would read.

Pages of whole runs are in tests/runs.
"""

import dataclasses

import numpy as np
import pages
import pytest

from glora_jax.reports import errors, run_page
from glora_jax.reports.errors import Outcome


def outcome(labels, classes, probabilities):
  def pixels(indices):
    return np.zeros((len(indices), 8, 8, 3), np.uint8)

  return Outcome(np.array(labels), np.array(classes), np.array(probabilities), pixels)


def test_the_surest_errors_are_the_wrong_answers_of_the_highest_probabilities():
  found = outcome([0, 1, 2, 0, 1], [0, 2, 0, 1, 1], [0.99, 0.5, 0.7, 0.7, 0.9])
  assert found.surest_errors(2).tolist() == [2, 3]
  assert found.confusion(3).tolist() == [[1, 1, 0], [0, 1, 1], [1, 0, 0]]
  often = np.array([[50, 2, 0], [7, 40, 2], [0, 0, 30]])
  assert errors.confused_pairs(often) == [(1, 0), (0, 1), (1, 2)]


def test_errors_are_told_in_names_and_those_of_many_classes_in_pairs_without_a_matrix():
  found = outcome([0, 0, 0, 1, 2], [1, 1, 0, 1, 0], [0.9, 0.6, 0.9, 0.9, 0.8])
  told = errors.facts(['a_b', 'dog', 'x|y'], found)
  assert r'Most often: a\_b taken for dog (2); x\|y taken for a\_b (1).' in told['told']
  assert [image['probability'] for image in told['images']] == ['90.0%', '80.0%', '60.0%']
  assert [bar.label for bar in told['pairs']] == ['a_b, taken for dog', 'x|y, taken for a_b']
  assert told['rows']
  assert not errors.facts([f'class {n}' for n in range(41)], found)['rows']


def test_the_table_has_a_column_for_every_further_test_set(allocation):
  result = pages.make_findings(allocation).result
  further = pages.row(1234, 0.5, other_test_accuracies={'v2': 0.25, 'sketch': 0.125})
  result |= {'linear': {**further, 'val_accuracy': None}, 'winner_supernet': further}
  result |= {'winner': further, 'presets': {}}
  lines = run_page.table(result).splitlines()
  assert lines[0].endswith('| test accuracy | on v2 | on sketch |')
  assert lines[2] == '| linear probe | 1,234 | trained on | 50.0 | 25.0 | 12.5 |'


@pytest.mark.parametrize('structure', ['gradient', 'lora:2', 'runs/x/genome.json'])
def test_no_more_is_said_of_a_structure_than_is_known(allocation, structure):
  findings = dataclasses.replace(pages.make_findings(allocation), archive=None)
  findings.result['structure'] = structure
  text = run_page.tell_protocol(findings)
  is_known = structure != 'runs/x/genome.json'
  assert ('no validation image had a part in' in text) == is_known
  assert ('Structure and weights come from the' in text) == (structure == 'gradient')
  assert ('does not say what it was chosen by' in text) != is_known


def test_the_adapters_base_is_fetched_with_its_checksum(allocation):
  findings = pages.make_findings(allocation)
  findings.result['weights'] = 'https://example.org/vit.npz'
  backbone = {'sha256': 64 * 'a', 'image_size': 8}
  code = run_page.adapter_code('run', dataclasses.replace(findings, backbone=backbone))
  assert f"fetch.fetch('https://example.org/vit.npz', sha256='{64 * 'a'}')" in code
  assert 'weights.refit(*loaded, num_classes=3, image_size=8)' in code
  assert "# normalized as 'unit'" in code
