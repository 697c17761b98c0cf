"""What the page of a run says of its result, of errors, and of further test sets.

Pages of whole runs are in tests/vision/runs.
"""

import numpy as np
import pages
import pytest

from glora_jax.vision.reports import accuracy, errors, making, report


@pytest.mark.parametrize('paired, is_doubtful', [((24, 0), False), ((84, 60), True)])
def test_answers_to_the_same_images_decide_what_is_chance(findings, paired, is_doubtful):
  result = findings.result
  for name in ('linear', 'lora', 'gradient'):
    result['structures'][name] |= pages.structure(0, 0.5, paired)
  assert accuracy.tell_verdict(result).count("(may be chance: McNemar's") == 2 * is_doubtful


def test_the_result_is_compared_with_the_other_that_is_best_on_the_validation_images(findings):
  result = findings.result
  lora, gradient = (result['structures'][name] for name in ('lora', 'gradient'))
  assert lora['test_accuracy'] < gradient['test_accuracy']
  lora['val_accuracy'] = 0.9
  assert '5.0 points more than lora:2' in accuracy.tell_verdict(result)
  lora['val_accuracy'] = gradient['val_accuracy'] = None
  told = accuracy.tell_verdict(result)
  assert 'the linear probe' in told
  assert not any(name in told for name in ('lora:2', "the gradient's structure"))


def test_errors_are_the_surest_images_and_pairs_of_classes_and_of_few_classes_a_matrix():
  labels, answers = np.array([0, 0, 0, 1, 2]), np.array([1, 1, 0, 1, 0])
  shares = np.array([0.8, 0.9, 0.9, 0.9, 0.8])
  found = pages.make_outcome(['a_b', 'dog', 'x|y'], labels, answers, shares)
  told, confusion, _, pairs, _, _, images = errors.blocks_of(found)
  assert told == '3 of 5 test images are misclassified.'
  shown = [(image.probability, image.file) for image in images.images]
  assert shown == [('90.0%', 'a_b/1.jpg'), ('80.0%', 'a_b/0.jpg'), ('80.0%', 'x|y/4.jpg')]
  assert [bar[1:] for bar in pairs.bars] == [(2, '2 of 3'), (1, '1 of 1')]
  counts = [[count for count, _ in cells] for _, cells in confusion.rows]
  assert counts == [[1, 2, 0], [0, 1, 0], [1, 0, 0]]


def test_the_table_has_a_column_for_every_further_test_set(findings):
  result = findings.result
  others = {'v2': 0.25, 'sketch': 0.125}
  further = pages.structure(1234, 0.5, label='a structure', other_test_accuracies=others)
  result['structures'] = {'linear': further, 'search': further}
  lines = report.summary_of_run(result, 'workdir').splitlines()
  assert '| validation | test | v2 | sketch |' in lines[0]
  assert '| a structure | 1,234 | 50.0 | 50.0 | 25.0 | 12.5 |' in lines[2]


def test_the_cost_is_that_of_each_compiled_program_as_far_as_it_is_known(findings):
  lines = str(making.table_of_programs(findings.result)).splitlines()
  assert lines[2:] == [
    '| supernet | training steps | 1 min 1 s | 1.0 | 0.0 | 3,072.0 |',
    '| lora:2 | scoring | 0.2 s | unknown | unknown | unknown |',
  ]


@pytest.mark.parametrize('structure', ['gradient', 'lora:2', 'runs/x/genome.json'])
def test_how_a_structure_of_a_file_was_chosen_is_not_made_up(findings, structure):
  result = findings.result
  text = making.tell_protocol({**result, 'evaluations': None, 'structure': structure})
  assert ('does not record how it was chosen' in text) == structure.endswith('.json')


def test_the_adapters_base_is_fetched_with_its_checksum():
  base = {'sha256': 64 * 'a', 'image_size': 8, 'num_classes': 3}
  result = {**pages.RESULT, 'weights': 'https://example.org/vit.npz', 'base': base}
  code = making.adapter_code('run', result)
  assert f"fetch.fetch('https://example.org/vit.npz', sha256='{64 * 'a'}')" in code
  assert 'weights.refit(*loaded, num_classes=3, image_size=8)' in code
  assert "# normalized as 'unit'" in code
