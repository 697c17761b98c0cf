"""Whole runs in this process: stages, files, protocols, reports, wrong inputs."""

import collections
import contextlib
import csv
import dataclasses
import json
import os
import shlex
import shutil
import sys
import types
from typing import Any

import html_pages
import jax
import numpy as np
import pytest
import sklearn.metrics
from label_lists import write_images
from PIL import Image
from tiny_runs import changed, context_of, stages_of, without_seconds

import glora_jax
from glora_jax import main, predict
from glora_jax.files import read_json
from glora_jax.vision.data import image, normalization, pipeline
from glora_jax.vision.data.catalog import find
from glora_jax.vision.files import read_lines
from glora_jax.vision.metrics import calibration_error
from glora_jax.vision.models import weights
from glora_jax.vision.reports import report, table
from glora_jax.vision.runs import evaluation, experiment
from glora_jax.vision.runs.config import check_config
from glora_jax.vision.runs.context import never
from glora_jax.vision.runs.settings import ReportSettings, RunSettings
from glora_jax.vision.runs.stage import read_mark, walk
from glora_jax.vision.runs.stages.results import choose_result
from glora_jax.vision.runs.stages.training import tell_guessing
from glora_jax.vision.runs.workdir import Stopped


def test_a_run_leaves_everything_in_the_workdir(finished_run):
  workdir, result = finished_run
  folders = ['supernet', 'training', 'search', 'finetune', 'folded']
  files = ['images.csv', 'config.json', 'weights.json', 'glora_jax.lock', 'metrics.jsonl']
  files += ['provenance.json', 'adapter.safetensors', 'genome.json', 'test_list.json', 'table.csv']
  files += ['predictions.csv', 'result.json', 'report.html']
  assert set(os.listdir(workdir)) == {*folders, *files}
  # Not with what it was made: the same run in another folder writes the same file.
  written = {name: value for name, value in result.items() if name != 'provenance'}
  assert read_json(workdir / 'result.json') == written
  # It is the structure that was asked for, though a baseline may be better.
  given = {'task': 'digits', 'protocol': 'honest', 'seed': 42, 'budget': 1000, 'result': 'search'}
  assert given.items() <= result.items()
  assert list(result['seconds']) == ['supernet', 'training', 'search', 'finetune', 'list', 'test']
  structures = result['structures']
  assert list(structures) == ['linear', 'lora', 'supernet', 'search']
  chosen, other = structures['search'], structures['supernet']
  more, gained = other['against_result'], chosen['test_accuracy'] - other['test_accuracy']
  assert (more['result_only'] - more['other_only']) / 797 == pytest.approx(gained)
  assert 0 < chosen['params'] <= 1000
  described = read_json(workdir / 'genome.json')
  assert [described[name] for name in ('genome', 'params')] == [chosen['genome'], chosen['params']]


def test_a_structure_that_answers_like_one_that_guesses_has_a_sentence(finished_run):
  workdir, result = finished_run
  labels = np.asarray(find('digits').open('val').labels)
  for found in result['structures'].values():
    told = tell_guessing(RunSettings(), found['val_accuracy'], labels, 'validation')
    assert found.get('learned_nothing', '') == told
  assert any('learned_nothing' in found for found in result['structures'].values())
  assert 'guessing gets' in html_pages.read(workdir).all('header')[0].text


@pytest.mark.parametrize('metric', ['accuracy', 'balanced'])
def test_of_several_structures_the_best_on_validation_images_is_the_result_the_smaller_of_equals(
  metric,
):
  settings = RunSettings(report=ReportSettings(('lora', 'search', 'linear'), metric))
  shares = {'lora': (0.8, 90), 'search': (0.8, 10), 'linear': (0.7, 0), 'supernet': (0.9, 10)}
  by = settings.report.chooses_by
  rows = {name: {by: share, 'params': params} for name, (share, params) in shares.items()}
  assert choose_result(settings, rows) == 'search'


