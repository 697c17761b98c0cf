"""The command that inspects and converts, as a process; the exported model in another one."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import FIXTURES

from glora_jax import convert
from glora_jax.data import normalization
from glora_jax.models import weights
from glora_jax.models.export import load_exported


def run(*arguments):
  command = [sys.executable, '-m', 'glora_jax.convert', *map(str, arguments)]
  return subprocess.run(command, capture_output=True, text=True, cwd=FIXTURES.parent.parent)


def test_inspection_says_what_the_file_is():
  shown = run(FIXTURES / 'hf_dinov2')
  assert shown.returncode == 0, shown.stderr
  for line in (
    'format         hf_dinov2 (safetensors)',
    'num_heads      4',
    'pool           token+gap',
  ):
    assert line in shown.stdout
  _, params, _ = weights.load(FIXTURES / 'hf_dinov2')
  assert f'{sum(x.size for x in jax.tree.leaves(params)):,}' in shown.stdout


@pytest.mark.parametrize(
  'output, format',
  [
    ('out', None),
    ('out.npz', 'big_vision'),
    ('out', 'hf_dinov2'),
    ('out.safetensors', 'glora_jax'),
  ],
)
def test_conversion_keeps_the_logits(output, format, tmp_path, capsys):
  convert.main(
    [str(FIXTURES / 'timm_vit'), str(tmp_path / output), *(['--format', format] if format else [])]
  )
  assert (format or 'timm') in capsys.readouterr().out
  images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
  logits = [
    model.apply({'params': params}, images)
    for model, params, _ in (
      weights.load(FIXTURES / 'timm_vit'),
      weights.load(tmp_path / output, activation='gelu'),
    )
  ]
  np.testing.assert_allclose(*logits, atol=1e-5)


def test_exported_models_run_in_a_fresh_process_without_this_package(tmp_path):
  convert.main([str(FIXTURES / 'timm_vit'), str(tmp_path / 'model.jax_export')])
  images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
  np.save(tmp_path / 'images.npy', images)
  code = (
    'import sys, jax, jax.export, numpy as np\n'
    'exported = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))\n'
    'np.save(sys.argv[3], exported.call(np.load(sys.argv[2])))\n'
    'assert "glora_jax" not in sys.modules\n'
    'print(exported.in_avals[0].str_short())'
  )
  ran = subprocess.run(
    [
      sys.executable,
      '-c',
      code,
      *(tmp_path / name for name in ('model.jax_export', 'images.npy', 'logits.npy')),
    ],
    check=True,
    capture_output=True,
    text=True,
  )
  assert ran.stdout.strip() == 'uint8[batch,32,32,3]'
  model, params, metadata = weights.load(FIXTURES / 'timm_vit')
  expected = model.apply(
    {'params': params}, normalization.normalize(images, metadata['normalization'])
  )
  np.testing.assert_allclose(np.load(tmp_path / 'logits.npy'), expected, atol=1e-5)
  np.testing.assert_allclose(
    load_exported(tmp_path / 'model.jax_export').call(images[:1]), expected[:1], atol=1e-5
  )


def test_files_that_are_no_export_are_refused(tmp_path):
  (tmp_path / 'odd').write_bytes(b'x' * 100)
  with pytest.raises(ValueError, match='is no exported function'):
    load_exported(tmp_path / 'odd')


def test_mistakes_are_one_sentence(tmp_path):
  for arguments, message in [
    (['no.npz'], 'is no file or folder'),
    ([FIXTURES / 'hf_vit', tmp_path / 'x', '--image-size', '33'], 'not a multiple'),
    (
      [FIXTURES / 'timm_gap_with_class_token', tmp_path / 'x.npz', '--format', 'vit_jax'],
      'choose another format',
    ),
  ]:
    failed = run(*arguments)
    assert failed.returncode != 0
    assert message in failed.stderr
    assert 'Traceback' not in failed.stderr
