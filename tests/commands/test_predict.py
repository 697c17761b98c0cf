"""The command for what comes after a run.

Its answers are those of the adapted model, whatever the format; wrong inputs are one sentence.
"""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from places import ROOT
from trees import randomized

import glora_jax
from glora_jax import convert, predict
from glora_jax.data import image
from glora_jax.data.normalization import normalize
from glora_jax.method import draws
from glora_jax.models import weights
from glora_jax.models.classifier import find_images
from glora_jax.models.vit import ViT

CLASSES = ['a cat', 'a dog', '100 % "other", über']


class Problem(NamedTuple):
  """A small adapted ViT whose supports and head are not at their initial values."""

  model: ViT
  folded: dict  # parameters of the model with its subnet folded in
  probabilities: Callable  # of images, by the supports apart


@pytest.fixture(scope='module')
def problem():
  model = ViT(3, patch_size=4, width=16, depth=1, num_heads=2)
  sample = jnp.zeros((1, 8, 8, 3))
  adapted = glora_jax.adapt(model, sample, space=glora_jax.SearchSpace(ranks=(2,)))
  params = jax.eval_shape(model.init, jax.random.key(1), sample)['params']
  params = randomized(params, 7, scale=0.4)
  shapes = jax.eval_shape(adapted.init, jax.random.key(0), params)
  variables = {**adapted.init(jax.random.key(0), params)}
  variables['glora'] = randomized(shapes['glora'], 5, scale=0.1)
  genome = draws.random_genomes(np.random.default_rng(0), adapted.spec, 1)[0]

  @jax.jit
  def probabilities(images):
    return jax.nn.softmax(adapted.apply(variables, images, genome=genome))

  return Problem(model, jax.jit(adapted.fold)(variables, genome), probabilities)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """Seven images in a folder and its subfolders, none of them square, and what is none."""
  folder = tmp_path_factory.mktemp('data') / 'photos'
  rng = np.random.default_rng(0)
  (folder / 'inside' / 'deeper').mkdir(parents=True)
  for number, name in enumerate(
    ['b.png', 'a.JPG', 'c.webp', 'inside/a.png', 'inside/b.gif', 'inside/deeper/x.bmp', 'z.tif']
  ):
    colour = rng.choice([0, 255], 3) // 4 * 3
    pixels = colour + rng.integers(0, 64, (3, 2 + number, 3), np.uint8)
    Image.fromarray(pixels.astype(np.uint8)).resize((30 + 9 * number, 21)).save(folder / name)
  (folder / 'notes.txt').write_text('no image')
  (folder / '.hidden.png').write_text('no image')
  return folder


def save(path, problem, format=None, **metadata):
  metadata = {'image_size': 8, 'normalization': 'inception', 'classes': CLASSES, **metadata}
  weights.save(path, problem.model, problem.folded, metadata, format)
  return str(path)


@pytest.fixture(scope='module')
def folded(problem, tmp_path_factory):
  return save(tmp_path_factory.mktemp('model') / 'folded', problem, resize='squash')


def run(capsys, *arguments):
  """(exit code, lines of standard output, standard error)"""
  capsys.readouterr()
  try:
    predict.main([str(argument) for argument in arguments])
    code = 0
  except SystemExit as stopped:
    code = stopped.code
  if isinstance(code, str):  # as the interpreter does with it
    print(code, file=sys.stderr)
    code = 1
  captured = capsys.readouterr()
  return code, captured.out.splitlines(), captured.err


def of_adapted(problem, path, rule='squash', normalization='inception'):
  """Probabilities of the adapted model, whose supports are apart."""
  pixels = image.resize(image.decode(path), 8, rule)
  return np.asarray(problem.probabilities(normalize(pixels[None], normalization)))[0]


def test_images_are_cropped_to_the_share_that_the_checkpoint_says(
  problem, photos, tmp_path, capsys
):
  path = save(tmp_path / 'folded', problem, resize='crop', crop=0.5)
  code, lines, _ = run(capsys, '--model', path, '--json', photos / 'z.tif')
  assert code == 0
  pixels = image.resize(image.decode(photos / 'z.tif'), 8, 'crop', 0.5)
  expected = np.asarray(problem.probabilities(normalize(pixels[None], 'inception')))[0].max()
  np.testing.assert_allclose(json.loads(lines[0])['probability'], expected, atol=1e-5)
  other = of_adapted(problem, photos / 'z.tif', 'crop').max()
  assert abs(other - expected) > 1e-3


