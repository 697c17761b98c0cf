"""README and documentation: short, and true of every command, config, field and file they name."""

import importlib.util
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import glora_jax
from glora_jax.runs import config, schema

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / 'README.md'
PAGES = sorted((ROOT / 'docs').rglob('*.md'))
BUILT = ('config.md', 'notebooks/')  # by docs/conf.py, and not committed
PAGES = [page for page in PAGES if not any(part in str(page) for part in (*BUILT, '_build/'))]
FIELDS = {name for name, _ in schema.walk(config.RunSettings())}


def blocks(text, language):
  return re.findall(rf'```{language}\n(.*?)```', text, re.DOTALL)


def name_of(page):
  return str(page.relative_to(ROOT))


def test_the_readme_is_read_in_a_minute():
  text = README.read_text()
  assert len(text.splitlines()) <= 120
  assert len(text.split()) <= 1000


def test_the_readme_has_the_two_commands():
  commands = [line for block in blocks(README.read_text(), '') for line in block.splitlines()]
  main = 'pip install -e . && python -m glora_jax.main --config configs/quickstart.py'
  assert main in commands
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


@pytest.mark.parametrize('page', [README, *PAGES], ids=name_of)
def test_links_within_the_project_lead_somewhere(page):
  for target in re.findall(r'\]\(([^)#\s]+)\)', page.read_text()):
    built = any(part in target for part in BUILT)
    assert target.startswith('https:') or built or (page.parent / target).exists(), target


def test_every_page_is_short():
  words = {name_of(page): len(page.read_text().split()) for page in PAGES}
  assert max(words.values()) <= 1000, words


def test_every_public_name_is_in_the_reference():
  text = (ROOT / 'docs' / 'reference' / 'api.md').read_text()
  documented = set(re.findall(r':: (?:glora_jax\.nnx\.)?(\w+)\n', text))
  assert not {*glora_jax.__all__, *glora_jax.nnx.__all__} - {'nnx'} - documented
