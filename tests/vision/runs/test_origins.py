"""A run stays with the weights that it began with, and remembers with what it was made."""

import pytest

from glora_jax import hub
from glora_jax.files import read_json
from glora_jax.vision.files import sha256_of
from glora_jax.vision.models import weights
from glora_jax.vision.runs import origins
from glora_jax.vision.runs.origins import find_weights, read_weights
from glora_jax.vision.runs.settings import ModelSettings

FIRST, SECOND = '1' * 40, '2' * 40


@pytest.fixture
def repository(tmp_path, monkeypatch):
  """Two commits of a repository; the branch can be moved from the first to the second."""
  branches = {None: FIRST, 'main': FIRST}
  for commit in (FIRST, SECOND):
    folder = tmp_path / 'cache' / commit
    folder.mkdir(parents=True)
    (folder / 'model.safetensors').write_text(f'tensors of {commit}')

  def snapshot(name, files):
    revision = hub.parse(name).revision
    return str(tmp_path / 'cache' / branches.get(revision, revision))

  monkeypatch.setattr(hub, 'snapshot', snapshot)
  return tmp_path / 'cache', branches


def test_a_run_goes_on_with_its_commit_after_the_branch_has_moved(repository, tmp_path):
  cache, branches = repository
  settings = ModelSettings(weights='hf:me/vit@main')
  assert find_weights(settings, tmp_path) == str(cache / FIRST)
  sha256 = sha256_of(cache / FIRST / 'model.safetensors')
  assert read_weights(tmp_path) == {'weights_revision': FIRST, 'weights_sha256': sha256}
  branches['main'] = SECOND
  assert find_weights(settings, tmp_path) == str(cache / FIRST)
  assert find_weights(settings, cache) == str(cache / SECOND)
  (cache / FIRST / 'model.safetensors').write_text('others')
  with pytest.raises(
    ValueError, match=f'{FIRST} has SHA-256 .*, but this run began with weights of'
  ):
    find_weights(settings, tmp_path)


@pytest.mark.parametrize('is_folder', [False, True])
def test_a_path_whose_weights_changed_since_is_refused(tmp_path, is_folder):
  file, workdir = tmp_path / 'vit' / 'model.safetensors', tmp_path / 'run'
  for folder in (file.parent, workdir):
    folder.mkdir()
  file.write_text('first')
  settings = ModelSettings(weights=str(file.parent if is_folder else file))
  for _ in range(2):
    assert find_weights(settings, workdir) == settings.weights
    assert read_json(workdir / 'weights.json')['sha256'] == sha256_of(file)
    file.write_text('others')
    with pytest.raises(ValueError, match=r'SHA-256 .*, but this run began with .* another'):
      find_weights(settings, workdir)
    file.write_text('first')
  assert read_weights(workdir) == {}


def test_a_record_of_other_weights_is_not_theirs(repository, tmp_path):
  cache, branches = repository
  find_weights(ModelSettings(weights='hf:me/vit@main'), tmp_path)
  branches[None] = SECOND
  assert find_weights(ModelSettings(weights='hf:me/vit'), tmp_path) == str(cache / SECOND)
  assert read_json(tmp_path / 'weights.json')['revision'] == SECOND


def test_a_checksum_counts_for_the_weights_in_the_package_which_leave_no_record(tmp_path):
  assert find_weights(ModelSettings(), tmp_path) == weights.EMBEDDED_FILE
  assert read_weights(tmp_path) == {}
  with pytest.raises(ValueError, match=r'has SHA-256 .*, expected 0000'):
    find_weights(ModelSettings(sha256='0' * 64), tmp_path)


HERE = {'command': 'glora --config quickstart', 'versions': {'jax': '0.10'}, 'device': '1 x cpu'}
ELSEWHERE = {**HERE, 'device': '8 x TPU v5e'}


def test_every_process_that_differs_is_noted_once(tmp_path, monkeypatch):
  for made in (HERE, HERE, ELSEWHERE, HERE):
    monkeypatch.setattr(origins, 'current', lambda made=made: made)
    origins.note_process(tmp_path)
  assert origins.read_processes(tmp_path) == [HERE, ELSEWHERE]
