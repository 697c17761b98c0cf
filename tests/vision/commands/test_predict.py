"""The command for what comes after a run.

Its answers are those of the adapted model, whatever the format; wrong inputs are one sentence.
"""

import csv
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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
  answers = [json.loads(line) for line in lines]
  assert code == 0
  assert [answer['image'] for answer in answers] == find_images([str(photos)])
  for answer in answers:
    expected = of_adapted(problem, answer['image'], share)
    found = {row['class']: row['probability'] for row in answer['classes']}
    np.testing.assert_allclose([found[name] for name in CLASSES], expected, atol=1e-5)
    assert answer['class'] == answer['classes'][0]['class'] == CLASSES[expected.argmax()]
    assert answer['probability'] == max(found.values())
  assert len({answer['class'] for answer in answers}) > 1


@pytest.fixture
def images(photos, tmp_path):
  """Two images, and a broken one between them."""
  (tmp_path / 'broken.png').write_bytes((photos / 'b.png').read_bytes()[:60])
  return photos / 'a.JPG', tmp_path / 'broken.png', photos / 'b.png'


def test_lines_for_people_have_the_most_probable_classes_first(problem, photos, folded, ask):
  shares = of_adapted(problem, photos / 'b.png')
  best = ', '.join(f'{CLASSES[n]} ({100 * shares[n]:.1f}%)' for n in np.argsort(-shares)[:2])
  arguments = '--top', 2, '--normalization', 'inception', photos / 'b.png'
  assert ask(folded, *arguments) == (0, [f'{photos}/b.png: {best}'], '')


def test_an_unreadable_image_is_named_and_the_others_are_answered(images, folded, ask):
  alone = map(json.loads, ask(folded, '--json', images[0], images[2])[1])
  code, lines, errors = ask(folded, '--json', *images, '--batch-size', 2)
  assert code == 1
  one, failed, other = map(json.loads, lines)
  assert [one['class'], other['class']] == [answer['class'] for answer in alone]
  assert failed.keys() == {'image', 'error'}
  assert f'error: {images[1]}: not a readable image' in errors
  assert 'error: 1 of 3 images cannot be read; the others were classified.' in errors


def test_a_table_has_the_probabilities_of_every_class_and_a_line_for_what_is_broken(
  images, folded, tmp_path, ask
):
  table = tmp_path / 'table.csv'
  answers = [json.loads(line) for line in ask(folded, '--json', *images)[1]]
  code, printed, errors = ask(folded, '--csv', table, *images, '--batch-size', 2)
  assert (code, printed) == (1, [])
  assert '1 of 3 images' in errors
  with open(table, newline='', encoding='utf-8') as file:
    rows = [*csv.DictReader(file)]
  for row, answer in zip(rows, answers, strict=True):
    shares = {each['class']: each['probability'] for each in answer.get('classes', ())}
    assert (row['file'], row['answer']) == (answer['image'], answer.get('class', ''))
    found = {name: np.float32(row[name]) for name in CLASSES if row[name]}
    assert found == {name: np.float32(share) for name, share in shares.items()}
  before = table.read_bytes()
  code, _, errors = ask(folded, '--csv', table, images[0])
  assert code == 1
  assert 'table.csv already exists' in errors
  assert table.read_bytes() == before
  assert ask(folded, '--csv', table, images[0], '--overwrite') == (0, [], '')
  assert table.read_bytes() != before


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
  half = tmp_path / 'half'
  half.mkdir()
  (half / 'images.csv').touch()
  dark = save(tmp_path / 'dark', problem, normalization=[[0.5] * 3, [1e-45] * 3])
  monkeypatch.chdir(photos)
  for words, named in (
    (['none/folded', 'b.png'], 'none/folded'),
    ([save(tmp_path / 'headless', headless, classes=[]), 'b.png'], 'headless'),
    ([save(tmp_path / 'wide', wide, 'timm', image_size=[8, 16]), 'b.png'], '[8, 16]'),
    ([dark, 'b.png'], 'not finite'),
    ([half, 'b.png'], 'expected folded/ of a finished run'),
    ([folded, 'none.png'], 'none.png'),
    ([folded, 'b.png', '--top', '0'], '--top: 0'),
  ):
    ended, lines, errors = ask(*words)
    assert (ended, lines) == (2 if '--top' in words else 1, [])
    assert named in errors.splitlines()[-1]