def test_the_report_can_be_of_another_structure(finished_run, run_config, tmp_path):
  """What is trained stays the same; once the test images were read, the choice does, too."""
  workdir = tmp_path / 'run'
  shutil.copytree(finished_run[0], workdir)
  for name in ('result.json', 'test_list.json'):
    os.remove(workdir / name)
  config = changed(run_config, report__result=('lora',))
  result = experiment.run(config, str(workdir))
  assert result['result'] == 'lora'
  assert result['structures']['lora']['genome'] == read_json(workdir / 'genome.json')['genome']
  os.remove(workdir / 'result.json')
  with pytest.raises(ValueError, match=r'result was .* and is now '):
    experiment.run(changed(run_config, report__result=('search',)), str(workdir))
  with pytest.raises(
    ValueError, match='is not trained in this run; give one of linear, lora, supernet'
  ):
    experiment.run(changed(run_config, report__result=('ssf',)), str(tmp_path / 'other'))


def test_accuracy_on_validation_images_is_measured_on_the_way_and_the_best_is_kept(
  run_config, tmp_path, monkeypatch
):
  """Stopped amid it, the same; the last epoch's weights are others, of the same training.

  A function of the user's gets every line once.
  """
  received = collections.defaultdict(list)
  function = types.SimpleNamespace(log=lambda workdir, line: received[workdir].append(line))
  monkeypatch.setitem(sys.modules, 'of_user', function)
  config = changed(run_config, presets=(), structure='lora', budget=None, training__epochs=4)
  config.watch.call = 'of_user:log'
  config.training.update(learning_rate=5e-3, final_learning_rate=10.0)  # the end spoils it
  found = []
  for keep, stop in (('best', never), ('last', never), ('best', polls(4))):
    workdir = tmp_path / str(len(found))
    context = context_of(changed(config, training__keep=keep), workdir)
    stages = experiment.stages_of(context.settings)
    with contextlib.nullcontext() if stop is never else pytest.raises(Stopped):
      walk(dataclasses.replace(context, stop=stop), stages, until='training/lora')
    candidate = walk(context, stages, until='training/lora')
    lines = read_lines(workdir / 'metrics.jsonl', 'metrics', dict[str, Any])
    assert received[str(workdir)] == lines
    curve = [x for x in lines if x['stage'] == 'training/lora' and 'val_accuracy' in x]
    found.append((candidate, curve, evaluation.measure(context, candidate, 'val')))
  (best, curve, accuracy), (last, other, at_end), (again, *_) = found
  assert curve == other
  assert [line['epoch'] for line in curve] == [1, 2, 3, 4]
  chosen = max(curve, key=lambda line: (line['val_accuracy'], -line['val_loss']))
  assert best.best_epoch == last.best_epoch == chosen['epoch'] < 4
  for measured, line in ((accuracy, chosen), (at_end, curve[-1])):
    assert measured == {name: line[name] for name in measured}
  jax.tree.map(np.testing.assert_array_equal, best.variables, again.variables)


def rows_of(path):
  """The rows of a CSV file."""
  with open(path, newline='') as file:
    return [*csv.DictReader(file)]


def test_the_folded_file_alone_reproduces_the_test_accuracy(finished_run):
  workdir, result = finished_run
  model, params, metadata = weights.load(workdir / 'folded' / 'model.safetensors')
  images, labels = pipeline.load(find('digits').open('test'), metadata['image_size'])
  inputs = normalization.normalize(images, metadata['normalization'])
  answers = np.asarray(jax.jit(model.apply)({'params': params}, inputs).argmax(-1))
  accuracy = result['structures'][result['result']]['test_accuracy']
  assert np.mean(answers == labels) == pytest.approx(accuracy, abs=1e-9)
  predicted = rows_of(workdir / 'predictions.csv')
  names = [row['image'] for row in rows_of(workdir / 'images.csv') if row['split'] == 'test']
  for row, *expected in zip(predicted, names, labels, answers, strict=True):
    assert [row['file'], row['label'], row['answer']] == [*map(str, expected)]
    assert sum(float(row[str(name)]) for name in range(10)) == pytest.approx(1, abs=1e-5)
  wrong = f'{(answers != labels).sum()} of 797 test images are misclassified'
  assert wrong in html_pages.read(workdir).text
  assert result['fold_max_abs_diff'] < 1e-4
  assert metadata['classes'] == list('0123456789')


