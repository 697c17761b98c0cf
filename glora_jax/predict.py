"""Classifies images with a plain model.

  python -m glora_jax.predict --model runs/x/folded IMAGE_OR_FOLDER ...

The model is a run's `folded/` (the run's folder works as well), or any checkpoint with a head that
`weights.load` reads, also from the hub (`hf:owner/name`). Folders are searched with all their
subfolders. An image that cannot be decoded is reported on stderr, the others are classified, and
the exit code is 1. `--json` prints one JSON object per line. `--csv FILE` writes a table
instead: for each image its file, the answer, and the probability of each class.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from glora_jax.checks import printable
from glora_jax.errors import MissingPackageError
from glora_jax.progress import progress_bar

try:
  from glora_jax.vision.data import image
  from glora_jax.vision.data.normalization import NORMALIZATIONS
  from glora_jax.vision.files import require_free, write_predictions
  from glora_jax.vision.models.classifier import Classifier, find_images, most_probable
  from glora_jax.vision.runs.processes import require_devices
  from glora_jax.vision.runs.terminal import reported, run_program, user_errors
except MissingPackageError as error:
  sys.exit(f'error: {error}')

SHOWN = 3  # classes per line by default


def main(arguments: Sequence[str] | None = None) -> None:
  """Runs the command.

  Args:
    arguments: command-line arguments; None for those of the process.
  """
  given = _parser().parse_args(arguments)
  logging.basicConfig(format='%(message)s', level=logging.WARNING, stream=sys.stderr)
  with reported(debug=given.debug):
    with user_errors():
      images = find_images(given.images)
      if given.csv is not None:
        require_free(given.csv, given.overwrite, images)
      require_devices()
      classifier = Classifier(
        given.model,
        rule=given.resize,
        normalization=given.normalization,
        num_heads=given.num_heads,
        key=given.key,
      )
    unreadable: list[str] = []
    rows = _answer(classifier, images, given, unreadable)
    if given.csv is None:
      for _ in rows:
        pass
    else:
      write_predictions(given.csv, classifier.classes, rows)
  if unreadable:
    sys.exit(
      f'error: {len(unreadable)} of {len(images)} images cannot be read; '
      'the others were classified.'
    )


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    'python -m glora_jax.predict',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('images', metavar='IMAGE_OR_FOLDER', nargs='+')
  parser.add_argument(
    '--model',
    required=True,
    help='folded/ of a run, or another checkpoint with a head, e.g. hf:owner/name',
  )
  parser.add_argument(
    '--top',
    type=_positive,
    metavar='N',
    help=f'classes per image; {SHOWN} by default, all with --json',
  )
  parser.add_argument('--json', action='store_true', help='print one JSON object per line')
  parser.add_argument('--csv', metavar='FILE', help='write the probabilities of all classes')
  parser.add_argument('--overwrite', action='store_true', help='let --csv replace a file')
  parser.add_argument(
    '--batch-size', type=_positive, default=64, metavar='N', help='images per batch, 64 by default'
  )
  parser.add_argument(
    '--resize',
    choices=image.RULES,
    help="by default the model's rule, or 'squash' if it has none",
  )
  parser.add_argument('--normalization', choices=NORMALIZATIONS, help='if the checkpoint has none')
  parser.add_argument('--num-heads', type=_positive, metavar='N', help='if the checkpoint has none')
  parser.add_argument('--key', help='of the state dict, if a PyTorch file holds several')
  parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
  return parser


def _positive(text: str) -> int:
  if not text.isdecimal() or not int(text):
    raise argparse.ArgumentTypeError(f'{text} must be an integer above 0')
  return int(text)


def _answer(
  classifier: Classifier, images: Sequence[str], given: argparse.Namespace, unreadable: list[str]
) -> Iterator[list[Any]]:
  """The lines of a CSV; prints answers unless a CSV is written.

  Images that cannot be read are added to the list.
  """
  count = given.top or (None if given.json else SHOWN)
  is_printed = given.csv is None
  # On a terminal the answers show the progress; a bar would be between them.
  wanted = not (is_printed and sys.stdout.isatty())
  predictions = classifier(images, batch_size=given.batch_size)
  bar = progress_bar(predictions, total=len(images), unit='image', wanted=wanted)
  for path, outcome in bar:
    if isinstance(outcome, str):
      unreadable.append(path)
      bar.write(f'error: {printable(path)}: {outcome}', file=sys.stderr)
      if given.json:
        print(json.dumps({'image': path, 'error': outcome}))
      yield [path, '', '', *[''] * len(classifier.classes)]
      continue
    best = most_probable(classifier.classes, outcome, count)
    if given.json:
      print(json.dumps({'image': path, **best[0], 'classes': best}))
    elif is_printed:
      answers = ', '.join(f'{row["class"]} ({row["probability"]:.1%})' for row in best)
      print(printable(f'{path}: {answers}'))
    yield [path, '', best[0]['class'], *outcome]


def command() -> None:
  """Runs the command: `glora-predict` or `python -m glora_jax.predict`."""
  run_program(main)


if __name__ == '__main__':
  command()
