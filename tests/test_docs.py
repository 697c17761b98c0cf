"""README and documentation: their files, links and names are there, and the lines of README run."""

import ast
import functools
import importlib.util
import inspect
import re
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import pytest
from places import ROOT, code_of, environment

import glora_jax

README = ROOT / 'README.md'
PAGES = sorted((ROOT / 'docs').rglob('*.md'))
BUILT = ('config.md', 'notebooks/', '_build/')  # by docs/conf.py, and not committed
PAGES = [page for page in PAGES if not any(part in str(page) for part in BUILT)]


def test_the_readmes_lines_of_library_use_run(capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  names = {}
  [example, training], [table, results] = code_of('README.md'), code_of('README.md', 'text')
  exec(example, names)
  assert capsys.readouterr().out == table
  exec(training, names)
  assert capsys.readouterr().out.startswith(results)
  model, x, trained = names['model'], names['tokens'], names['state'].variables
  logits = model.apply({'params': names['folded']}, x)
  assert jnp.allclose(logits, names['adapted'].apply(trained, x), atol=1e-5)
  assert jnp.mean(logits.argmax(-1)[1024:] == names['labels'][1024:]) > 0.99  # not trained on
  base = names['variables']['params']
  adapted, loaded = glora_jax.load_adapter('adapter.safetensors', names['adapted'], base)
  assert jnp.array_equal(adapted.apply(loaded, x), names['adapted'].apply(trained, x))


@pytest.mark.slow
def test_the_program_that_resumes_ends_with_the_adapter_file_of_an_uninterrupted_training(tmp_path):
  [program] = code_of('docs/howto/train.md')[1:]

  def start(name, program=program):
    (tmp_path / name).mkdir(exist_ok=True)
    words = [sys.executable, '-c', program]
    return subprocess.Popen(words, cwd=tmp_path / name, env=environment(1))

  assert start('uninterrupted').wait() == 0
  process, file = start('killed'), tmp_path / 'killed' / 'adapter.safetensors'
  states = tmp_path / 'killed' / 'states'
  while not any(path.name.isdigit() for path in states.glob('*')) and process.poll() is None:
    time.sleep(0.01)  # other names are of states that are being written
  process.kill()
  assert process.wait() == -signal.SIGKILL
  assert not file.exists()
  other_start = program.replace('init(jax.random.key(2)', 'init(jax.random.key(4)')
  assert start('killed', other_start).wait() == 0  # the saved state replaces it
  assert file.read_bytes() == (tmp_path / 'uninterrupted' / file.name).read_bytes()


@pytest.mark.parametrize(
  'page',
  [README, ROOT / 'CONTRIBUTING.md', ROOT / 'benchmarks' / 'RESULTS.md', *PAGES],
  ids=lambda page: str(page.relative_to(ROOT)),
)
def test_what_a_page_names_is_there_and_its_links_have_texts_and_lead_to_files(page):
  text = page.read_text().replace('NAME.py', 'comparison.py')
  for path in re.findall(r'(?:configs|notebooks|benchmarks|tests|glora_jax)/[\w/.-]*\w', text):
    assert any((ROOT / (path + end)).exists() for end in ('', '.ipynb')), path
  for module in re.findall(r'python -m ((?:glora_jax|benchmarks)[\w.]*\w)', text):
    assert module == 'benchmarks.NAME' or importlib.util.find_spec(module), module
  written = re.sub(r'```.*?```|`[^`\n]+`', 'code', text, flags=re.DOTALL)
  for name, target in re.findall(r'\[([^\]]*)\]\(([^)\s]+)\)', written):
    assert name.strip(), f'a link to {target} without a text'
    if not target.startswith('https:'):
      assert (page.parent / target.partition('#')[0]).exists(), target


def test_the_reference_has_the_public_names_of_the_library_and_no_others():
  text = (ROOT / 'docs' / 'reference' / 'api.md').read_text()
  names = re.findall(r'auto(?:function|class):: (?:glora_jax\.)?([\w.]+)', text)
  modules = {'nnx', 'peft'}
  public = [name for name in glora_jax.__all__ if name not in modules]
  public += ['torch.adapt', 'torch.extend', 'torch.copy_to']  # which need an extra
  for name in modules:
    public += [f'{name}.{member}' for member in getattr(glora_jax, name).__all__]
  others = ('vision.', 'method.', 'search.', 'mesh.')  # named where a page or a result needs them
  assert sorted(public) == sorted(name for name in names if not name.startswith(others))


def test_the_tables_of_the_reference_call_functions_with_the_arguments_that_they_need():
  """An ellipsis stands for more of them."""
  tables = (ROOT / 'docs' / 'reference' / 'api.md').read_text().partition('## PyTorch')[0]
  names = '\n'.join(re.findall(r'^\| (.*?) \|', tables, re.MULTILINE))
  calls = re.findall(r'`(?!torch)([\w.]+)\((.*?)\)`', names)
  assert len(calls) > 50
  for name, written in calls:
    name = {'forward': 'Forward.__call__'}.get(name, name.replace('forward.', 'Forward.'))
    paths = (f'glora_jax.{owner}{name}' for owner in ('', 'Adapted.'))
    assert any(accepts(named(path), written.split(', ')) for path in paths), name


def named(path):
  """What is at a path of attributes, if anything."""
  owner, *names = path.split('.')
  return functools.reduce(lambda found, name: getattr(found, name, None), names, sys.modules[owner])


def accepts(function, written):
  """Whether the function, if there is one, can be called with these arguments."""
  arguments = [argument.strip('*') for argument in written if argument.strip('.')]
  values = [argument for argument in arguments if '=' not in argument]
  keywords = {argument.partition('=')[0]: ... for argument in arguments if '=' in argument}
  signature = inspect.signature(function or (lambda: None))
  bind = signature.bind_partial if '...' in written else signature.bind
  try:
    bind(*['self'] * ('self' in signature.parameters), *values, **keywords)
  except TypeError:
    return False
  return True


def test_a_message_in_a_heading_of_troubleshooting_is_one_of_the_code():
  """An ellipsis stands for a value."""
  sources = [path.read_text() for path in (ROOT / 'glora_jax').rglob('*.py')]
  nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
  constants = [node.value for node in nodes if isinstance(node, ast.Constant)]
  texts = '\n'.join(text for text in constants if isinstance(text, str))
  page = (ROOT / 'docs' / 'howto' / 'troubleshooting.md').read_text()
  messages = re.findall(r'^###.*`(.+)`', page, re.MULTILINE)
  parts = [part.strip() for message in messages for part in message.split('…')]
  assert len(messages) > 40
  assert not [part for part in parts if part not in texts]