def test_the_metrics_of_a_run_follow_from_its_predictions(finished_run):
  workdir, result = finished_run
  predicted = rows_of(workdir / 'predictions.csv')
  labels, answers = ([row[name] for row in predicted] for name in ('label', 'answer'))
  expected = sklearn.metrics.recall_score(labels, answers, labels=[*'0123456789'], average=None)
  rows = [row for row in rows_of(workdir / 'table.csv') if row['structure'] == result['result']]
  found = [float(row['recall']) for row in rows if row['class_name']]
  np.testing.assert_allclose(found, expected)
  [whole] = [row for row in rows if row['split'] == 'test' and not row['class_name']]
  assert float(whole['balanced_accuracy']) == pytest.approx(np.mean(expected))
  assert whole['images'] == '797'
  shares = np.array([max(float(row[name]) for name in '0123456789') for row in predicted])
  is_right = np.array(labels) == answers
  assert result['calibration_error'] == pytest.approx(calibration_error(shares, is_right))


def test_the_test_list_was_frozen_before_any_test_accuracy_existed(finished_run):
  workdir, result = finished_run
  frozen = read_json(workdir / 'test_list.json')
  assert frozen['result'] == result['result']
  assert frozen['structures'].keys() == result['structures'].keys()
  assert not any('test_accuracy' in row for row in frozen['structures'].values())
  assert frozen['structures']['search']['genome'] == result['structures']['search']['genome']


def test_a_finished_run_is_not_run_again_and_the_command_prints_its_table(finished_run, run_config):
  workdir, result = finished_run
  before = {path: os.path.getmtime(path) for path in workdir.iterdir()}
  assert experiment.run(run_config, str(workdir)) == result
  printed, code = main.run(check_config(run_config), str(workdir), never)
  assert {path: os.path.getmtime(path) for path in workdir.iterdir()} == before
  assert code == 0
  assert 'searched, finetuned' in printed
  assert f'{100 * result["structures"]["search"]["test_accuracy"]:.1f}' in printed
  assert f'{workdir}/report.html' in printed
  assert 'Missing' not in printed
  gone = report.summary_of_run(result, str(workdir / 'folded')).splitlines()[-1]
  assert gone.startswith('Missing from this finished run: ')
  assert 'folded/model.safetensors' in gone


def snippets(workdir, beginning):
  """The snippets of a page that begin with a text."""
  codes = [code.text for code in html_pages.read(workdir).all('code')]
  return [code for code in codes if code.startswith(beginning)]


def polls(number):
  """A `stop` that says True when it is asked for the number-th time."""
  asked = iter(range(1, number + 1))
  return lambda: next(asked) == number


def test_for_a_given_structure_no_image_counts_as_a_validation_image(run_config, tmp_path):
  """Trained on train and val, it does not depend on where one ends and the other begins."""
  names = [f'{number % 3}/{number}.png' for number in range(100)]
  write_images(tmp_path, names)
  left = []
  for border in (40, 60):
    splits = border * ['train'] + (80 - border) * ['val'] + 20 * ['test']
    lines = [f'{name},{name[0]},{split}' for name, split in zip(names, splits, strict=True)]
    labels, workdir = tmp_path / f'{border}.csv', tmp_path / f'run-{border}'
    labels.write_text('\n'.join(['path,label,split', *lines]))
    config = changed(run_config, task=f'csv:{labels}', structure='lora', train_on='train+val')
    config.update(presets=(), budget=9000)
    config.training.update(epochs=1, warmup=0.0)
    result = experiment.run(config, str(workdir))
    assert {row['val_accuracy'] for row in result['structures'].values()} == {None}
    metrics = (workdir / 'metrics.jsonl').read_bytes()
    assert b'val_accuracy"' not in metrics
    frozen = (workdir / 'test_list.json').read_bytes()
    left.append((metrics, frozen, without_seconds(result['structures'])))
  assert left[0] == left[1]


