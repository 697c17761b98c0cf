"""The command that inspects and converts."""

import os
import shutil

import jax
import pytest
from comparing import assert_refused
from places import FIXTURES, digests

from glora_jax import convert
from glora_jax.vision.models import weights


def test_inspection_says_what_the_file_is_and_the_backbone_in_the_package_has_a_name(capsys):
  printed = []
  for name in (FIXTURES / 'hf_dinov2', 'embedded', weights.EMBEDDED_FILE):
    convert.main([str(name)])
    printed.append(capsys.readouterr().out)
  params = weights.load(FIXTURES / 'hf_dinov2').params
  size = f'{sum(x.size for x in jax.tree.leaves(params)):,}'
  for text in ('format         hf_dinov2\n', 'pool           token+gap', size):
    assert text in printed[0]
  assert printed[1] == printed[2]


@pytest.mark.parametrize(
  'output, format', [('out', None), ('out', 'hf_dinov2'), ('out.safetensors', 'glora_jax')]
)
def test_a_checkpoint_is_written_in_the_format_that_is_asked_for(output, format, tmp_path, capsys):
  path = tmp_path / output
  if not path.suffix:
    path.mkdir()  # an empty folder is taken
  options = ['--format', format] if format else []
  convert.main([str(FIXTURES / 'timm_vit'), str(path), *options])
  assert (format or 'timm') in capsys.readouterr().out
  source = weights.load(path).metadata.get('source')
  assert (source.name if source else 'glora_jax') == (format or 'timm')


@pytest.mark.parametrize('format', ['timm', 'glora_jax'])
def test_the_normalization_that_a_file_does_not_say_can_be_given(format, tmp_path, caplog):
  model, params, _ = weights.load(FIXTURES / 'timm_vit')
  unsaid, out = tmp_path / 'unsaid.safetensors', tmp_path / 'out'
  weights.save(unsaid, model, params, {'image_size': 32}, format)
  caplog.clear()
  convert.main([str(unsaid), str(out), '--normalization', 'clip', '--num-heads', '4'])
  assert weights.load(out).metadata['normalization'] == 'clip'
  assert 'assuming' not in caplog.text


@pytest.fixture
def strangers(tmp_path, monkeypatch):
  """A folder with an input, `in`, links to it, and files of others, as the current one."""
  monkeypatch.chdir(tmp_path)
  ignored = shutil.ignore_patterns('expected.npz')
  shutil.copytree(FIXTURES / 'timm_vit', 'in', ignore=ignored)
  for folder in ('shelf', 'out', 'other', 'empty'):
    os.mkdir(folder)
  os.symlink('in', 'linked')
  for link in ('hard.safetensors', 'hard.jax_export', 'shelf/model.safetensors'):
    os.link('in/model.safetensors', link)
  os.symlink('in/model.safetensors', 'soft.safetensors')
  others = ['out/config.json', 'out/model.safetensors', 'out/notes.txt', 'other/notes.txt']
  for name in (*others, 'a.safetensors', 'a.jax_export'):
    (tmp_path / name).write_text("a stranger's")
  return tmp_path


@pytest.mark.parametrize(
  'output', ['out', 'other', 'a.safetensors', 'a.jax_export', 'in/config.json']
)
def test_what_is_there_is_not_replaced_unasked(strangers, output):
  before = digests(strangers)
  assert_refused('already exists', convert.main, ['in', output], kind=SystemExit)
  assert digests(strangers) == before


@pytest.mark.parametrize('given', ['in', 'in/model.safetensors', 'hard.safetensors', 'linked/'])
def test_an_input_is_never_replaced(strangers, given):
  before = digests(strangers)
  files = ['in/model.safetensors', 'out/../linked/model.safetensors', 'hard.jax_export']
  files += ['hard.safetensors', 'soft.safetensors']
  for output in (*files, 'in', 'linked', 'in/.', 'shelf'):
    arguments = [given, output, '--overwrite']
    assert_refused('an input', convert.main, arguments, kind=SystemExit)
  assert digests(strangers) == before


@pytest.mark.parametrize(
  'output, format, replaced',
  [
    ('out', 'hf_vit', {'out/config.json', 'out/model.safetensors'}),
    ('out', 'glora_jax', {'out/model.safetensors'}),
    ('empty', 'glora_jax', set()),
    ('a.safetensors', 'timm', {'a.safetensors'}),
  ],
)
def test_what_is_replaced_when_asked_is_what_is_written(strangers, output, format, replaced):
  before = digests(strangers)
  convert.main(['in', output, '--format', format, '--overwrite'])
  after = digests(strangers)
  changed = {path for path in before if after.get(path) != before[path]}
  assert {*map(str, changed)} == replaced


@pytest.mark.parametrize(
  'arguments, named',
  [
    (['no.npz'], 'no.npz'),
    (['embedded', 'm.onnx'], 'm.onnx: .onnx files are not written; end the name in'),
    (['embedded', 'x', '--image-size', '7000'], '1,000,000 patches of 7 pixels'),
    (['embedded', 'x', '--normalization', 'clip'], "normalization='clip'"),
    (['embedded', '--format', 'timm'], '2'),
    (['embedded', 'x.jax_export', '--format', 'timm'], '2'),
  ],
)
def test_mistakes_are_one_sentence_and_write_nothing(
  arguments, named, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  assert_refused(named, convert.main, arguments, kind=SystemExit)
  assert (named == '2') == ('--format needs a checkpoint as OUT' in capsys.readouterr().err)
  assert not list(tmp_path.iterdir())
