"""Files that two splits share, byte for byte: what is learnt from one is no test by the other."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from glora_jax.data.examples import Examples
from glora_jax.data.pipeline import in_parallel
from glora_jax.files import open_regular
from glora_jax.limits import listed, printable

log = logging.getLogger(__name__)

_BySize = Mapping[int, list[str]]  # paths of files by their bytes


class Copy(NamedTuple):
  """Two files with the same bytes."""

  path: str
  original: str


def _find_copies(own: _BySize, by_size: _BySize) -> list[Copy]:
  """Files that have the same bytes as others; those of the same size alone are read.

  Args:
    own: the first are named first; files that cannot be read are passed over.
    by_size: the others.
  """
  own = {size: paths for size, paths in own.items() if size in by_size}
  compared = [path for paths in (*own.values(), *(by_size[size] for size in own)) for path in paths]
  digests = dict(zip(compared, _digests(compared), strict=True))
  found = []
  for size, paths in own.items():
    known = {digests[path]: path for path in reversed(by_size[size])}
    found += [Copy(path, known[digests[path]]) for path in paths if digests[path] in known]
  return [copy for copy in found if digests[copy.path] is not None]


def warn_of_copies(name: str, splits: Mapping[str, Examples]) -> None:
  """Says which splits of a task share files, each with those before it.

  Args:
    name: name of the task.
    splits: examples by split; first those that are learnt from.
  """
  by_size = {split: _by_size(examples) for split, examples in splits.items()}
  for earlier, later in itertools.combinations(splits, 2):
    if copies := _find_copies(by_size[later], by_size[earlier]):
      folder = os.path.commonpath([os.path.dirname(path) for copy in copies for path in copy])
      pairs = listed(' is '.join(os.path.relpath(path, folder) for path in copy) for copy in copies)
      log.warning(
        '%s: %d images of %s are in %s, too, byte for byte; what they say of new images is too '
        'good, so remove them from one of the two. In %s %s.',
        *(name, len(copies), later, earlier, printable(folder), pairs),
      )


def _by_size(examples: Examples) -> _BySize:
  """Paths of the examples' files by their bytes; examples that are no files are passed over."""
  found = collections.defaultdict(list)
  for index in range(len(examples.labels)):
    path = examples.file(index)
    if path is not None:
      with contextlib.suppress(OSError):
        found[os.stat(path).st_size].append(os.path.abspath(path))
  return found


def _digests(paths: Sequence[str]) -> list[bytes | None]:
  """Digests of the files; None where one cannot be read."""

  def digest(index: int) -> bytes | None:
    try:
      with open_regular(paths[index]) as file:
        return hashlib.file_digest(file, 'blake2b').digest()
    except OSError:
      return None

  return in_parallel(digest, len(paths), 'comparing images of the same size')
