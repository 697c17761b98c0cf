"""What the report says: of errors and none, of further test sets, of names that Markdown would read. Whole ones are in test_experiment."""

import os

import numpy as np

from glora_jax.reports import run_report


def outcome(labels, classes, probabilities):
  labels, classes = np.array(labels), np.array(classes)
  return run_report.Outcome(
    labels,
    classes,
    np.array(probabilities),
    lambda indices: np.zeros((len(indices), 8, 8, 3), np.uint8),
  )


def test_the_surest_errors_are_the_wrong_answers_of_the_highest_probabilities():
  found = outcome([0, 1, 2, 0, 1], [0, 2, 0, 1, 1], [0.99, 0.5, 0.7, 0.7, 0.9])
  assert found.surest_errors(2).tolist() == [2, 3]
  assert found.confusion(3).tolist() == [[1, 1, 0], [0, 1, 1], [1, 0, 0]]


def test_errors_are_told_in_names(tmp_path):
  text = run_report._errors(
    str(tmp_path),
    ['a_b', 'dog', 'x|y'],
    outcome([0, 0, 0, 1, 2], [1, 1, 0, 1, 0], [0.9, 0.6, 0.9, 0.9, 0.8]),
    '',
  )
  assert (
    r'got 3 of 5 test images wrong. Most often: a\_b taken for dog (2); x\|y taken for a\_b (1).'
    in text
  )
  assert sorted(os.listdir(tmp_path)) == ['confusion.png', 'errors.png']
  assert '(confusion.png)' in text
  assert '(errors.png)' in text


def test_where_there_are_no_errors_the_report_says_so(tmp_path):
  text = run_report._errors(str(tmp_path), ['cat', 'dog'], outcome([0, 1], [0, 1], [0.9, 0.6]), '')
  assert 'The winner got all 2 test images right: there is no error to show.' in text
  assert os.listdir(tmp_path) == ['confusion.png']
  assert 'errors.png' not in text


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
    '| winner, finetuned',
  ]
