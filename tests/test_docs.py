"""README and documentation: short, and true of every command, config, field and file they name."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import glora_jax
from glora_jax.runs import config, schema

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / 'docs'))

import page_links  # noqa: E402, beside conf.py

README = ROOT / 'README.md'
PAGES = sorted((ROOT / 'docs').rglob('*.md'))
BUILT = ('config.md', 'notebooks/', '_build/')  # by docs/conf.py, and not committed
PAGES = [page for page in PAGES if not any(part in str(page) for part in BUILT)]
LINKING = [README, ROOT / 'CONTRIBUTING.md']
FIELDS = {name for name, _ in schema.walk(config.RunSettings())}


def blocks(text, language):
  return re.findall(rf'```{language}\n(.*?)```', text, re.DOTALL)


def name_of(page):
  return str(page.relative_to(ROOT))


def links(text):
  """(text, target) of every link and picture that is not within code."""
  text = re.sub(r'```.*?```', '', text, flags=re.DOTALL)
  text = re.sub(r'`[^`\n]+`', 'code', text)
  return re.findall(r'\[([^\]]*)\]\(([^)\s]+)\)', text)


@pytest.fixture(scope='module')
def kept():
  """The files that git has or would add; where there is no git, all that are there."""
  git = ['git', 'ls-files', '--cached', '--others', '--exclude-standard']
  names = subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.split('\n')
  return {*names} - {''} or {str(path.relative_to(ROOT)) for path in ROOT.rglob('*')}


def test_the_readme_is_read_in_a_minute():
  text = README.read_text()
  assert len(text.splitlines()) <= 120
  assert len(text.split()) <= 1000


def test_the_readme_has_the_two_commands():
  commands = [line for block in blocks(README.read_text(), '') for line in block.splitlines()]
  main = 'pip install -e . && python -m glora_jax.main --config configs/quickstart.py'
  assert main in commands
  assert commands.index('git clone PATH glora_jax && cd glora_jax') < commands.index(main)
  assert "pip install -e '.[test]' && python -m pytest" in commands


def test_the_readmes_lines_of_library_use_run(capsys):
  model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(8), nn.relu, nn.Dense(3)])
  images = jnp.ones((2, 4))
  params = model.init(jax.random.key(1), images)['params']
  names = {'glora_jax': glora_jax, 'jax': jax, 'model': model, 'images': images, 'params': params}
  [block] = blocks(README.read_text(), 'python')
  exec(block, names)
  assert names['logits'].shape == (2, 3)
  expected = model.apply({'params': names['plain_params']}, images)
  assert jnp.allclose(names['logits'], expected, atol=1e-5)
  assert 'layers_0' in capsys.readouterr().out


@pytest.mark.parametrize('page', [README, *PAGES], ids=name_of)
def test_what_a_page_names_is_there(page):
  text = page.read_text()
  for path in re.findall(r'(?:configs|notebooks|benchmarks|tests|glora_jax)/[\w/.-]*\w', text):
    assert any((ROOT / (path + end)).exists() for end in ('', '.ipynb')), path
  for module in re.findall(r'python -m ((?:glora_jax|benchmarks)[\w.]*\w)', text):
    assert module == 'benchmarks.NAME' or importlib.util.find_spec(module), module
  for field in re.findall(r'--config\.([a-z_.]*[a-z_])', text):
    assert field in FIELDS, field


@pytest.mark.parametrize('page', [*LINKING, *PAGES], ids=name_of)
def test_a_link_has_a_text_and_leads_to_a_file_in_git(page, kept):
  for text, target in links(page.read_text()):
    assert text.strip(), f'a link to {target} without a text'
    if not target.startswith('https:'):
      path = os.path.relpath(page.parent / target.partition('#')[0], ROOT)
      assert path in kept, target
    assert not re.search(r'[A-Z]{3,}/[A-Z]{2,}', target), f'{target} opens nothing'


@pytest.mark.slow  # with what builds the documentation, which quick tests do without
def test_a_table_that_a_notebook_shows_is_a_table_in_the_pages(tmp_path):
  sphinx = pytest.importorskip('sphinx.application')
  pytest.importorskip('myst_nb')
  import conf
  import nbformat

  output = nbformat.v4.new_output('display_data', {'text/markdown': '| a |\n|---|\n| 1 |\n'})
  cell = nbformat.v4.new_code_cell('show', outputs=[output])
  notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell('# Title'), cell])
  nbformat.write(notebook, tmp_path / 'index.ipynb')
  options = {
    'extensions': ['myst_nb'],
    'nb_execution_mode': 'off',
    'nb_render_markdown_format': conf.nb_render_markdown_format,
  }
  folders = (tmp_path, None, tmp_path / 'built', tmp_path / 'trees')
  sphinx.Sphinx(*folders, 'html', options, status=None, warning=None).build()
  assert '<table' in (tmp_path / 'built' / 'index.html').read_text()


def test_links_are_found():
  text = 'A [two\nwords](a.md#b), ![](c.png), [`d`](e.md), `[no](f.md)`.\n```\n[no](g.md)\n```'
  found = [('two\nwords', 'a.md#b'), ('', 'c.png'), ('code', 'e.md')]
  assert links(text) == found


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_a_link_of_a_built_page_leads_to_what_is_built(page):
  docs = ROOT / 'docs'
  text = page_links.built(page.read_text(), str(page.relative_to(docs).with_suffix('')))
  for _, target in links(text):
    if not target.startswith('https:'):
      path = os.path.relpath(page.parent / target.partition('#')[0], docs)
      assert not path.startswith('..'), target
      lies = (ROOT if path.startswith(page_links.COPIED) else docs) / path
      assert path == 'reference/config.md' or lies.exists(), target


def test_every_page_is_short():
  words = {name_of(page): len(page.read_text().split()) for page in PAGES}
  assert max(words.values()) <= 1000, words


def test_every_public_name_is_in_the_reference():
  text = (ROOT / 'docs' / 'reference' / 'api.md').read_text()
  documented = set(re.findall(r':: (?:glora_jax\.nnx\.)?(\w+)\n', text))
  assert not {*glora_jax.__all__, *glora_jax.nnx.__all__} - {'nnx'} - documented
