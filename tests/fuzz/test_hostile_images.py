"""Images, folders of them and CSVs that are damaged or odd: every image once, or one line."""

import csv
import io
import os

import hypothesis.strategies as st
import numpy as np
from hypothesis import given
from judging import REFUSED, cases, judged, new_place, same
from PIL import Image
from spoiling import damaged, odd_place, spoil

from glora_jax.data import image, pipeline
from glora_jax.data.catalog import canonical, expand, find
from glora_jax.data.image_check import with_readable_images

MODES = ('RGB', 'L', '1', 'P', 'RGBA', 'CMYK', 'I;16', 'F', 'I', 'LA', 'LAB', 'YCbCr')
FOREIGN = ('EPS', 'PDF', 'ICO', 'TGA', 'DDS', 'PCX')  # which no decoder may look at
STARTS = (b'BM', b'GIF8', b'\xff\xd8', b'\x89PNG', b'P', b'II', b'MM', b'RIFF')
NAMES = (
  *('a', 'b', 'train', 'val', 'test', 'Train', 'valid', '.hidden', 'x y', 'ü', 'a,b', 'e\u0301'),
  *('$x_', '-x', 'x' * 250, 'a\nb', 'c\x1b[2J', '\udcff\udcfe', '~', '%s', '{x}'),
)
TOPS = (['a', 'b'], ['train', 'val', 'test'], ['train'], ['Train', 'test'], ['train', 'bus'])
CELLS = (
  *('a/0.png', './a/0.png', 'a//0.png', 'a/../a/0.png', 'none.png', 'a', '', 'path', 'label', '"'),
  *('""', 'x,y', ' ', '\ufeff', '1', '²', '-1', '9' * 5000, 'cat', '\0', '\r', 'ü', '/dev/null'),
  'x' * 140_000,
)
PIECES = (
  *('digits/', 'vtab', 'cifar100', '/', ':', 'folder', 'csv', 'tfds', 'fewshot', '4', '²', '..'),
  *('\0', '\n', ' ', 'all', 'x' * 300, '~', '-1', '9' * 5000, '\ud800'),
)


def encoded(draw):
  """An image file of any size from 1 to 40, mode and format."""
  rng = np.random.default_rng(draw(st.integers(0, 1000)))
  pixels = rng.integers(0, 256, (*rng.integers(1, 40, 2), 3)).astype(np.uint8)
  mode, file = draw(st.sampled_from(MODES)), io.BytesIO()
  try:
    if mode == 'I;16':
      picture = Image.fromarray(256 * pixels[..., 0].astype(np.uint16))
    else:
      picture = Image.fromarray(pixels).convert('L' if mode in 'IF' else 'RGB').convert(mode)
    picture.save(file, draw(st.sampled_from((*image.FORMATS, *FOREIGN))))
  except (OSError, ValueError, KeyError):  # not every format has every mode
    return encoded_as_png(pixels)
  return file.getvalue()


def encoded_as_png(pixels):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'PNG')
  return file.getvalue()


PNG = encoded_as_png(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))


@cases(1)
@given(st.data())
def test_an_image_is_decoded_or_refused(data):
  content = encoded(data.draw)
  if data.draw(st.integers(0, 4)):
    content = data.draw(damaged(content))
  size, rule = data.draw(st.sampled_from([1, 8, 32])), data.draw(st.sampled_from(image.RULES))
  with new_place() as place:
    path = place.given / f'image{data.draw(st.sampled_from(image.EXTENSIONS))}'
    path.write_bytes(content)
    pixels = judged(lambda: image.resize(image.decode(str(path)), size, rule), place)
  if pixels is not REFUSED:
    assert (pixels.shape, pixels.dtype) == ((size, size, 3), np.uint8)
    assert content.startswith(STARTS)
    assert same(pixels, image.resize(image.decode(content), size, rule))
    image.decode(content, draft=True)


def write_classes(folder):
  """Five images of each of two classes."""
  for name in 'ab':
    (folder / name).mkdir(parents=True)
    for number in range(5):
      (folder / name / f'{number}.png').write_bytes(PNG)


def read_task(name, work):
  """All splits of a task, with the images that can be decoded, each of which must be there once."""
  task = find(name, workdir=str(work))
  splits, seen = {}, []
  for split in task.splits:
    examples = task.open(split)
    names = [examples.name(index) for index in range(len(examples.labels))]
    assert examples.labels.max() < task.num_classes
    splits[split], seen = [names, examples.labels], seen + names
  assert len({os.path.normpath(name) for name in seen}) == len(seen), 'an image is there twice'
  return splits


def decoded_task(name, work):
  """The same after a look at every image, of which those that are broken are left out."""
  try:
    task = find(name, workdir=str(work))
    record, cache = str(work / 'images.npz'), str(work / 'cache')
    readable = with_readable_images(task, record, skip_broken=True)
    return {
      split: [np.asarray(array) for array in pipeline.load(readable.open(split), 4, cache=cache)]
      for split in readable.splits
    }
  except (OSError, ValueError):  # a run takes back what `find` wrote, and nothing else
    for written in ('split.json', ''):
      path = work / written
      if path.is_dir() and not any(path.iterdir()):
        path.rmdir()
      elif path.is_file():
        path.unlink()
    raise