@pytest.mark.parametrize(
  'format, rule',
  [('glora_jax', 'crop'), ('hf_vit', 'squash'), ('timm', 'crop'), ('vit_jax', 'squash')],
)
def test_probabilities_are_those_of_the_adapted_model(
  problem, photos, tmp_path, capsys, format, rule
):
  """Of every format that a run's `folded/` may have, which remembers the run's resizing."""
  path = save(tmp_path / 'folded', problem, format, resize=rule)
  code, lines, _ = run(capsys, '--model', path, '--json', photos)
  assert code == 0
  answers = [json.loads(line) for line in lines]
  assert [answer['image'] for answer in answers] == find_images([str(photos)])
  other_rule = 'crop' if rule == 'squash' else 'squash'
  others = []
  for answer in answers:
    expected = of_adapted(problem, answer['image'], rule)
    found = {row['class']: row['probability'] for row in answer['classes']}
    np.testing.assert_allclose([found[name] for name in CLASSES], expected, atol=1e-5)
    assert answer['class'] == CLASSES[expected.argmax()]
    assert answer['probability'] == answer['classes'][0]['probability']
    others.append(of_adapted(problem, answer['image'], other_rule).max())
  assert len({answer['class'] for answer in answers}) > 1
  assert not np.allclose(others, [answer['probability'] for answer in answers], atol=1e-3)


def test_lines_for_people_have_the_most_probable_classes_first(problem, photos, folded, capsys):
  code, lines, errors = run(capsys, '--model', folded, '--top', 2, photos / 'b.png')
  shares = of_adapted(problem, photos / 'b.png')
  first, second, _ = np.argsort(-shares)
  assert (code, errors) == (0, '')
  likeliest = f'{CLASSES[first]} ({100 * shares[first]:.1f}%)'
  next_one = f'{CLASSES[second]} ({100 * shares[second]:.1f}%)'
  assert lines == [f'{photos}/b.png: {likeliest}, {next_one}']


def test_names_of_classes_break_no_line_and_command_no_terminal(problem, photos, tmp_path, capsys):
  path = save(tmp_path / 'folded', problem, classes=['a\nb', '\x1b[2J', 'c'])
  _, lines, _ = run(capsys, '--model', path, photos / 'b.png')
  assert len(lines) == 1
  assert lines[0].isprintable()
  assert r'a\nb (' in lines[0]


def test_an_unreadable_image_is_named_and_the_others_are_answered(photos, folded, tmp_path, capsys):
  broken = tmp_path / 'broken.png'
  broken.write_bytes((photos / 'b.png').read_bytes()[:60])
  alone = run(capsys, '--model', folded, '--json', photos / 'a.JPG', photos / 'b.png')[1]
  code, lines, errors = run(
    capsys,
    '--model',
    folded,
    '--json',
    photos / 'a.JPG',
    broken,
    photos / 'b.png',
    '--batch-size',
    2,
  )
  assert code == 1
  assert [json.loads(line)['class'] for line in lines[::2]] == [
    json.loads(line)['class'] for line in alone
  ]
  assert json.loads(lines[1]).keys() == {'image', 'error'}
  assert f'error: {broken}: not a readable image' in errors
  assert 'error: 1 of 3 images cannot be read; the others were answered.' in errors
  code, lines, _ = run(capsys, '--model', folded, broken)
  assert (code, lines) == (1, [])


def test_the_folder_of_a_run_stands_for_its_folded_model(photos, folded, capsys):
  assert run(capsys, '--model', folded.removesuffix('/folded'), photos) == run(
    capsys, '--model', folded, photos
  )


def test_classes_without_names_are_numbers(problem, photos, tmp_path, capsys):
  path = save(tmp_path / 'model.npz', problem, 'vit_jax')
  code, lines, _ = run(capsys, '--model', path, '--num-heads', 2, photos / 'b.png')
  assert code == 0
  assert lines[0].startswith(f'{photos}/b.png: {of_adapted(problem, photos / "b.png").argmax()} ')


