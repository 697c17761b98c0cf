"""Whole runs, small: stages, files, determinism, resumption, protocols, wrong inputs; in this process and on the command line."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import FIXTURES, ROOT, randomized
from PIL import Image

import glora_jax
from glora_jax import predict
from glora_jax.data import image, normalization, pipeline
from glora_jax.data.catalog import find
from glora_jax.data.examples import Part
from glora_jax.models import weights
from glora_jax.reports import run_report
from glora_jax.runs import experiment
from glora_jax.runs.config import check_config, data_source, default_config
from glora_jax.runs.lifecycle import prepare
from glora_jax.training.checkpoints import TrainingCheckpoints
from glora_jax.training.loop import NonFiniteLossError

FILES = {
  'config.json',
  'lock',
  'metrics.jsonl',
  'seconds.json',
  'supernet',
  'baselines',
  'search',
  'finetune',
  'adapter.safetensors',
  'genome.json',
  'folded',
  'test_list.json',
  'result.json',
  'report.md',
  'structure.png',
  'search.png',
  'pareto.png',
  'training.png',
  'confusion.png',
  'errors.png',
}


@pytest.fixture(scope='session')
def config(backbone, tmp_path_factory):
  config = default_config()
  config.model.weights, config.data.dir = backbone, str(tmp_path_factory.mktemp('tfds'))
  config.budget, config.checkpoint_epochs, config.presets = 1000, 1, ('lora',)
  config.model.remat = (
    'dots_saveable'  # as the quickstart, whose config the command line starts from
  )
  config.supernet.update(epochs=3, warmup_epochs=1, learning_rate=1e-2)
  config.search.update(
    population=8, generations=2, parents=3, mutations=4, crossovers=4, stop_early=True
  )
  config.finetune.update(epochs=2, warmup_epochs=0, learning_rate=1e-3)
  return config


def changed(config, **fields):
  config = config.copy_and_resolve_references()
  for name, value in fields.items():
    config.update_from_flattened_dict({name.replace('__', '.'): value})
  return config


@pytest.fixture(scope='session')
def finished(config, tmp_path_factory):
  workdir = str(tmp_path_factory.mktemp('run') / 'whole')
  return workdir, experiment.run(config, workdir)


def without_times(result):
  return {name: value for name, value in result.items() if name != 'seconds'}


def test_a_run_leaves_everything_in_the_workdir(finished):
  workdir, result = finished
  assert set(os.listdir(workdir)) == FILES
  with open(os.path.join(workdir, 'result.json')) as file:
    assert json.load(file) == result
  assert (result['task'], result['protocol'], result['seed'], result['budget']) == (
    'digits',
    'honest',
    42,
    1000,
  )
  assert set(result['seconds']) == {'supernet', 'baselines', 'search', 'finetune', 'test', 'report'}
  for name in ('linear', 'winner_supernet', 'winner'):
    assert {'params', 'val_accuracy', 'test_accuracy'} <= result[name].keys()
  assert result['linear']['params'] == 0
  assert 0 < result['winner']['params'] <= 1000
  assert result['presets'].keys() == {'lora'}
  assert result['evaluations'] == 24


def test_the_genome_file_is_the_winner(finished):
  workdir, result = finished
  with open(os.path.join(workdir, 'genome.json')) as file:
    described = json.load(file)
  assert described['genome'] == result['winner']['genome']
  assert described['params'] == result['winner']['params']


def test_the_folded_file_alone_reproduces_the_test_accuracy(finished, config):
  workdir, result = finished
  model, params, metadata = weights.load(os.path.join(workdir, 'folded', 'model.safetensors'))
  images, labels = pipeline.load(
    find('digits', data_source(config)).open('test'), metadata['image_size']
  )
  logits = model.apply(
    {'params': params}, normalization.normalize(images, metadata['normalization'])
  )
  assert np.mean(logits.argmax(-1) == labels) == pytest.approx(
    result['winner']['test_accuracy'], abs=1e-9
  )
  assert result['fold_max_abs_diff'] < 1e-4
  assert metadata['classes'] == list('0123456789')


def test_the_test_list_was_frozen_before_any_test_accuracy_existed(finished):
  workdir, result = finished
  with open(os.path.join(workdir, 'test_list.json')) as file:
    frozen = json.load(file)
  assert frozen.keys() == {'linear', 'lora', 'winner_supernet', 'winner'}
  assert not any('test_accuracy' in entry for entry in frozen.values())
  assert frozen['winner']['genome'] == result['winner']['genome']


def test_the_frozen_base_is_untouched_where_no_gene_acts(finished, backbone):
  workdir, _ = finished
  _, params, _ = weights.load(os.path.join(workdir, 'folded', 'model.safetensors'))
  _, base, _ = weights.load(backbone)
  for name in ('cls', 'pos_embed', 'embed', 'norm'):
    jax.tree.map(np.testing.assert_array_equal, params[name], base[name])


def test_the_same_seed_twice_gives_the_same_result(finished, config, tmp_path):
  assert without_times(experiment.run(config, str(tmp_path / 'again'))) == without_times(
    finished[1]
  )


def test_a_finished_run_is_not_run_again(finished, config):
  workdir, result = finished
  before = {name: os.path.getmtime(os.path.join(workdir, name)) for name in FILES}
  assert experiment.run(config, workdir) == result
  assert {name: os.path.getmtime(os.path.join(workdir, name)) for name in FILES} == before


def test_lost_results_are_rebuilt_from_the_stages_that_are_there(finished, config, tmp_path):
  """Without `result.json` every stage finds its own result and trains nothing again."""
  workdir = str(tmp_path / 'copy')
  shutil.copytree(finished[0], workdir)
  os.remove(os.path.join(workdir, 'result.json'))
  with open(os.path.join(workdir, 'metrics.jsonl')) as file:
    metrics = file.read()
  assert without_times(experiment.run(config, workdir)) == without_times(finished[1])
  with open(os.path.join(workdir, 'metrics.jsonl')) as file:
    assert file.read() == metrics


def command(config, workdir, *more):
  """The command line with all of a test config's fields as overrides."""
  flat = {name: value for name, value in config.to_dict().items() if not isinstance(value, dict)}
  nested = {
    f'{group}.{name}': value
    for group, fields in config.to_dict().items()
    if isinstance(fields, dict)
    for name, value in fields.items()
  }
  overrides = [
    f'--config.{name}={value}'
    for name, value in {**flat, **nested}.items()
    if value is not None and name != 'job'
  ]
  return [
    sys.executable,
    '-m',
    'glora_jax.main',
    '--config',
    str(ROOT / 'configs' / 'quickstart.py'),
    '--workdir',
    str(workdir),
    *overrides,
    *more,
  ]


