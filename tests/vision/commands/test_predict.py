"""The command for what comes after a run.

Its answers are those of the adapted model, whatever the format; wrong inputs are one sentence.
"""

import csv
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import ROOT
from trees import randomized

import glora_jax
from glora_jax import predict
from glora_jax.vision.data import image
from glora_jax.vision.data.normalization import normalize
from glora_jax.vision.models import weights
from glora_jax.vision.models.classifier import find_images
from glora_jax.vision.models.vit import ViT

CLASSES = ['a cat', 'a dog', '100 % "other", über']


@pytest.fixture(scope='module')
def problem():
  """(model, parameters with a structure folded in, probabilities by the supports apart)."""
  model = ViT(3, patch_size=4, width=16, depth=1, num_heads=2)
  sample = jnp.zeros((1, 8, 8, 3))
  adapted = glora_jax.adapt(model, sample, structure='scale_shift_lora:2')
  shapes = jax.eval_shape(model.init, jax.random.key(1), sample)['params']
  variables = {**adapted.init(jax.random.key(0), randomized(shapes, 7, scale=0.4))}
  variables['glora'] = randomized(variables['glora'], 5, scale=0.1)

  @jax.jit
  def probabilities(images):
    return jax.nn.softmax(adapted.apply(variables, images))

  return model, jax.jit(adapted.fold)(variables), probabilities


def save(path, problem, format=None, **metadata):
  metadata = {'image_size': 8, 'normalization': 'inception', 'classes': CLASSES, **metadata}
  weights.save(path, *problem[:2], metadata, format)
  return str(path)


@pytest.fixture(scope='module')
def folded(problem, tmp_path_factory):
  return save(tmp_path_factory.mktemp('model') / 'folded', problem, resize='squash')


@pytest.fixture
def ask(capsys):
  """A function of a model and other arguments: exit code, lines of output, errors."""

  def run(model, *arguments):
    capsys.readouterr()
    code = 0
    try:
      predict.main(['--model', *map(str, (model, *arguments))])
    except SystemExit as stopped:
      code = stopped.code
    captured = capsys.readouterr()
    # A sentence as the code is printed by the interpreter.
    code, sentence = (1, code) if isinstance(code, str) else (code, '')
    return code, captured.out.splitlines(), captured.err + sentence

  return run


def of_adapted(problem, path, share=None):
  """Probabilities of the adapted model, whose supports are apart."""
  pixels = image.resize(image.decode(path), 8, share)
  return np.asarray(problem[2](normalize(pixels[None], 'inception')))[0]


@pytest.mark.parametrize(
  'format, known, share',
  [
    ('glora_jax', {'resize': 'crop', 'crop': 0.5}, 0.5),
    ('hf_vit', {'resize': 'squash'}, None),
    ('timm', {'resize': 'crop'}, image.CROP),
  ],
)
def test_probabilities_are_those_of_the_adapted_model(
  problem, photos, tmp_path, ask, format, known, share
):
  """Of every format that a run's `folded/` may have, which remembers the run's resizing."""
  path = save(tmp_path / 'folded', problem, format, **known)
  code, lines, _ = ask(path, '--json', photos)
  assert code == 0
  answers = [json.loads(line) for line in lines]
  assert [answer['image'] for answer in answers] == find_images([str(photos)])
  for answer in answers:
    expected = of_adapted(problem, answer['image'], share)
    found = {row['class']: row['probability'] for row in answer['classes']}
    np.testing.assert_allclose([found[name] for name in CLASSES], expected, atol=1e-5)
    assert answer['class'] == CLASSES[expected.argmax()]
    assert answer['probability'] == answer['classes'][0]['probability']
  assert len({answer['class'] for answer in answers}) > 1


def test_lines_for_people_have_the_most_probable_classes_first(problem, photos, folded, ask):
  shares = of_adapted(problem, photos / 'b.png')
  best = ', '.join(f'{CLASSES[n]} ({100 * shares[n]:.1f}%)' for n in np.argsort(-shares)[:2])
  arguments = '--top', 2, '--normalization', 'inception', photos / 'b.png'
  assert ask(folded, *arguments) == (0, [f'{photos}/b.png: {best}'], '')


def test_an_unreadable_image_is_named_and_the_others_are_answered(photos, folded, tmp_path, ask):
  broken = tmp_path / 'broken.png'
  broken.write_bytes((photos / 'b.png').read_bytes()[:60])
  first, last = photos / 'a.JPG', photos / 'b.png'
  alone = map(json.loads, ask(folded, '--json', first, last)[1])
  code, lines, errors = ask(folded, '--json', first, broken, last, '--batch-size', 2)
  assert code == 1
  one, failed, other = map(json.loads, lines)
  assert [one['class'], other['class']] == [answer['class'] for answer in alone]
  assert failed.keys() == {'image', 'error'}
  assert f'error: {broken}: not a readable image' in errors
  assert 'error: 1 of 3 images cannot be read; the others were classified.' in errors
  assert ask(folded, broken)[:2] == (1, [])