@pytest.mark.parametrize(
  'number, sentence',
  [
    (3, 'width=16 is not a multiple of num_heads=3; choose another'),
    (7, 'width=16 is not a multiple of num_heads=7; choose another'),
    (10**30, f'num_heads={10**30} cannot be; it must be a whole number, 1 to'),
  ],
)
def test_heads_that_do_not_divide_the_width_are_a_sentence(
  photos, folded, capsys, number, sentence
):
  code, lines, errors = run(capsys, '--model', folded, '--num-heads', number, photos / 'b.png')
  assert (code, lines) == (1, [])
  assert f'error: {sentence}' in errors


@pytest.mark.parametrize(
  'option, value, stated',
  [('num_heads', 1, 2), ('normalization', 'clip', 'inception')],
)
def test_an_option_that_says_something_else_than_the_model_is_refused(
  photos, folded, capsys, option, value, stated
):
  flag = f'--{option.replace("_", "-")}'
  code, lines, errors = run(capsys, '--model', folded, flag, value, photos / 'b.png')
  assert (code, lines) == (1, [])
  assert f'says {option}={stated!r}, but {option}={value!r} was given; leave it out' in errors
  alike = run(capsys, '--model', folded, flag, stated, photos / 'b.png')
  assert alike == run(capsys, '--model', folded, photos / 'b.png')


def test_many_images_have_a_bar_on_standard_error(photos, folded, monkeypatch, capsys):
  monkeypatch.setattr(predict, 'MANY', 3)
  _, lines, errors = run(capsys, '--model', folded, photos)
  assert len(lines) == 7
  assert '7/7' in errors


def test_names_of_any_bytes_and_letters_are_answered(photos, folded, tmp_path, capsys, monkeypatch):
  names = [b'\xff.png', 'über.png'.encode(), b'a\x1b[2Jb\n.png']
  for name in names:
    os.link(photos / 'b.png', os.fsencode(tmp_path) + b'/' + name)
  (tmp_path / 'no.png').write_bytes(b'')
  os.rename(tmp_path / 'no.png', os.fsencode(tmp_path) + b'/\xfe.png')
  code, lines, errors = run(capsys, '--model', folded, tmp_path)
  assert (code, len(lines)) == (1, 3)
  assert [line.split(': ')[0].removeprefix(f'{tmp_path}/') for line in lines] == [
    r'a\x1b[2Jb\n.png',
    'über.png',
    r'\udcff.png',
  ]
  assert r'\udcfe.png: not a readable image' in errors
  code, lines, _ = run(capsys, '--model', folded, '--json', tmp_path)
  assert {os.fsencode(os.path.basename(json.loads(line)['image'])) for line in lines} == {
    *names,
    b'\xfe.png',
  }
  ascii_only = io.TextIOWrapper(io.BytesIO(), encoding='ascii')
  monkeypatch.setattr(sys, 'stdout', ascii_only)
  with pytest.raises(SystemExit):
    predict.main(['--model', folded, str(tmp_path)])
  assert rb'\xfcber.png: ' in ascii_only.buffer.getvalue()


def test_a_pipe_and_odd_formats_leave_the_others_answered(photos, folded, tmp_path, capsys):
  os.mkfifo(tmp_path / 'pipe.png')
  Image.open(photos / 'b.png').save(tmp_path / 'icon.png', 'ico')
  (tmp_path / 'link.png').symlink_to('none.png')
  os.link(photos / 'b.png', tmp_path / 'b.png')
  code, lines, errors = run(capsys, '--model', folded, tmp_path)
  assert (code, len(lines)) == (1, 1)
  assert 'pipe.png: not a readable image (it is no regular file)' in errors
  assert 'icon.png: not a readable image (neither BMP' in errors
  assert 'error: 3 of 4 images cannot be read; the others were answered.' in errors


def test_answers_that_are_not_finite_are_no_answers(photos, problem, tmp_path, capsys):
  path = save(tmp_path / 'model', problem, normalization=[[0.5] * 3, [1e-45] * 3])
  code, lines, errors = run(capsys, '--model', path, photos / 'b.png')
  assert (code, lines) == (1, [])
  assert 'answers with numbers that are not finite' in errors