def run_command(arguments, **options):
  environment = {
    **os.environ,
    'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  return subprocess.run(
    arguments, capture_output=True, text=True, env=environment, cwd=ROOT, **options
  )


def test_a_killed_command_resumes_to_the_same_result(finished, config, tmp_path):
  """kill -9 as soon as each stage has begun to write; the last start runs through."""
  workdir = tmp_path / 'killed'
  environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': jax.config.jax_compilation_cache_dir}
  for trace in ('supernet', 'search/archive.npz'):
    process = subprocess.Popen(
      command(config, workdir),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      cwd=ROOT,
      env=environment,
    )
    while not (workdir / trace).exists() and process.poll() is None:
      time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
  last = run_command(command(config, workdir))
  assert last.returncode == 0, last.stderr
  assert 'winner, finetuned' in last.stdout
  with open(workdir / 'result.json') as file:
    assert without_times(json.load(file)) == without_times(finished[1])
  for name in ('adapter.safetensors', 'folded/model.safetensors'):
    with open(workdir / name, 'rb') as ours, open(os.path.join(finished[0], name), 'rb') as whole:
      assert ours.read() == whole.read()


def test_a_workdir_of_another_config_is_refused_with_the_difference(finished, config):
  with pytest.raises(
    ValueError,
    match=r'belongs to another config: seed was 42 and is now 7\. Choose another --workdir',
  ):
    experiment.run(changed(config, seed=7), finished[0])


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'budget': -1}, 'budget=-1 must be a whole number'),
    ({'budget': 0.5}, 'budget=0.5 must be a whole number'),
    ({'task': 'digit'}, "task 'digit' is unknown; the tasks are: digits"),
    ({'protocol': 'fair'}, 'honest, paper'),
    ({'presets': ('lora', 'lorra')}, "'lorra' is unknown"),
    ({'finetune__on': 'test'}, r"finetune.on='test' is unknown; it is one of train, train\+val"),
    ({'model__normalization': 'zscore'}, 'imagenet, inception, clip, unit'),
    ({'model__weights': 'no.safetensors'}, r"model.weights='no.safetensors' is no file"),
    ({'model__image_size': 9}, 'image_size=9 is not a multiple of the patch size 4'),
    ({'model__activation': 'relu'}, "model.activation='relu' is unknown"),
    ({'space__ranks': (4, 2)}, 'ascending'),
    ({'search__fitness': 'speed'}, "'accuracy' or 'loss'"),
    ({'supernet__batch_size': 2000}, 'batch_size=2000 is larger than the 800 training images'),
  ],
)
def test_wrong_fields_are_explained(config, tmp_path, fields, message):
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    experiment.run(changed(config, **fields), str(tmp_path / 'run'))


