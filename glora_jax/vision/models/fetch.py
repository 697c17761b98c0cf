"""Published weights: from an address, a name on the hub or a shortcut to a path here."""

from __future__ import annotations

import os
import string
from typing import NamedTuple

import pooch
import requests

from glora_jax import hub
from glora_jax.checks import printable, shown
from glora_jax.files import first_line
from glora_jax.progress import is_watched
from glora_jax.vision.models.checkpoint import HUB_FILES, digest, hub_name, locate
from glora_jax.vision.models.weights import EMBEDDED, EMBEDDED_FILE

CACHE_VARIABLE = 'GLORA_JAX_CACHE'


class Published(NamedTuple):
  """A published file.

  Attributes:
    url: address of the file.
    normalization: normalization of the images that the model was trained on.
  """

  url: str
  normalization: str


_AUGREG = 'https://storage.googleapis.com/vit_models/augreg'
_HUGGING_FACE = 'https://huggingface.co/facebook/{}/resolve/{}/model.safetensors'

SHORTCUTS = {
  # The base of the official GLoRA (Dosovitskiy et al. 2021, arXiv 2010.11929).
  'in21k-B/16': Published(
    'https://storage.googleapis.com/vit_models/imagenet21k/ViT-B_16.npz', 'inception'
  ),
  # Steiner et al. 2022, arXiv 2106.10270: the checkpoint that big_vision recommends.
  'augreg-B/16': Published(
    f'{_AUGREG}/B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz', 'inception'
  ),
  # Oquab et al. 2023, arXiv 2304.07193; the revisions never change.
  'dinov2-S/14': Published(
    _HUGGING_FACE.format('dinov2-small', 'ed25f3a31f01632728cabb09d1542f84ab7b0056'), 'imagenet'
  ),
  'dinov2-B/14': Published(
    _HUGGING_FACE.format('dinov2-base', 'f9e44c814b77203eaa57a6bdbbd535f21ede1415'), 'imagenet'
  ),
}


def known_normalization(weights: str) -> str | None:
  """The normalization of a shortcut; None for everything else."""
  return SHORTCUTS[weights].normalization if weights in SHORTCUTS else None


def fetch(weights: str, sha256: str | None = None) -> str:
  """The local path of weights, downloaded if they are not there yet.

  pooch keeps the downloads. Each goes to a temporary file, is checked, and only then gets its name,
  so that an interrupted download is never used. A file in the cache with another checksum is
  downloaded again.

  Args:
    weights: a path; an http(s) address (or gs://, of a public bucket), which needs `sha256`;
      `hf:owner/name[@revision]` on the Hugging Face hub (see `glora_jax.hub`), whose folder is
      returned; `timm:NAME` (see `checkpoint.hub_name`); a name in `SHORTCUTS`; or 'embedded', the
      backbone in the package.
    sha256: SHA-256 of the file, or of the one checkpoint in a folder, hexadecimal. It is not known
      for shortcuts; pass it to have the download checked.

  Raises:
    ValueError: the checksum is wrong, missing or not a SHA-256.
    OSError: the path does not exist, or the address cannot be reached; the message names the path
      for a file that is downloaded in another way.
    ImportError: it is on the hub, and `huggingface_hub` is not installed.
  """
  if sha256 is not None:
    if len(sha256) != 64 or set(sha256) - set(string.hexdigits):
      raise ValueError(f'sha256={shown(sha256)} must be a SHA-256, 64 hexadecimal digits.')
    sha256 = sha256.lower()
  is_published = weights in SHORTCUTS
  url = SHORTCUTS[weights].url if is_published else weights
  if url.startswith('gs://'):
    url = 'https://storage.googleapis.com/' + url.removeprefix('gs://')
  if url.startswith(('https://', 'http://')):
    if sha256 is None and not is_published:
      raise ValueError(
        f'{url} needs model.sha256, the SHA-256 from its publisher, to check the download.'
      )
    return _download(url, sha256)
  if hub.is_hub_name(name := hub_name(weights)):
    path = hub.snapshot(name, HUB_FILES)
  else:
    path = EMBEDDED_FILE if weights == EMBEDDED else os.path.expanduser(weights)
  if not os.path.exists(path):
    raise FileNotFoundError(
      f"model.weights='{printable(weights)}' is not a file, a folder, or one of "
      f'{", ".join((EMBEDDED, *SHORTCUTS))}; URLs start with https://, names on the Hugging Face '
      "hub with hf:, and timm's with timm:."
    )
  if sha256 is not None and (found := digest(locate(path))) != sha256:
    raise ValueError(f'{weights} has SHA-256 {found}, expected {sha256}.')
  return path


def path_in_cache(url: str) -> str:
  """The path of an address's download, in $GLORA_JAX_CACHE or the system's cache."""
  folder = os.environ.get(CACHE_VARIABLE) or pooch.os_cache('glora_jax')
  return os.path.join(folder, pooch.utils.unique_file_name(url))


def _download(url: str, sha256: str | None) -> str:
  """The path of an address in the cache."""
  path = path_in_cache(url)
  try:
    return pooch.retrieve(
      url,
      sha256 and f'sha256:{sha256}',
      os.path.basename(path),
      os.path.dirname(path),
      downloader=pooch.HTTPDownloader(progressbar=is_watched(), timeout=30),  # pyrefly: ignore
    )
  except (requests.RequestException, OSError) as error:  # a few of these are also ValueErrors
    reason = first_line(error)
    raise OSError(
      f'{url} could not be downloaded ({reason}). Download the file in another way and put it at '
      f'{path}, or set model.weights to its path.'
    ) from error
  except ValueError as error:  # pooch's error for a wrong checksum
    raise ValueError(
      f'The download from {url} does not have SHA-256 {sha256} and was discarded; check the URL '
      'and the checksum.'
    ) from error