def test_a_disk_that_is_full_is_a_sentence(photos, folded, capsys, monkeypatch):
  with open('/dev/full', 'w') as full:
    monkeypatch.setattr(sys, 'stdout', full)
    with pytest.raises(SystemExit, match=r'error: .*No space left on device'):
      predict.main(['--model', folded, str(photos / 'b.png')])
    monkeypatch.undo()
    with contextlib.suppress(OSError):
      full.close()


@pytest.mark.parametrize(
  'model, images, message',
  [
    ('none/folded', 'b.png', 'There is no model none/folded; give the folder folded/ of a run'),
    ('{photos}', 'b.png', 'There is no checkpoint in the folder'),
    ('{photos}/notes.txt', 'b.png', 'notes.txt is no npz, safetensors or PyTorch file'),
    ('{headless}', 'b.png', 'headless.safetensors has no head, so no classes to choose from'),
    ('{wide}', 'b.png', r'wide is for images of \[8, 16\]; only models of square images'),
    (
      '{unsaid}',
      'b.png',
      'unsaid.safetensors does not say how images are normalized; give normalization, one of',
    ),
    ('{folded}', 'none.png', 'There is no file or folder .*none.png; give images'),
    (
      '{folded}',
      'empty',
      'There are no images in the folder .*empty; an image is a file ending in .jpg',
    ),
  ],
)
def test_wrong_inputs_are_one_sentence(
  problem, photos, folded, tmp_path, capsys, model, images, message
):
  plain, params, _ = problem
  made = {
    'headless': tmp_path / 'headless.safetensors',
    'unsaid': tmp_path / 'unsaid.safetensors',
    'wide': tmp_path / 'wide',
  }
  body = {name: value for name, value in params.items() if name != 'head'}
  known = {'image_size': 8, 'normalization': 'unit'}
  weights.save(made['headless'], plain.clone(num_classes=0), body, known)
  weights.save(made['unsaid'], plain, params, {'image_size': 8})
  wide = {**params, 'pos_embed': np.zeros((1, 9, 16), np.float32)}
  weights.save(made['wide'], plain, wide, {**known, 'image_size': [8, 16]}, 'timm')
  (photos / 'empty').mkdir(exist_ok=True)
  code, lines, errors = run(
    capsys, '--model', model.format(photos=photos, folded=folded, **made), photos / images
  )
  assert (code, lines) == (1, [])
  assert re.search(f'^error: .*{message}', errors)
  assert len(errors.strip().splitlines()) == 1


@pytest.mark.parametrize(
  'arguments, message',
  [
    (('--top', '0'), 'argument --top: 0 must be a whole number above 0'),
    (('--resize', 'stretch'), "'?squash'?, '?crop'?"),  # Python 3.12.8 leaves out the quotes
  ],
)
def test_wrong_arguments_are_explained(photos, folded, capsys, arguments, message):
  code, _, errors = run(capsys, '--model', folded, *arguments, photos)
  assert code == 2
  assert re.search(message, errors)


def test_a_reader_that_has_seen_enough_is_no_error(photos, folded):
  command = f'{sys.executable} -m glora_jax.predict --model {folded} {"b.png " * 600} | head -n 1'
  ran = subprocess.run(
    command,
    shell=True,
    capture_output=True,
    text=True,
    cwd=photos,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
  )
  assert ran.stdout.startswith('b.png: ')
  assert 'Traceback' not in ran.stderr
  assert 'BrokenPipe' not in ran.stderr


def test_a_machine_without_the_device_is_told_in_a_sentence(tmp_path, monkeypatch):
  def no_devices():
    raise AssertionError

  monkeypatch.setattr(jax, 'devices', no_devices)
  Image.new('RGB', (4, 4)).save(tmp_path / 'a.png')
  file, exported = weights.EMBEDDED_FILE, str(tmp_path / 'model.jax_export')
  commands = [(predict.main, ['--model', file, str(tmp_path)]), (convert.main, [file, exported])]
  for main, arguments in commands:
    with pytest.raises(SystemExit, match='error: JAX has no device to compute on'):
      main(arguments)
