"""What is built of the project: every file of the package, the configs in it, and nothing else."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest
from places import CONFIGS, ROOT

import glora_jax
from glora_jax.vision.runs import command_line

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


def test_configs_are_found_by_name_path_and_with_arguments(tmp_path, monkeypatch):
  assert str(CONFIGS) == command_line.FOLDER
  assert {'quickstart', 'own', 'vtab'} <= {*command_line.names()}
  monkeypatch.chdir(tmp_path)
  assert command_line.load_config('vtab:clevr_count,rank=3').task == 'vtab/clevr_count'
  for name in ('own', 'own.py'):
    (tmp_path / name).write_text('A file that is called like a config.')
  assert command_line.path_of('own') == f'{CONFIGS}/own.py'
  assert command_line.path_of('own.py') == 'own.py'
  with pytest.raises(
    ValueError, match=r"no config 'qickstart' \(did you mean quickstart\?\); .* vtab"
  ):
    command_line.path_of('qickstart')


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
  [metadata] = [content for name, content in files.items() if name.endswith('/METADATA')]
  assert b'License-Expression: Apache-2.0' in metadata


@pytest.mark.slow
def test_an_installed_wheel_finds_its_configs_outside_of_the_checkout(built, tmp_path):
  [wheel] = built.glob('*.whl')
  target = tmp_path / 'target'
  words = ['-m', 'pip', 'install', '-q', '--no-deps', '--no-index', '--target', target, wheel]
  subprocess.run([sys.executable, *words], check=True)
  paths = f'{target}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'
  options = {'cwd': tmp_path, 'env': {**os.environ, 'PYTHONPATH': paths}, 'text': True}
  code = 'import glora_jax; print(glora_jax.__file__)'
  run = subprocess.run([sys.executable, '-c', code], **options, stdout=subprocess.PIPE, check=True)
  assert pathlib.Path(run.stdout).is_relative_to(target)
  # The config is read and checked, and refused in a sentence before anything starts.
  words = ['--config', 'quickstart', '--config.budget=0.5', '--workdir', tmp_path / 'run']
  run = subprocess.run([target / 'bin' / 'glora', *words], **options, stderr=subprocess.PIPE)
  assert run.returncode == 1
  assert 'budget=0.5 must be None or an integer' in run.stderr