def test_unknown_and_missing_fields_are_named(config, tmp_path):
  wrong = config.copy_and_resolve_references()
  with wrong.unlocked():
    wrong.supernet.momentum = 0.9
  with pytest.raises(
    ValueError, match=r"'supernet\.momentum' is unknown; there are: accumulate, batch_size"
  ):
    experiment.run(wrong, str(tmp_path))
  with wrong.unlocked():
    del wrong.supernet.momentum
    del wrong.search
  with pytest.raises(ValueError, match="'search' is missing"):
    experiment.run(wrong, str(tmp_path))


def test_a_damaged_backbone_is_refused(config, backbone, tmp_path):
  damaged = tmp_path / 'damaged.safetensors'
  with open(backbone, 'rb') as file:
    damaged.write_bytes(file.read()[:-1000])
  with pytest.raises(ValueError, match=r'damaged\.safetensors is damaged or cut off'):
    experiment.run(changed(config, model__weights=str(damaged)), str(tmp_path / 'run'))


def test_a_run_from_another_code_bases_checkpoint_ends_in_that_format(config, tmp_path):
  source = str(FIXTURES / 'hf_dinov2_model')
  short = changed(
    config,
    model__weights=source,
    model__image_size=16,
    presets=(),
    finetune__epochs=1,
    supernet__epochs=1,
    search__generations=1,
  )
  result = experiment.run(short, str(tmp_path / 'run'))
  assert result['fold_max_abs_diff'] < 1e-4
  _, params, metadata = weights.load(tmp_path / 'run' / 'folded')
  assert metadata['source'].format == 'hf_dinov2'
  assert (metadata['image_size'], metadata['normalization'], len(metadata['classes'])) == (
    16,
    'imagenet',
    10,
  )
  assert np.abs(params['head']['kernel']).max() > 0
  assert {'model.safetensors', 'config.json', 'preprocessor_config.json'} == set(
    os.listdir(tmp_path / 'run' / 'folded')
  )


def test_a_diverging_run_stops_names_the_step_and_keeps_the_last_good_state(config, tmp_path):
  wild = changed(config, supernet__learning_rate=1e30, supernet__warmup_epochs=0)
  with pytest.raises(NonFiniteLossError, match=r'not finite at step (\d+)') as caught:
    experiment.run(wild, str(tmp_path / 'run'))
  step = int(re.search(r'step (\d+)', str(caught.value)).group(1))
  with TrainingCheckpoints(tmp_path / 'run' / 'supernet') as checkpoints:
    assert checkpoints.latest_step == step


