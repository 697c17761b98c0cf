"""Images and folders of them that are damaged or odd: every image once, or one line."""

import os

import hypothesis.strategies as st
import numpy as np
from hypothesis import given
from judging import REFUSED, cases, judged, new_place
from label_lists import encoded
from PIL import Image
from spoiling import spoil

from glora_jax.vision.data import image
from glora_jax.vision.data.catalog import find
from glora_jax.vision.data.pipeline import Images, open_images

STARTS = (b'BM', b'GIF8', b'\xff\xd8', b'\x89PNG', b'P', b'II', b'MM', b'RIFF')
NAMES = ('a', 'b', 'train', 'test', 'Train', '.hidden', 'ü,', 'a\nb\x1b[2J', '\udcff', '~')
PICTURE = Image.fromarray(np.arange(77, dtype=np.uint8).reshape(7, 11))
PICTURE = Image.fromarray(np.arange(77, dtype=np.uint8).reshape(7, 11))
TOPS = (['a', 'b'], ['train', 'val', 'test'], ['Train', 'test'], ['train', 'bus'])


@cases(1)
@given(st.data())
def test_an_image_is_decoded_or_refused(data):
  mode = data.draw(st.sampled_from(['RGB', 'L', '1', 'P', 'RGBA', 'CMYK', 'F']))
  format = data.draw(st.sampled_from([*image.FORMATS, 'EPS', 'TGA']))
  try:
    content = encoded(PICTURE.convert(mode), format)
  except (OSError, ValueError, KeyError):  # not every format has every mode
    content = encoded(PICTURE)
  size, share = data.draw(st.integers(1, 32)), data.draw(st.sampled_from((None, image.CROP)))
  with new_place() as place:
    path = place.given / f'image{data.draw(st.sampled_from(image.EXTENSIONS))}'
    path.write_bytes(content)
    if data.draw(st.integers(0, 4)):
      spoil(data.draw, path)
    pixels = judged(lambda: image.resize(image.decode(str(path)), size, share), place)
    draft = judged(lambda: np.asarray(image.decode(str(path), draft=True)), place)
    assert (draft is REFUSED) == (pixels is REFUSED)
    if pixels is not REFUSED:
      assert (pixels.shape, pixels.dtype) == ((size, size, 3), np.uint8)
      assert path.read_bytes().startswith(STARTS)


def decoded_task(name, work):
  """All splits of a task after every image was read; each that can be decoded is there once."""
  options = {'skip_broken': True, 'cache': str(work / 'cache'), 'folder': str(work)}
  open_images(Images(find(name), 4), ('train',), **options)
  task = find(name)
  splits, seen = {}, []
  for split in task.splits:
    examples = task.open(split)
    names = [examples[index].path for index in range(len(examples.labels))]
    assert examples.labels.max() < task.num_classes
    splits[split], seen = [names, examples.labels], seen + names
  assert len({os.path.normpath(name) for name in seen}) == len(seen), 'an image is there twice'
  return splits


def odd_tree(draw, folder):
  """A folder of classes or splits, with a few links, FIFOs and damaged files."""
  for top in draw(
    st.sampled_from(TOPS) | st.lists(st.sampled_from(NAMES), max_size=5, unique=True)
  ):
    for name in ('a', 'b') if top.lower() in ('train', 'val', 'test') else ('',):
      inner = folder / top / name
      inner.mkdir(parents=True, exist_ok=True)
      for number in range(draw(st.integers(3, 6))):
        path = inner / f'{number}{draw(st.sampled_from([".png", ".JPG", ".txt"]))}'
        path.write_bytes(encoded(PICTURE))
        if draw(st.integers(0, 19)) == 19:
          spoil(draw, path)


@cases(0.5)
@given(st.data())
def test_a_folder_gives_every_image_once_or_is_refused(data):
  with new_place() as place:
    photos = place.given / 'photos'
    photos.mkdir()
    odd_tree(data.draw, photos)
    work = place.work.with_name('other')  # a run takes back what `find` wrote
    splits = judged(lambda: decoded_task(f'folder:{photos}', work), place)
    if splits is not REFUSED:
      assert splits.keys() == {'train', 'val', 'test'}
