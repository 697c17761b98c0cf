"""Two tasks of tokens: the mood of sentences as a word, and documentation as free text.

*Mood*: sentences of film reviews of at most 16 tokens, and how people rated them, in five classes
of equal size. A text is a sentence, 'It was', and one of five words. `benchmarks.words.texts` has
the source of the ratings, and its licence.

*Documentation*: what Python prints for `help('for')` and the like (`pydoc_data.topics`, PSF
licence), in pieces of 64 tokens. Topics contain one another, so each paragraph is there once. What
is learned from comes before what is tested on.
"""

import pydoc_data.topics
from typing import Any, NamedTuple

import numpy as np

from benchmarks.words.texts import quantiles, read_ratings

QUESTION = '\nIt was'
ANSWERS = (' terrible', ' bad', ' okay', ' good', ' great')
SENTENCE, LENGTH = 16, 20  # tokens, without the question and with it
TRAIN, VALIDATION, TESTS = 500, 200, 512  # sentences
PIECE, TEST_PIECES = 64, 64  # tokens of a piece; pieces to test on

Arrays = dict[str, np.ndarray]


class Splits(NamedTuple):
  """Examples of a task; all but those to learn from are the same for every seed.

  Attributes:
    train: to learn from.
    validation: to choose rates by.
    test: to test on.
  """

  train: Arrays
  validation: Arrays
  test: Arrays


def mood(tokenizer: Any, seed: int) -> Splits:
  """Sentences with the question: `tokens`, `mask`, `answers`.

  Tokens int32 [sentence, LENGTH] are padded in front, so that the last one is the question's; the
  mask says which are there. Answers int32 [sentence] are indices into `ANSWERS`.
  """
  rated = read_ratings('films')
  question, *ids = tokenizer([QUESTION, *rated]).input_ids
  short = [row for row, found in enumerate(ids) if len(found) <= SENTENCE]
  arrays = padded([ids[row] + question for row in short])
  arrays['answers'] = quantiles(np.array([*rated.values()])[short])
  order = np.random.default_rng(0).permutation(len(short))
  test, validation, rest = np.split(order, [TESTS, TESTS + VALIDATION])
  train = np.random.default_rng(seed).permutation(rest)[:TRAIN]
  return Splits(*(rows_of(arrays, rows) for rows in (train, validation, test)))


def documentation(tokenizer: Any, seed: int) -> Splits:
  """Pieces of documentation: `tokens`, int32 [piece, PIECE]; none to choose by."""
  del seed  # decides the order alone
  topics = pydoc_data.topics.topics
  paragraphs = '\n\n'.join(topics[name] for name in sorted(topics)).split('\n\n')
  ids = tokenizer('\n\n'.join(dict.fromkeys(paragraphs))).input_ids
  number = len(ids) // PIECE
  pieces = {'tokens': np.array(ids[: number * PIECE], np.int32).reshape(number, PIECE)}
  train, test = np.split(np.arange(number), [-TEST_PIECES])
  return Splits(*(rows_of(pieces, rows) for rows in (train, [], test)))


def padded(ids: list[list[int]]) -> Arrays:
  """Token ids of unequal number, padded in front, and which are there: both [text, LENGTH]."""
  tokens, mask = np.zeros((2, len(ids), LENGTH), np.int32)
  for row, found in enumerate(ids):
    tokens[row, LENGTH - len(found) :] = found
    mask[row, LENGTH - len(found) :] = 1
  return {'tokens': tokens, 'mask': mask}


def rows_of(arrays: Arrays, rows: Any) -> Arrays:
  """Some of the examples."""
  return {name: array[rows] for name, array in arrays.items()}