@pytest.mark.slow
def test_after_the_choice_validation_images_are_only_trained_on(run_config, tmp_path, monkeypatch):
  """The searched structure is chosen on them before."""
  config = changed(run_config, presets=(), train_on='train+val', finetune__epochs=2)
  config.training.batch_size = 80
  score = evaluation.score

  def score_no_more(context, variables, genomes, split):
    mark = read_mark(str(tmp_path / 'search'))
    assert split != 'val' or not (mark and mark['complete'])
    return score(context, variables, genomes, split)

  monkeypatch.setattr(evaluation, 'score', score_no_more)
  tested = walk(context_of(config, tmp_path), stages_of(config), until='test')
  assert tested.result == 'search'
  assert list(tested.rows) == ['linear', 'search']  # the supernet has seen fewer images
  assert {row['val_accuracy'] for row in tested.rows.values()} == {None}
  lines = read_lines(tmp_path / 'metrics.jsonl', 'metrics', dict[str, Any])
  tuned = [line for line in lines if line['stage'] == 'finetune']
  assert tuned[-1]['step'] == 2 * (1000 // config.training.batch_size)


@pytest.fixture(scope='module')
def short(run_config):
  """The config of a run without baselines, over in one epoch."""
  config = changed(run_config, structure='linear', presets=None)
  config.training.update(epochs=1, warmup=0.0)
  return config


def test_the_seconds_of_a_training_are_written_whenever_its_state_is_saved(short, tmp_path):
  """A process that is killed writes nothing more."""
  left = []

  def stop():
    left.append(read_mark(str(tmp_path / 'training' / 'linear')))
    return False

  experiment.run(changed(short, training__epochs=3, test=False), str(tmp_path), stop)
  seconds = [mark['seconds'] for mark in left if mark is not None and not mark['complete']]
  assert 0 == seconds[0] < seconds[-1]


def test_a_run_without_a_test_measures_no_test_image_and_can_be_tested_later(
  short, tmp_path, monkeypatch
):
  config, split_of = changed(short, test=False), pipeline.Images.split

  def split_before_a_test(images, name):
    assert name != 'test'
    return split_of(images, name)

  with monkeypatch.context() as patched:
    patched.setattr(pipeline.Images, 'split', split_before_a_test)
    result = experiment.run(config, str(tmp_path))
  assert not {'test_list.json', 'folded', 'genome.json'} & set(os.listdir(tmp_path))
  assert experiment.run(config, str(tmp_path)) == result
  tested = experiment.run(short, str(tmp_path))
  row, tested_row = result['structures']['linear'], tested['structures']['linear']
  for name in ('test_accuracy', 'test_balanced_accuracy'):
    assert 0 < tested_row.pop(name) < 1
  assert tested_row == row
  with pytest.raises(ValueError, match='test was True and is now False'):
    experiment.run(config, str(tmp_path))


def test_a_suite_freezes_what_a_run_tests_before_the_run_tests_it(short, tmp_path, monkeypatch):
  """Then any version tests what was trained, and nothing else."""
  workdir = tmp_path / 'run'
  listed = experiment.train(check_config(short), str(workdir))
  assert not {'test_list.json', 'result.json'} & set(os.listdir(workdir))
  row = {**listed['structures']['linear'], 'weights': 'others'}
  shutil.copytree(workdir, tmp_path / 'other')
  with pytest.raises(ValueError, match='was frozen with other structures than this run has now'):
    experiment.run(short, str(tmp_path / 'other'), listed={**listed, 'structures': {'linear': row}})
  assert not (tmp_path / 'other' / 'result.json').exists()
  monkeypatch.setattr(glora_jax, '__version__', 'later')
  monkeypatch.setattr(evaluation, 'score', lambda *_: pytest.fail('was measured for the list'))
  result = experiment.run(short, str(workdir), listed=listed)
  assert not (workdir / 'replaced').exists()
  assert read_json(workdir / 'test_list.json', 'test list').items() >= listed.items()
  found = result['structures']['linear']
  assert found['val_accuracy'] == row['val_accuracy']
  seconds = [result['seconds'][name] for name in ('structure', 'training')]
  assert found['seconds'] == pytest.approx(sum(seconds))


def test_the_whole_base_is_trained_and_folds_to_what_was_tested(short, backbone, tmp_path):
  config = changed(short, structure='finetuning', budget=None)
  result = experiment.run(config, str(tmp_path))
  _, before, _ = weights.load(backbone)
  _, after, _ = weights.load(tmp_path / 'folded')
  del before['head'], after['head']  # a new one
  changes = jax.tree.map(lambda old, new: np.abs(new - old).max(), before, after)
  assert min(jax.tree.leaves(changes)) > 0
  params = sum(x.size for x in jax.tree.leaves(before))
  assert result['structures']['finetuning']['params'] == params
  assert result['fold_max_abs_diff'] == 0
  assert not {'adapter.safetensors', 'genome.json'} & set(os.listdir(tmp_path))
  assert 'Missing' not in report.summary_of_run(result, str(tmp_path))
  with pytest.raises(ValueError, match=r"'finetuning' has [\d,]+ parameters, more than budget=9"):
    experiment.run(changed(config, budget=9), str(tmp_path / 'other'))


@pytest.mark.slow
def test_the_papers_protocol_says_so_wherever_its_numbers_appear(run_config, tmp_path):
  """At a budget of nothing, so with the linear structure."""
  config = changed(run_config, presets=(), protocol='paper', budget=0)
  result = experiment.run(config, str(tmp_path))
  assert (result['protocol'], result['result']) == ('paper', 'search')
  structures = result['structures']
  assert list(structures) == ['linear', 'search']
  assert all(structure['val_accuracy'] is None for structure in structures.values())
  assert not (tmp_path / 'finetune').exists()
  assert not result['finetuned']
  assert table.PAPER_LABEL in html_pages.read(tmp_path).text
  assert table.PAPER_LABEL in report.summary_of_run(result, str(tmp_path))
  assert not np.any(structures['search']['genome'])


def test_command_and_code_in_the_report_answer_as_the_adapted_model_does(
  finished_run, run_config, tmp_path, monkeypatch, capsys
):
  workdir, _ = finished_run
  monkeypatch.chdir(tmp_path)
  noise = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)
  Image.fromarray(noise).save('photo.jpg')
  [command] = snippets(workdir, 'python -m glora_jax.predict ')
  predict.main([*shlex.split(command)[3:], '--json'])
  printed = json.loads(capsys.readouterr().out)
  found = {row['class']: row['probability'] for row in printed['classes']}
  [code] = snippets(workdir, 'import jax.numpy')
  loaded = {}
  exec(code, loaded)
  pixels = image.resize(image.decode('photo.jpg'), 8)[None]
  inputs = normalization.normalize(pixels, loaded['metadata']['normalization'])
  logits = jax.jit(loaded['adapted'].apply)(loaded['variables'], inputs)
  expected = jax.nn.softmax(logits)[0]
  np.testing.assert_allclose([found[name] for name in '0123456789'], expected, atol=1e-5)
  [code] = snippets(workdir, 'from glora_jax.vision.models.classifier')
  names = {}
  exec(code, names)
  np.testing.assert_allclose(names['outcome'], expected, atol=1e-5)
