"""The diagnostics of a finished run, for real on a small one: they leave the run alone, and what is written agrees."""

import hashlib
import json
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import sceptic, sceptic_report
from glora_jax.method import space
from glora_jax.models import weights
from glora_jax.models.vit import ViT
from glora_jax.runs import experiment
from glora_jax.runs.config import default_config


def contents(workdir):
  """Time of change and digest of every file of a run, diagnostics apart."""
  files = [
    path
    for path in pathlib.Path(workdir).rglob('*')
    if path.is_file() and 'diagnostics' not in path.parts
  ]
  return {
    str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
    for path in files
  }


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A finished run of a tiny ViT on images of 8 x 8."""
  folder = tmp_path_factory.mktemp('sceptic')
  model = ViT(10, patch_size=4, width=16, depth=2, num_heads=2)
  params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))['params']
  weights.save(
    folder / 'tiny.safetensors', model, params, {'image_size': 8, 'normalization': 'unit'}
  )
  config = default_config()
  config.model.weights, config.data.dir, config.budget = (
    str(folder / 'tiny.safetensors'),
    str(folder / 'tfds'),
    1000,
  )
  # Shapes and recipes are those of test_experiment.py, so that its compiled programs in the cache serve here, too.
  config.model.remat, config.checkpoint_epochs = 'dots_saveable', 1
  config.supernet.update(epochs=3, warmup_epochs=1, learning_rate=1e-2)
  config.search.update(population=8, generations=2, parents=3, mutations=4, crossovers=4)
  config.finetune.update(epochs=2, warmup_epochs=0, learning_rate=1e-3)
  experiment.run(config, str(folder / 'run'))
  return str(folder / 'run')


@pytest.fixture(scope='module')
def diagnosed(workdir):
  """(workdir, what it held before, what was found, what `load` returned)."""
  before, loaded = contents(workdir), sceptic.load(workdir)
  return workdir, before, sceptic.diagnose(*loaded, seeds=2, subnets=2), loaded


def test_diagnostics_change_no_file_of_the_run(diagnosed):
  workdir, before, *_ = diagnosed
  assert contents(workdir) == before
  assert set(os.listdir(os.path.join(workdir, 'diagnostics'))) == {
    'diagnostics.json',
    'diagnostics.md',
    'diagnostics.png',
  }


def test_the_winner_gets_what_the_run_says(diagnosed):
  workdir, _, found, _ = diagnosed
  with open(os.path.join(workdir, 'result.json')) as file:
    result = json.load(file)
  for name, trained in (('winner_supernet', 'supernet'), ('winner', 'finetuned')):
    whole = found['ablation'][trained]['whole']
    assert {
      metric: whole[metric] for metric in ('params', 'val_accuracy', 'test_accuracy')
    } == pytest.approx(
      {metric: result[name][metric] for metric in ('params', 'val_accuracy', 'test_accuracy')}
    )
  own = found['random_search']['searched'][0]
  assert (
    own['evaluations']
    == result['evaluations']
    == found['random_search']['random'][1]['evaluations']
  )
  assert own['val_accuracy'] == pytest.approx(result['winner_supernet']['val_accuracy'])


def test_all_answers_are_about_subnets_within_the_budget_and_sizes_are_spread(diagnosed):
  _, _, found, _ = diagnosed
  small, large = (entry['params'] for entry in found['supernet_ranks']['subnets'])
  assert small <= 500 < large <= 1000
  searches = found['random_search']
  assert all(entry['params'] <= 1000 for name in ('searched', 'random') for entry in searches[name])


def test_what_is_trained_alone_is_trained(diagnosed):
  _, _, found, (run, *_) = diagnosed
  [start] = sceptic.measure(run, run.variables, [np.zeros((len(run.adapted.spec), 5))])
  assert found['supernet_ranks']['steps'] == 3 * (800 // 64)
  assert all(
    entry['alone']['val_loss'] < start['val_loss'] - 0.05
    for entry in found['supernet_ranks']['subnets']
  )


def test_switching_off_a_tensor_that_is_not_used_changes_nothing(diagnosed):
  *_, (run, _, winner, trained) = diagnosed
  genome = winner.copy()
  genome[:, 0], genome[:, 1] = 0, 3
  found = sceptic.ablation(run, trained['supernet'], genome)
  without = found['without']
  assert without['A']['params_saved'] == 0
  assert set(without['A']['change'].values()) == {0.0}
  assert without['B']['params_saved'] > 0
  assert without['B']['change']['val_loss'] != 0
  assert (
    sum(without[tensor]['params_saved'] for tensor in space.TENSORS)
    == without['all']['params_saved']
    == found['whole']['params']
  )


def test_report_and_json_agree(diagnosed):
  workdir, _, found, _ = diagnosed
  with open(os.path.join(workdir, 'diagnostics', 'diagnostics.json')) as file:
    written = json.load(file, parse_constant=lambda name: pytest.fail(f'{name} is no JSON'))
  assert written == found
  with open(os.path.join(workdir, 'diagnostics', 'diagnostics.md')) as file:
    text = file.read()
  assert 'DIAGNOSTIC' in text
  rows = [
    [cell.strip() for cell in line.strip('|').split('|')]
    for line in text.splitlines()
    if line.startswith('|')
  ]
  named = lambda start: [row for row in rows if row[0].startswith(start)]
  [own] = named('searched 1')
  entry = written['random_search']['searched'][0]
  assert own[1:] == [
    str(entry['evaluations']),
    f'{entry["params"]:,}',
    f'{100 * entry["val_accuracy"]:.1f}',
    f'{100 * entry["test_accuracy"]:.1f}',
    f'{entry["val_loss"]:.3f}',
    f'{entry["test_loss"]:.3f}',
  ]
  [subnet] = named('random 2')[1:]  # the first is of the searches
  entry = written['supernet_ranks']['subnets'][1]
  assert [subnet[1], subnet[-2], subnet[-1]] == [
    f'{entry["params"]:,}',
    f'{entry["supernet"]["test_loss"]:.3f}',
    f'{entry["alone"]["test_loss"]:.3f}',
  ]
  for tensor in space.TENSORS:
    for row, trained in zip(named(f'{tensor}, '), ('supernet', 'finetuned'), strict=True):
      entry = written['ablation'][trained]['without'][tensor]
      assert [row[1], row[3], row[5]] == [
        f'{entry["params_saved"]:,}',
        f'{100 * entry["change"]["test_accuracy"]:+.1f}',
        f'{entry["change"]["test_loss"]:+.3f}',
      ]
  gain = written['generalization']['winner_over_first']
  assert f'{100 * gain["accuracy_gap"]:+.1f} points and {gain["loss_gap"]:+.3f} of loss' in text
  assert json.dumps(sceptic_report.headline(written))
  assert re.search(r'\]\((\S+\.png)\)', text).group(1) in os.listdir(
    os.path.join(workdir, 'diagnostics')
  )


def test_the_partial_correlation_is_the_one_of_what_size_leaves_over():
  rng = np.random.default_rng(0)
  x, y, z = rng.permutation(12), rng.permutation(12), rng.permutation(12)
  rho = lambda a, b: sceptic.rank_correlation(a, b)['spearman']
  residual = lambda a: a - np.polyval(np.polyfit(z, a, 1), z)
  expected = np.corrcoef(residual(x), residual(y))[0, 1]
  assert sceptic.partial(rho(x, y), rho(x, z), rho(y, z)) == pytest.approx(expected)
  assert sceptic.partial(rho(x, y), rho(z, z), rho(y, z)) is None
  assert rho(x, np.ones(12)) is None


def test_a_run_by_the_papers_protocol_is_refused_in_one_sentence(tmp_path, monkeypatch):
  config = default_config()
  config.protocol = 'paper'
  (tmp_path / 'config.json').write_text(config.to_json())
  monkeypatch.setattr('sys.argv', ['sceptic', '--workdir', str(tmp_path)])
  with pytest.raises(SystemExit, match=r"^error: The run in .* has protocol='paper'"):
    sceptic.main()
