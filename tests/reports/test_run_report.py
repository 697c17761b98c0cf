"""What a run's report tells of errors, further test sets, and names that Markdown would read.

Whole reports are in tests/runs.
"""

import dataclasses
import os

import numpy as np
import pages
import pytest

from glora_jax.reports import run_report, snippets
from glora_jax.reports.findings import Outcome


def outcome(labels, classes, probabilities):
  def pixels(indices):
    return np.zeros((len(indices), 8, 8, 3), np.uint8)

  return Outcome(np.array(labels), np.array(classes), np.array(probabilities), pixels)


def test_the_surest_errors_are_the_wrong_answers_of_the_highest_probabilities():
  found = outcome([0, 1, 2, 0, 1], [0, 2, 0, 1, 1], [0.99, 0.5, 0.7, 0.7, 0.9])
  assert found.surest_errors(2).tolist() == [2, 3]
  assert found.confusion(3).tolist() == [[1, 1, 0], [0, 1, 1], [1, 0, 0]]


def test_errors_are_told_in_names(tmp_path):
  classes = ['a_b', 'dog', 'x|y']
  found = outcome([0, 0, 0, 1, 2], [1, 1, 0, 1, 0], [0.9, 0.6, 0.9, 0.9, 0.8])
  assert run_report.count_errors(classes, found) == (
    'The winner got 3 of 5 test images wrong. '
    r'Most often: a\_b taken for dog (2); x\|y taken for a\_b (1).'
  )
  assert 'These are all, as the model saw them' in run_report.tell_shown(found)
  run_report.draw_errors(str(tmp_path), classes, found)
  assert sorted(os.listdir(tmp_path)) == ['confusion.png', 'errors.png']


def test_where_there_are_no_errors_the_report_says_so(tmp_path):
  classes = ['cat', 'dog']
  found = outcome([0, 1], [0, 1], [0.9, 0.6])
  text = run_report.count_errors(classes, found)
  assert text == 'The winner got all 2 test images right: there is no error to show.'
  run_report.draw_errors(str(tmp_path), classes, found)
  assert os.listdir(tmp_path) == ['confusion.png']


def test_of_many_errors_the_surest_are_shown():
  number = run_report.ERRORS + 1
  text = run_report.tell_shown(outcome([0] * number, [1] * number, np.linspace(0.5, 1, number)))
  assert f'These are the {run_report.ERRORS} that the winner was surest of' in text


def test_the_table_has_a_column_for_every_further_test_set():
  row = {
    'params': 1234,
    'val_accuracy': None,
    'test_accuracy': 0.5,
    'other_test_accuracies': {'v2': 0.25, 'sketch': 0.125},
  }
  result = {
    'protocol': 'honest',
    'linear': row,
    'winner_supernet': row,
    'winner': row,
    'presets': {'lora': row},
    'finetuned': False,
  }
  lines = run_report.table(result).splitlines()
  assert lines[0].endswith('| test accuracy | on v2 | on sketch |')
  assert lines[1:3] == [
    '|---|---:|---:|---:|---:|---:|',
    '| linear probe | 1,234 | trained on | 50.0 | 25.0 | 12.5 |',
  ]
  assert [line.split(' | ')[0] for line in lines[2:]] == [
    '| linear probe',
    '| lora',
    '| winner, as searched',
    '| winner, not finetuned',
  ]


def test_the_curve_of_a_head_alone_is_of_images_without_augmentation(allocation):
  findings = pages.make_findings(allocation)
  sentence = 'are of features of the images without augmentation'
  assert sentence in run_report.tell_training(findings)
  without = dataclasses.replace(findings, allocation=None)
  assert sentence not in run_report.tell_training(without)


@pytest.mark.parametrize('structure', ['gradient', 'lora:2', 'runs/x/genome.json'])
def test_no_more_is_said_of_a_structure_than_is_known(allocation, structure):
  findings = dataclasses.replace(pages.make_findings(allocation), archive=None)
  findings.result['structure'] = structure
  text = run_report.tell_protocol(findings)
  is_known = structure != 'runs/x/genome.json'
  assert ('no validation image had a part in' in text) == is_known
  assert ('Structure and weights come from the' in text) == (structure == 'gradient')
  assert ('does not say what it was chosen by' in text) != is_known


def test_the_adapters_base_is_fetched_with_its_checksum(allocation):
  findings = pages.make_findings(allocation)
  findings.result['weights'] = 'https://example.org/vit.npz'
  backbone = {'sha256': 64 * 'a', 'image_size': 8}
  code = snippets.adapter_code('run', dataclasses.replace(findings, backbone=backbone))
  assert f"fetch.fetch('https://example.org/vit.npz', sha256='{64 * 'a'}')" in code
  assert 'weights.refit(*loaded, num_classes=3, image_size=8)' in code
  assert "# normalized as 'unit'" in code