def test_budget_zero_ends_with_the_linear_subnet(config, tmp_path):
  result = experiment.run(
    changed(config, budget=0, presets=(), finetune__epochs=0), str(tmp_path / 'run')
  )
  assert result['winner']['params'] == 0
  assert result['evaluations'] == 1
  assert not np.any(result['winner']['genome'])
  assert result['winner']['test_accuracy'] == result['winner_supernet']['test_accuracy']


def test_finetuning_on_train_and_val_chooses_its_epochs_before_and_has_no_val_accuracy(
  config, tmp_path
):
  both = changed(config, presets=(), finetune__on='train+val', finetune__epochs=4)
  workdir = tmp_path / 'run'
  result = experiment.run(both, str(workdir))
  assert result['winner']['val_accuracy'] is None
  assert result['winner_supernet']['val_accuracy'] is not None
  with open(workdir / 'metrics.jsonl') as file:
    lines = [json.loads(line) for line in file]
  curve = [line for line in lines if line['stage'] == 'finetune_choice']
  assert [line['epoch'] for line in curve] == [1, 2, 3, 4]
  chosen = max(curve, key=lambda line: (line['val_accuracy'], -line['val_loss']))['epoch']
  tuned = [line for line in lines if line['stage'] == 'finetune']
  assert tuned[-1]['step'] == chosen * (1000 // 64)


def test_the_papers_protocol_says_so_wherever_its_numbers_appear(config, tmp_path):
  workdir = tmp_path / 'run'
  result = experiment.run(changed(config, presets=(), protocol='paper'), str(workdir))
  assert result['protocol'] == 'paper'
  assert all(
    result[name]['val_accuracy'] is None for name in ('linear', 'winner', 'winner_supernet')
  )
  assert result['winner'].items() >= result['winner_supernet'].items()  # no finetuning
  assert not (workdir / 'finetune').exists()
  label = run_report.PAPER_LABEL
  assert label in (workdir / 'report.md').read_text()
  assert label in experiment.summary(result, str(workdir))


def test_the_report_reads_by_itself_and_agrees_with_the_result(finished):
  workdir, result = finished
  with open(os.path.join(workdir, 'report.md')) as file:
    text = file.read()
  for name in ('linear', 'winner_supernet', 'winner'):
    assert f'{100 * result[name]["test_accuracy"]:.1f}' in text
    assert f'{result[name]["params"]:,}' in text
  for picture in re.findall(r'\]\((\w+\.png)\)', text):
    with open(os.path.join(workdir, picture), 'rb') as file:
      assert file.read(4) == b'\x89PNG'
  assert len(re.findall(r'\]\((\w+\.png)\)', text)) == 6


def test_the_errors_in_the_report_are_those_of_the_folded_model(finished, config):
  workdir, result = finished
  model, params, metadata = weights.load(os.path.join(workdir, 'folded'))
  images, labels = pipeline.load(
    find('digits', data_source(config)).open('test'), metadata['image_size']
  )
  found = np.asarray(
    jax.jit(model.apply)(
      {'params': params}, normalization.normalize(images, metadata['normalization'])
    ).argmax(-1)
  )
  with open(os.path.join(workdir, 'report.md')) as file:
    text = file.read()
  assert result['data']['images'] == {'train': 800, 'val': 200, 'test': 797}
  wrong = 797 - round(797 * result['winner']['test_accuracy'])
  assert f'got {wrong} of 797 test images wrong' in text
  pairs = re.findall(r'(\d) taken for (\d) \((\d+)\)', text)
  assert len(pairs) == 3
  counted = np.bincount(10 * labels + found, minlength=100) * (np.arange(100) % 11 > 0)
  assert [int(count) for *_, count in pairs] == sorted(counted)[:-4:-1]
  for true, answer, count in pairs:
    assert ((labels == int(true)) & (found == int(answer))).sum() == int(count)


def test_predictions_and_thumbnails_of_a_stream_are_those_of_the_arrays_and_masks_hold(
  config, tmp_path
):
  answers = {}
  for name, most in (('resident', 2**30), ('streamed', 0)):
    run = prepare(check_config(changed(config, data__max_resident=most)), str(tmp_path / name))
    few = np.flatnonzero(run.task.open('test').labels < 4)
    splits = {
      **run.task.splits,
      'few': lambda task=run.task, few=few: Part(task.open('test'), few),
    }
    run.task = dataclasses.replace(run.task, splits=splits, masked=('few',))
    variables = {**run.variables, 'params': randomized(run.variables['params'])}
    genome = np.zeros((len(run.adapted.spec), 5), np.int8)
    answers[name] = run.predict(variables, genome, 'test'), run.predict(variables, genome, 'few')
    assert isinstance(run.data('test').images, pipeline.Stream) == (name == 'streamed')
    correct, _ = run.score(variables, genome[None], 'few')
    assert (answers[name][1].classes == run.data('few').labels).sum() == correct[0]
    thumbnails = run.pixels('test', np.array([700, 3, 5]))
    np.testing.assert_array_equal(
      thumbnails, pipeline.load(Part(run.task.open('test'), np.array([700, 3, 5])), 8).images
    )
  for ours, theirs in zip(*answers.values(), strict=True):
    np.testing.assert_array_equal(ours.classes, theirs.classes)
    np.testing.assert_allclose(ours.probabilities, theirs.probabilities, rtol=1e-5)
  assert answers['streamed'][1].classes.max() < 4 < answers['streamed'][0].classes.max()


def test_the_command_in_the_report_answers_as_the_adapted_model_does(
  finished, config, backbone, tmp_path, monkeypatch, capsys
):
  workdir, _ = finished
  monkeypatch.chdir(tmp_path)
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)).save(
    'photo.jpg'
  )
  with open(os.path.join(workdir, 'report.md')) as file:
    command = re.search(r'^python -m glora_jax\.predict (.*)$', file.read(), re.M).group(1)
  predict.main([*shlex.split(command), '--json'])
  found = {
    one['class']: one['probability'] for one in json.loads(capsys.readouterr().out)['classes']
  }
  model, params, metadata = weights.refit(*weights.load(backbone), num_classes=10)
  pixels = image.resize(image.decode('photo.jpg'), 8, config.data.resize)[None]
  adapted = glora_jax.adapt(
    model, np.zeros((1, 8, 8, 3), np.float32), space=glora_jax.SearchSpace(**config.space)
  )
  variables, genome = glora_jax.load_adapter(
    os.path.join(workdir, 'adapter.safetensors'), adapted, params
  )
  shares = jax.nn.softmax(
    jax.jit(adapted.apply)(
      variables, normalization.normalize(pixels, metadata['normalization']), genome=genome
    )
  )[0]
  np.testing.assert_allclose([found[name] for name in '0123456789'], shares, atol=1e-5)


