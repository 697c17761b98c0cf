"""The examples of a prepared TFDS data set: labels read once, images decoded when asked for."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from glora_jax.data.image import decode, from_array
from glora_jax.files import write_arrays
from glora_jax.records import read_if_whole

log = logging.getLogger(__name__)

Example = Mapping[str, Any]  # the features of one example, as TFDS gives them
LabelFunction = Callable[[Example], int]

FEWEST_REMEMBERED = 10_000  # examples whose labels are remembered, and read with a progress bar
_LABELS = 'labels'  # kind of the file that remembers
_READ_AT_ONCE = 256  # examples whose labels are read together, images and all
_LONGEST_QUOTE = 200  # characters of a TFDS error that a sentence of ours repeats


class DataSource(Protocol):
  """What TFDS's `as_data_source` returns."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...

  def __getitems__(self, indices: Sequence[int]) -> Sequence[Example]: ...


def quote(error: Exception) -> str:
  """The first line of an error, cut off where it is long."""
  lines = str(error).strip().splitlines()
  return lines[0][:_LONGEST_QUOTE] if lines else type(error).__name__


@dataclasses.dataclass(frozen=True)
class LabelFeature:
  """A label that is an integer feature of the example, or a bin of its values.

  Attributes:
    feature: name of the feature.
    bin_size: neighbouring values that are one class.

  Example:
    >>> LabelFeature('label_x_position', bin_size=2)({'label_x_position': 7})
    3
  """

  feature: str = 'label'
  bin_size: int = 1

  def __call__(self, example: Example) -> int:
    """The class of an example."""
    return int(example[self.feature]) // self.bin_size


@dataclasses.dataclass
class TfdsExamples:
  """Examples of a prepared TFDS data set, images left encoded until they are asked for.

  Attributes:
    source: what TFDS's `as_data_source` returns.
    identity: see `Examples`.
    label_of: function from the features of an example to its class.
    scale: factor from the stored values of an image to pixels.
    record: path of the npz file that remembers the labels of many examples; None for none.
  """

  source: DataSource
  identity: str
  label_of: LabelFunction = LabelFeature()
  scale: int = 1
  record: str | None = None

  @functools.cached_property
  def labels(self) -> np.ndarray:
    """The class of every example, int32 [n]; the first use reads all examples."""
    number = len(self.source)
    if self.record is None or number < FEWEST_REMEMBERED:
      return self._read_labels()
    labels = (read_if_whole(self.record, _LABELS) or {}).get('labels')
    if labels is not None and labels.dtype == np.int32 and labels.shape == (number,):
      return labels
    labels = self._read_labels()
    try:
      write_arrays(self.record, {'labels': labels}, _LABELS)
    except OSError as error:  # a data set that is shared, and cannot be written
      log.info('Labels are read again at every start: %s', error)
    return labels

  def image(self, index: int) -> Image.Image:
    """The image as RGB."""
    return self._decode(index)

  def check(self, index: int) -> None:
    """Decodes a draft of the image."""
    self._decode(index, draft=True)

  def state(self, index: int) -> str:
    """The name: what is prepared does not change."""
    return self.name(index)

  def name(self, index: int) -> str:
    """The position in the data set."""
    return f'example {index} of {self.identity}'

  def file(self, index: int) -> None:
    """None: a file holds many examples."""
    del index

  def _read_labels(self) -> np.ndarray:
    number = len(self.source)
    labels = np.empty(number, np.int32)
    is_short = number < FEWEST_REMEMBERED
    with tqdm(total=number, desc='reading labels', unit='example', disable=is_short) as bar:
      for start in range(0, number, _READ_AT_ONCE):
        indices = range(start, min(start + _READ_AT_ONCE, number))
        labels[indices] = [self.label_of(features) for features in self._features_of(indices)]
        bar.update(len(indices))
    return labels

  def _decode(self, index: int, draft: bool = False) -> Image.Image:
    stored = self._features(index)['image']
    image = from_array(stored) if isinstance(stored, np.ndarray) else decode(stored, draft=draft)
    if self.scale == 1:
      return image
    return Image.fromarray(np.asarray(image) * np.uint8(self.scale))

  def _features_of(self, indices: range) -> Iterable[Example]:
    try:
      return self.source.__getitems__(indices)
    except Exception:  # one of them cannot be read, and is named where it is read alone
      return map(self._features, indices)

  def _features(self, index: int) -> Example:
    try:
      return self.source[index]
    except Exception as error:  # array_record and TFDS's parser each have their own
      raise OSError(
        f'{self.name(index)} cannot be read ({quote(error)}); remove the folder of the data set, '
        'and it is prepared again.'
      ) from error