def odd_tree(draw, folder):
  """A folder of classes or splits, with a few links, FIFOs and damaged files."""
  tops = draw(st.sampled_from([*TOPS, None])) or draw(st.lists(st.sampled_from(NAMES), max_size=5))
  for top in tops:
    is_split = top.lower() in ('train', 'val', 'test')
    for name in ('a', 'b') if is_split else ('',):
      inner = folder / top / name
      for number in range(draw(st.integers(3, 6))):
        ending = draw(st.sampled_from(['.png'] * 9 + ['.JPG', '.txt', '\udcff.png']))
        path = inner / f'{number}{ending}'
        os.makedirs(inner, exist_ok=True)
        path.write_bytes(PNG)
        if draw(st.integers(0, 19)) == 19:
          spoil(draw, path)
  if draw(st.integers(0, 9)) == 9 and (folder / 'a').is_dir():
    (folder / 'again').symlink_to(folder / 'a')


@cases(0.5)
@given(st.data())
def test_a_folder_gives_every_image_once_or_is_refused(data):
  with new_place() as place:
    photos = place.given / 'photos'
    photos.mkdir()
    odd_tree(data.draw, photos)
    name = f'folder:{photos}'
    if judged(lambda: decoded_task(name, place.work), place) is not REFUSED:
      splits = read_task(name, place.work)
      inside = os.path.realpath(photos)
      paths = [path for paths, _ in splits.values() for path in paths]
      assert splits.keys() == {'train', 'val', 'test'}
      assert all(os.path.realpath(os.path.dirname(path)).startswith(inside) for path in paths)


@cases(0.4)
@given(st.data())
def test_what_a_workdir_remembers_of_images_changes_none(data):
  with new_place() as place:
    write_classes(place.given / 'photos')
    name = f'folder:{place.given / "photos"}'
    expected = decoded_task(name, place.work)
    images = sorted(path for paths, _ in read_task(name, place.work).values() for path in paths)
    remembered = [path for path in place.work.rglob('*') if path.is_file()]
    remembered.sort(key=lambda path: path.stat().st_size)  # names of the cache are digests
    path = data.draw(st.sampled_from(remembered))
    spoil(data.draw, path)
    is_split = path.name == 'split.json'  # who edits it may move images from split to split
    result = judged(lambda: decoded_task(name, place.work) if not is_split else None)
    try:
      splits = read_task(name, place.work)
    except (OSError, ValueError):
      return
    assert sorted(path for paths, _ in splits.values() for path in paths) == images
    assert is_split or result is REFUSED or same(result, expected)


def csv_text(draw):
  """The lines of a CSV of ten images, a few of them odd."""
  rows = [f'{name}/{number}.png,{name}' for name in 'ab' for number in range(5)]
  for _ in range(draw(st.integers(0, 3))):
    at, cell = draw(st.integers(0, len(rows) - 1)), draw(st.sampled_from(CELLS))
    match draw(st.sampled_from(['replaced', 'again', 'path', 'label', 'removed', 'sign'])):
      case 'replaced':
        rows[at] = ','.join(draw(st.lists(st.sampled_from(CELLS), max_size=4)))
      case 'again':
        rows.insert(at, draw(st.sampled_from(rows)))
      case 'path' | 'label' as which:
        path, _, label = rows[at].rpartition(',')
        rows[at] = f'{cell},{label}' if which == 'path' else f'{path},{cell}'
      case 'removed':
        del rows[at]
      case 'sign':
        rows[at] = rows[at].replace(draw(st.sampled_from([',', '/', '.', 'a'])), cell, 1)
  header = draw(st.sampled_from(['path,label', 'label,path', 'Path, Label', 'file,class', None]))
  return draw(st.sampled_from(['\n', '\r\n', '\r'])).join(([header] if header else []) + rows)


def rows_of(content):
  """How many rows hold something, as Python reads them, without their header."""
  text = io.StringIO(content.decode('utf-8-sig'), newline='')
  rows = [[cell.strip().lower() for cell in row] for row in csv.reader(text) if any(row)]
  return len(rows) - (bool(rows) and {'path', 'label'} <= set(rows[0]))


@cases(0.8)
@given(st.data())
def test_a_csv_gives_every_row_once_or_is_refused(data):
  encoding = data.draw(st.sampled_from(['utf-8'] * 6 + ['utf-8-sig', 'utf-16', 'latin-1']))
  content = csv_text(data.draw).encode(encoding, errors='replace')
  if data.draw(st.integers(0, 4)) == 4:
    content = data.draw(damaged(content))
  with new_place() as place:
    write_classes(place.given / 'photos')
    path = place.given / 'photos' / 'labels.csv'
    path.write_bytes(content)
    splits = judged(lambda: read_task(f'csv:{path}', place.work), place)
    if splits is not REFUSED:
      assert sum(len(names) for names, _ in splits.values()) == rows_of(content)
      other = f'csv:{os.path.relpath(path)}'
      assert canonical(other) == f'csv:{path}'
      assert same(read_task(other, place.work), splits)


@cases(0.4)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=6))
def test_the_name_of_a_task_is_taken_or_refused(pieces):
  with new_place() as place:
    name = ''.join(pieces)
    judged(lambda: [expand(name), find(expand(name)[0]).name], place)


@cases(0.1)
@given(st.data())
def test_what_is_not_a_file_in_the_place_of_an_image_is_refused_at_once(data):
  with new_place() as place:
    odd_place(data.draw, place.given / 'x.png')
    assert judged(lambda: image.decode(str(place.given / 'x.png')), place, limit=5) is REFUSED