def test_a_table_has_the_probabilities_of_every_class_and_a_line_for_what_is_broken(
  photos, folded, tmp_path, ask
):
  broken, table = tmp_path / 'broken.png', tmp_path / 'table.csv'
  broken.write_bytes(b'')
  images = photos / 'a.JPG', broken, photos / 'b.png'
  expected = [json.loads(line) for line in ask(folded, '--json', *images)[1]]
  code, printed, errors = ask(folded, '--csv', table, *images, '--batch-size', 2)
  assert (code, printed) == (1, [])
  assert '1 of 3 images' in errors
  with open(table, newline='', encoding='utf-8') as file:
    rows = [*csv.DictReader(file)]
  assert [row['file'] for row in rows] == [str(image) for image in images]
  for row, answer in zip(rows, expected, strict=True):
    shares = {
      each['class']: str(np.float32(each['probability'])) for each in answer.get('classes', ())
    }
    assert row == {'file': answer['image'], 'label': '', 'answer': answer.get('class', '')} | (
      shares or dict.fromkeys(CLASSES, '')
    )
  before = table.read_bytes()
  code, _, errors = ask(folded, '--csv', table, photos / 'b.png')
  assert code == 1
  assert 'table.csv already exists; choose another path, or pass --overwrite' in errors
  assert table.read_bytes() == before
  assert ask(folded, '--csv', table, photos / 'b.png', '--overwrite') == (0, [], '')
  assert len(table.read_text().splitlines()) == 2


def test_classes_without_names_are_numbers(problem, photos, tmp_path, ask):
  path = save(tmp_path / 'model.safetensors', problem, 'timm')
  code, [line], _ = ask(path, '--num-heads', 2, photos / 'b.png')
  assert code == 0
  assert line.startswith(f'{photos}/b.png: {of_adapted(problem, photos / "b.png").argmax()} ')


def test_names_of_any_bytes_and_letters_are_answered(problem, photos, tmp_path, ask):
  names = [b'\xff.png', 'über.png'.encode(), b'a\x1b[2Jb\n.png']
  for name in names:
    os.link(photos / 'b.png', os.fsencode(tmp_path) + b'/' + name)
  folded = save(tmp_path / 'folded', problem, classes=['a\nb', '\x1b[2J', 'c'])
  code, lines, _ = ask(folded, tmp_path)
  assert code == 0
  assert all(map(str.isprintable, lines))
  found = [line.split(': ')[0].removeprefix(f'{tmp_path}/') for line in lines]
  assert found == [r'a\x1b[2Jb\n.png', 'über.png', r'\udcff.png']


def test_wrong_inputs_are_named(problem, photos, folded, tmp_path, ask, monkeypatch):
  model, params, _ = problem
  headless = model.clone(num_classes=0), {name: params[name] for name in params if name != 'head'}
  wide = model, {**params, 'pos_embed': np.zeros((1, 9, 16), np.float32)}
  (tmp_path / 'half').mkdir()
  (tmp_path / 'half' / 'images.csv').touch()
  monkeypatch.chdir(photos)
  for place, arguments, code, named in (
    ('none/folded', [], 1, 'none/folded'),
    (save(tmp_path / 'headless', headless, classes=[]), [], 1, 'headless'),
    (save(tmp_path / 'wide', wide, 'timm', image_size=[8, 16]), [], 1, '[8, 16]'),
    (save(tmp_path / 'dark', problem, normalization=[[0.5] * 3, [1e-45] * 3]), [], 1, 'not finite'),
    (str(tmp_path / 'half'), [], 1, 'expected folded/ of a finished run'),
    (folded, ['none.png'], 1, 'none.png'),
    (folded, ['b.png', '--top', '0'], 2, '--top: 0'),
  ):
    ended, lines, errors = ask(place, *(arguments or ['b.png']))
    assert (ended, lines) == (code, [])
    assert named in errors.splitlines()[-1]


def test_a_reader_that_has_seen_enough_is_no_error(photos, folded):
  command = f'{sys.executable} -m glora_jax.predict --model {folded} {"b.png " * 600} | head -n 1'
  env = {**os.environ, 'PYTHONPATH': str(ROOT)}
  ran = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=photos, env=env)
  assert ran.stdout.startswith('b.png: ')
  assert not re.search('Traceback|BrokenPipe', ran.stderr)