def test_the_reports_five_lines_of_code_run(finished, tmp_path, monkeypatch):
  workdir, _ = finished
  monkeypatch.chdir(tmp_path)
  Image.fromarray(np.zeros((30, 20, 3), np.uint8)).save('photo.jpg')
  with open(os.path.join(workdir, 'report.md')) as file:
    code = re.search(r'```python\n(.*?)```', file.read(), re.S).group(1)
  names = {}
  exec(code, names)
  assert names['logits'].shape == (1, 10)


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--config.sead=1'], 'sead'),
    (['--config.seed=one'], 'seed'),
    (['--config.budget=-5'], 'budget=-5 must be a whole number'),
    (['--config.budget=0.5'], 'budget=0.5 must be a whole number'),
    (['--config=configs/none.py'], 'none.py'),
    (['stray'], 'stray'),
  ],
)
def test_wrong_command_lines_are_one_sentence(tmp_path, arguments, message):
  run = run_command(
    [
      sys.executable,
      '-m',
      'glora_jax.main',
      '--config',
      'configs/quickstart.py',
      '--workdir',
      str(tmp_path),
      *arguments,
    ]
  )
  assert run.returncode != 0
  assert message in run.stderr
  assert 'Traceback' not in run.stderr
  assert len(run.stderr.strip().splitlines()) <= 3
