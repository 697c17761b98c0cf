"""What is built of the project: its files, and what it requires."""

import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
from packaging.requirements import Requirement
from places import CONFIGS, ROOT

import glora_jax
from glora_jax import main

LEFT_OUT = ('.git', '.pytest_cache', 'runs', 'dist', 'build', 'docs', 'glora_jax.egg-info')


def sources():
  """What is in the package, by its path in there: {'glora_jax/main.py': bytes}."""
  roots = {'glora_jax/configs': CONFIGS, 'glora_jax': ROOT / 'glora_jax'}
  return {
    f'{name}/{path.relative_to(root)}': path.read_bytes()
    for name, root in roots.items()
    for path in root.rglob('*')
    if path.is_file() and '__pycache__' not in path.parts
  }


def declared():
  """The lines of pyproject.toml: (the library's requirements, those of the extra `vision`)."""
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  return project['dependencies'], project['optional-dependencies']['vision']


def requirements(distribution, extra=''):
  """What a package requires here, with an extra or without."""
  found = map(Requirement, distribution.requires or ())
  return [each for each in found if not each.marker or each.marker.evaluate({'extra': extra})]


def test_requirements_txt_lists_the_library_and_the_application():
  lines = (ROOT / 'requirements.txt').read_text().splitlines()
  library, vision = declared()
  assert [line for line in lines if not line.startswith('#')] == library + vision


def test_configs_are_found_by_name_path_and_with_arguments(tmp_path, monkeypatch):
  assert main.FOLDER == CONFIGS
  assert {'quickstart', 'own', 'vtab'} <= main.configs().keys()
  monkeypatch.chdir(tmp_path)
  assert main.load_config('vtab:clevr_count,rank=3').task == 'vtab/clevr_count'
  for name in ('own', 'own.py'):
    (tmp_path / name).write_text('A file that is called like a config.')
  assert main.path_of('own') == f'{CONFIGS}/own.py'
  assert main.path_of('own.py') == 'own.py'
  with pytest.raises(
    ValueError, match=r"no config 'qickstart' \(did you mean quickstart\?\); .* vtab"
  ):
    main.path_of('qickstart')


@pytest.fixture(scope='module')
def built(tmp_path_factory):
  """The folder with the wheel and the sdist that a copy of the project makes."""
  pytest.importorskip('build', reason='needs the extra test')
  copy, output = tmp_path_factory.mktemp('project') / 'copy', tmp_path_factory.mktemp('built')
  shutil.copytree(
    ROOT, copy, ignore=lambda folder, _: LEFT_OUT if folder == str(ROOT) else ('__pycache__',)
  )
  words = [sys.executable, '-m', 'build', '--no-isolation', '--outdir', output, copy]
  subprocess.run(words, check=True, capture_output=True)
  return output


@pytest.mark.slow
def test_a_wheel_holds_the_package_with_weights_and_configs_and_nothing_else(built):
  [path] = built.glob('*.whl')
  assert path.name == f'glora_jax-{glora_jax.__version__}-py3-none-any.whl'
  with zipfile.ZipFile(path) as wheel:
    files = {name: wheel.read(name) for name in wheel.namelist()}
  package = {name: content for name, content in files.items() if '.dist-info/' not in name}
  assert package == sources()
  assert {'glora_jax/py.typed', 'glora_jax/configs/compare_rates.json'} <= package.keys()


@pytest.mark.slow
def test_a_wheel_requires_the_library_and_for_an_extra_the_application(built):
  [path] = built.glob('*.whl')
  [found] = importlib.metadata.distributions(path=[str(path)])
  assert found.metadata['License-Expression'] == 'Apache-2.0'

  def lines(extra=''):
    return {f'{each.name}{each.specifier}' for each in requirements(found, extra)}

  library, vision = map(set, declared())
  assert lines() == library
  assert lines('vision') == library | vision
  assert all('glora_jax' in lines(extra) for extra in ('test', 'docs', 'peers', 'notebooks'))


def run(folder, *words):
  """A process that finds the packages in a folder before all others."""
  paths = f'{folder}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'
  options = {'cwd': folder, 'env': {**os.environ, 'PYTHONPATH': paths}, 'text': True}
  return subprocess.run([sys.executable, *words], **options, capture_output=True)


@pytest.fixture(scope='module')
def installed(built, tmp_path_factory):
  """A folder with the wheel, installed."""
  folder = tmp_path_factory.mktemp('installed')
  [wheel] = built.glob('*.whl')
  words = ['-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--target', folder, wheel]
  subprocess.run([sys.executable, *words], check=True)
  return folder


def test_a_missing_package_of_the_application_is_named(tmp_path):
  (tmp_path / 'glora_jax-1.dist-info').mkdir()
  (tmp_path / 'glora_jax-1.dist-info' / 'METADATA').write_text(
    'Name: glora_jax\nVersion: 1\nRequires-Dist: jax>=0.1\n'
    'Requires-Dist: not-there>=9; extra == "peers"\n'
    'Requires-Dist: pillow>=1; extra == "vision"\n'
    'Requires-Dist: nor.this-one[more]>=2; extra == "vision"\n'
  )
  sentence = 'glora_jax.vision and the commands need nor.this-one, which is not installed; in the '
  for module in ('main', 'predict', 'convert'):
    ended = run(tmp_path, '-m', f'glora_jax.{module}')
    assert (ended.returncode, ended.stdout) == (1, '')
    [line] = ended.stderr.splitlines()
    assert line.startswith(f'error: {sentence}')
  ended = run(tmp_path, '-c', 'import glora_jax\nglora_jax.adapt\nimport glora_jax.vision.runs')
  assert f'\nglora_jax.errors.MissingPackageError: {sentence}' in ended.stderr


def test_a_clone_that_is_on_the_path_but_not_installed_is_asked_for_nothing(tmp_path):
  (tmp_path / 'glora_jax').symlink_to(ROOT / 'glora_jax')
  assert run(tmp_path, '-S', '-c', 'import glora_jax.vision').returncode == 0


def test_a_package_that_is_there_but_fails_keeps_its_traceback(tmp_path):
  (tmp_path / 'ml_collections.py').write_text('import not_there')
  ended = run(tmp_path, '-m', 'glora_jax.main')
  assert ended.returncode == 1
  assert ended.stderr.startswith('Traceback')
  assert ended.stderr.endswith("ModuleNotFoundError: No module named 'not_there'\n")


@pytest.mark.slow
def test_an_installed_wheel_finds_its_configs_outside_of_the_checkout(installed):
  found = run(installed, '-c', 'import glora_jax; print(glora_jax.__file__)').stdout
  assert pathlib.Path(found).is_relative_to(installed)
  # The config is read and checked, and refused in a sentence before anything starts.
  words = ['--config', 'quickstart', '--config.budget=0.5', '--workdir', 'run']
  ended = run(installed, installed / 'bin' / 'glora', *words)
  assert ended.returncode == 1
  assert 'budget=0.5 must be an integer or None' in ended.stderr
