"""Files by their name on the Hugging Face hub: `hf:owner/name`, or `hf:owner/name@revision`.

The package `huggingface_hub` does the work, with its own cache, endpoint and offline mode
(`$HF_HOME`, `$HF_ENDPOINT`, `$HF_HUB_OFFLINE`). Only safetensors files are read.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple, TypeGuard

from glora_jax.checks import shown
from glora_jax.files import Path, load_json

log = logging.getLogger(__name__)

PREFIX = 'hf:'
_PART = r'[A-Za-z0-9][A-Za-z0-9._-]*'
_NAME = re.compile(rf'{PREFIX}({_PART}/{_PART})(?:@([\w./-]+))?')


class HubName(NamedTuple):
  """A repository on the hub.

  Attributes:
    repository: 'owner/name'.
    revision: branch, tag or commit; None for the default branch.
  """

  repository: str
  revision: str | None = None

  def __str__(self) -> str:
    return f'{PREFIX}{self.repository}' + (f'@{self.revision}' if self.revision else '')


def is_hub_name(path: Path | None) -> TypeGuard[str]:
  """Whether a path is a name on the hub.

  >>> is_hub_name('hf:google/vit-base-patch16-224'), is_hub_name('weights/model.safetensors')
  (True, False)
  """
  return isinstance(path, str) and path.startswith(PREFIX)


def parse(name: str) -> HubName:
  """The repository and the revision of a name.

  Raises:
    ValueError: it does not have the form of the hub's names.

  >>> parse('hf:google/vit-base-patch16-224@refs/pr/1')
  HubName(repository='google/vit-base-patch16-224', revision='refs/pr/1')
  """
  match = _NAME.fullmatch(name)
  if not match or '..' in name or '--' in match.group(1):  # the hub itself rejects these
    raise ValueError(
      f'{shown(name)} is not a name on the Hugging Face hub; expected {PREFIX}owner/name or '
      f'{PREFIX}owner/name@revision.'
    )
  return HubName(*match.groups())


def local(path: Path, files: Sequence[str]) -> Path:
  """A path unchanged, or for a name on the hub the local folder with its files.

  Args:
    path: a path, `hf:owner/name` or `hf:owner/name@revision`.
    files: files of the repository; see `snapshot`.

  Raises:
    ValueError, ImportError, FileNotFoundError, OSError: see `snapshot`.

  >>> local('weights/model.safetensors', ['model.safetensors'])
  'weights/model.safetensors'
  """
  return snapshot(path, files) if is_hub_name(path) else path


def snapshot(name: str, files: Sequence[str]) -> str:
  """The local folder with files of a repository, which are downloaded if they are not cached.

  Args:
    name: `hf:owner/name` or `hf:owner/name@revision`.
    files: a safetensors file, which the repository must have, as one file or in parts; and files
      that it may have.

  Returns:
    Path of the folder, whose name is a commit.

  Raises:
    ValueError: the name is malformed.
    ImportError: `huggingface_hub` is not installed.
    FileNotFoundError: there is no such repository, revision or safetensors file.
    OSError: the hub cannot be reached, or offline mode is on, and the file is not in the cache.
  """
  hub_name = parse(name)
  try:
    import huggingface_hub as hub
    import huggingface_hub.constants
    import huggingface_hub.errors  # noqa: F401, hub.errors needs it
  except ImportError as error:
    raise ImportError(
      f"'{name}' is a name on the Hugging Face hub, but huggingface_hub is not installed; pip "
      'install huggingface_hub, or pass the path of a file.'
    ) from error
  tensors, *others = files
  try:
    path = _download(hub, hub_name, tensors)
  except OSError as missing:  # it may be in parts
    try:
      path = _download(hub, hub_name, f'{tensors}.index.json')
    except OSError:
      raise missing from None
  folder = os.path.dirname(path)
  at_commit = hub_name._replace(revision=os.path.basename(folder))  # the branch may move on
  if path.endswith('.json'):
    for part in sorted(set(load_json(path, 'get it again').get('weight_map', {}).values())):
      _download(hub, at_commit, part)
  for file in others:
    _download_if_there(hub, at_commit, file)
  return folder


def _download(hub: ModuleType, name: HubName, file: str) -> str:
  """The path of a file in the cache; every error is a sentence that says what to do."""
  errors = hub.errors
  at = name.revision or 'its default branch'
  try:
    return hub.hf_hub_download(name.repository, file, revision=name.revision)
  except errors.LocalEntryNotFoundError as error:
    is_offline = hub.constants.HF_HUB_OFFLINE
    reason = 'offline mode is on ($HF_HUB_OFFLINE)' if is_offline else 'the hub cannot be reached'
    raise OSError(
      f'{name}: {file} of {at} is not in the cache {hub.constants.HF_HUB_CACHE}, and {reason}; '
      'connect once, or pass the path of a file.'
    ) from error
  except errors.RepositoryNotFoundError as error:
    raise FileNotFoundError(
      f'{name}: {hub.constants.ENDPOINT} has no repository {name.repository}, or does not show it '
      'to you; check the name, and if it is private or gated, log in (`hf auth login`).'
    ) from error
  except errors.RevisionNotFoundError as error:
    raise FileNotFoundError(
      f"{name}: {name.repository} has no revision '{name.revision}'; use one of its branches, tags "
      'or commits.'
    ) from error
  except errors.EntryNotFoundError as error:
    raise FileNotFoundError(
      f'{name}: {at} has no {file}, and only safetensors are read from the hub; use another '
      'revision, or download its checkpoint and pass that path.'
    ) from error
  except Exception as error:  # the clients that it downloads with have their own
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
    raise OSError(f'{name}: {file} could not be downloaded ({reason}); try again.') from error


def _download_if_there(hub: ModuleType, name: HubName, file: str) -> None:
  """Gets a file into the cache if the repository has it; the revision is a commit."""
  known = hub.try_to_load_from_cache(name.repository, file, revision=name.revision)
  if known is not None:  # a path, or that there is none
    return
  try:
    hub.hf_hub_download(name.repository, file, revision=name.revision)
  except hub.errors.LocalEntryNotFoundError:
    log.warning('%s: %s is not in the cache; going on without it.', name, file)
  except hub.errors.EntryNotFoundError:
    pass
