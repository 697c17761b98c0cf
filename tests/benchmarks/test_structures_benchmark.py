"""The structures' benchmark: its statistics, its choice of rates, its jobs and its programs."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.machinery.measuring import make_parser
from benchmarks.structures import jobs, plan
from benchmarks.structures import laboratory as lab
from benchmarks.structures.__main__ import command
from benchmarks.structures.jobs import UNKNOWN, Store
from benchmarks.structures.laboratory import Model
from benchmarks.structures.statistics import difference
from glora_jax.method.presets import preset
from glora_jax.runs.runners import THIS_PROCESS
from glora_jax.training import loop
from glora_jax.training.losses import make_loss

TRIALS = plan.MAIN.trials(('lora:1', 0), 0.1)


def test_intervals_cover_the_truth():
  rng = np.random.default_rng(1)
  covered = 0
  for _ in range(200):
    hardness = rng.random(500)
    shift = rng.normal(0, 0.02, (5, 1))  # what a seed does
    ours = rng.random((5, 500)) < hardness + shift
    theirs = rng.random((5, 500)) < hardness
    found = difference(ours, theirs)
    covered += found.low <= 0 <= found.high
  assert covered >= 180  # of 200; the two parts are added up, so that intervals are wide


def test_a_store_has_whole_lines_of_one_version_and_counts_the_others(tmp_path):
  path, (job, second, _) = tmp_path / 'results.jsonl', TRIALS
  result = {'test': [0.5, 1.0]}
  path.write_text(json.dumps({'job': job[:-1], **result}) + '\n{"job": [')  # cut off
  assert Store(str(path), UNKNOWN).results == {job: result}
  new = Store(str(path))
  new.add(second, result)
  new.add(job, {**result, 'version': 'another'})
  again = Store(str(path))
  assert again.results == {second: result}
  assert again.others == {UNKNOWN: 1, 'another': 1}


def test_a_job_that_was_done_is_read_and_not_done_again(tmp_path, monkeypatch):
  monkeypatch.setattr(jobs, 'FOLDER', str(tmp_path))
  monkeypatch.setattr(lab, 'run', lambda job: {'number': done.append(job) or len(done)})
  done = []
  for _ in range(2):
    store = Store(str(tmp_path / 'results.jsonl'))
    jobs.run_jobs(TRIALS, store, THIS_PROCESS, notes={'commit': 'a'})
  assert done == TRIALS
  assert store.results[TRIALS[1]] == {'number': 2, 'commit': 'a'}


def test_a_runner_that_does_not_exist_is_one_sentence(monkeypatch):
  monkeypatch.setattr('sys.argv', ['structures', '--runner', 'slurm'])
  with pytest.raises(SystemExit, match="error: --runner='slurm' is unknown"):
    command(make_parser('', 'nothing'), {}, lambda given: None)


@pytest.mark.full
def test_the_shared_program_trains_as_the_fixed_subnet_does():
  base = lab.backbone(Model(10))
  adapted = base.adapted
  genome = preset(adapted.spec, 'lora:2@attn')
  variables = adapted.init(jax.random.key(0), base.params)
  images = jax.random.randint(jax.random.key(1), (64, 28, 28, 3), 0, 255).astype(jnp.uint8)
  indices = np.tile(np.arange(64, dtype=np.int32), (3, 1))
  data = images, jnp.arange(64) % 10, indices, jax.random.key(2)

  def folded(model, steps, start, **more):
    own, rest = model.split(variables)
    own, *_ = steps(jax.tree.map(jnp.array, own), start(own), 0, {**rest, **more}, *data)
    return adapted.fold(model.join(own, rest), genome)

  start = functools.partial(lab.start_state, epochs=2, rate=1e-2)
  shared = folded(adapted, lab.program(Model(10), 2), start, genome=jnp.asarray(genome))
  subnet = adapted.fix(genome)
  recipe = dataclasses.replace(lab.recipe(2), learning_rate=1e-2, final_learning_rate=1e-5)
  optimizer = recipe.optimizer(lab.NUM_TRAIN)
  steps = loop.make_steps(make_loss(subnet, base.preprocess, train=True), optimizer)
  close = functools.partial(np.testing.assert_allclose, atol=2e-5)
  jax.tree.map(close, shared, folded(subnet, steps, optimizer.init))
