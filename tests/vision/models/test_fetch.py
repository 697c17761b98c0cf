"""Downloads, against a real server on loopback: whole, cut, wrong, unreachable.

Names on the hub are asked for without the hub; `tests/peers/test_hub_peers.py` has it.
"""

import hashlib
import os
import pathlib

import pytest
from comparing import assert_refused
from places import FIXTURES
from served import serving

from glora_jax import hub
from glora_jax.vision.files import sha256_of
from glora_jax.vision.models import fetch as fetching
from glora_jax.vision.models.fetch import fetch

CONTENT = os.urandom(200_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def answer(path):
  """Nothing, a part of the content, or all of it."""
  cut = {'Content-Length': len(CONTENT), 'Connection': 'close'}
  return {'/missing.npz': ({}, None), '/cut.npz': (cut, CONTENT[:9])}.get(path, ({}, CONTENT))


@pytest.fixture
def server(tmp_path, monkeypatch):
  """The address of a running server, and what it is asked."""
  monkeypatch.setenv(fetching.CACHE_VARIABLE, str(tmp_path / 'cache'))
  with serving(answer) as served:
    yield served


def test_a_file_comes_once_and_whole_and_again_if_it_has_changed(server, monkeypatch):
  address, requests = server
  path = pathlib.Path(fetch(f'{address}/a/model.npz', SHA256))
  assert path.read_bytes() == CONTENT
  published = fetching.Published(f'{address}/a/model.npz', 'unit')
  monkeypatch.setitem(fetching.SHORTCUTS, 'tiny', published)
  for same in (fetch(f'{address}/a/model.npz', SHA256.upper()), fetch('tiny')):
    assert same == str(path)
  assert len(requests) == 1
  assert path.name.endswith('model.npz')
  assert fetch(f'{address}/b/model.npz', SHA256) != str(path)
  path.write_bytes(b'x')
  assert fetch('tiny', SHA256) == str(path)
  assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
  'address, is_right, named',  # no sum, which is another one in every process
  [
    ('/model.npz', False, 'does not have SHA-256 0000'),
    ('/cut.npz', True, 'could not be downloaded'),
    ('/missing.npz', True, 'could not be downloaded'),
  ],
)
def test_what_is_wrong_or_does_not_come_whole_leaves_nothing(
  server, tmp_path, address, is_right, named
):
  kind = OSError if is_right else ValueError
  assert_refused(named, fetch, server[0] + address, SHA256 if is_right else '0' * 64, kind=kind)
  assert not [path for path in (tmp_path / 'cache').rglob('*') if path.is_file()]


def test_paths_are_checked_and_returned_and_an_address_needs_its_sum(tmp_path):
  path, address = tmp_path / 'here.npz', 'https://example.org/model.npz'
  path.write_bytes(CONTENT)
  assert fetch(str(path)) == fetch(str(path), SHA256) == str(path)
  assert_refused(', expected 000', fetch, str(path), '0' * 64)
  assert_refused('dinov2-B/14', fetch, str(tmp_path / 'none.npz'), kind=FileNotFoundError)
  assert_refused('needs model.sha256', fetch, address)
  assert_refused('must be a SHA-256', fetch, address, 'abc')


def test_the_file_of_a_name_is_checked_against_a_sum(monkeypatch):
  folder = str(FIXTURES / 'hf_vit')
  monkeypatch.setattr(hub, 'snapshot', lambda name, files: folder)
  right = sha256_of(f'{folder}/model.safetensors')
  assert fetch('hf:me/vit', right.upper()) == folder
  assert_refused(f'hf:me/vit has SHA-256 {right}, expected 0000', fetch, 'hf:me/vit', '0' * 64)
