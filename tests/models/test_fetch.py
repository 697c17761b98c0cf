"""Downloads, against a real server on loopback: whole, cut, wrong, unreachable.

Names on the hub are asked for without the hub; `tests/peers/test_hub_peers.py` has it.
"""

import hashlib
import http.server
import os
import pathlib
import sys
import threading

import numpy as np
import pytest
from comparing import assert_refused
from places import FIXTURES

from glora_jax.files import sha256_of
from glora_jax.models import fetch as fetching
from glora_jax.models import hub, weights
from glora_jax.models.classifier import Classifier
from glora_jax.models.fetch import fetch

CONTENT = os.urandom(200_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
  requests: list = []  # noqa: RUF012, shared on purpose

  def do_GET(self):
    self.requests.append(self.path)
    if self.path.endswith('missing.npz'):
      return self.send_error(404)
    self.send_response(200)
    self.send_header('Content-Length', str(len(CONTENT)))
    self.end_headers()
    self.wfile.write(CONTENT[:1000] if self.path.endswith('cut.npz') else CONTENT)
    return None

  def log_message(self, *args):
    pass


@pytest.fixture
def server(tmp_path, monkeypatch):
  monkeypatch.setenv(fetching.CACHE_VARIABLE, str(tmp_path / 'cache'))
  Handler.requests = []
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as running:
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{running.server_port}'
    running.shutdown()


def test_a_file_comes_once_and_whole(server):
  path = fetch(f'{server}/a/model.npz', SHA256)
  with open(path, 'rb') as file:
    assert file.read() == CONTENT
  assert fetch(f'{server}/a/model.npz', SHA256.upper()) == path
  assert len(Handler.requests) == 1
  assert os.path.basename(path) == 'model.npz'
  assert fetch(f'{server}/b/model.npz', SHA256) != path


@pytest.mark.parametrize(
  'address, is_right, named',  # no sum, which is another one in every process
  [
    ('/a/model.npz', False, r'is not the file with SHA-256 0000.*nothing was kept'),
    ('/cut.npz', True, r'could not be downloaded .*put it at'),
    ('/missing.npz', True, r'could not be downloaded .*put it at'),
  ],
)
def test_what_is_wrong_or_does_not_come_whole_leaves_nothing(
  server, tmp_path, address, is_right, named
):
  with pytest.raises((ValueError, OSError), match=named) as caught:
    fetch(server + address, SHA256 if is_right else '0' * 64)
  assert '\n' not in str(caught.value)
  assert not [path for path in (tmp_path / 'cache').rglob('*') if path.is_file()]


def test_a_file_changed_in_the_cache_is_noticed(server):
  path = fetch(f'{server}/model.npz', SHA256)
  with open(path, 'ab') as file:
    file.write(b'x')
  named = [f'{path} has SHA-256 ', f' and {SHA256} was expected']
  assert_refused(named, fetch, f'{server}/model.npz', SHA256)


def test_a_shortcut_is_remembered_by_the_sum_of_its_first_download(server, monkeypatch):
  monkeypatch.setitem(fetching.SHORTCUTS, 'tiny', fetching.Published(f'{server}/tiny.npz', 'unit'))
  path = fetch('tiny')
  with open(path + '.sha256') as file:
    assert file.read().strip() == SHA256
  assert fetch('tiny') == path
  assert len(Handler.requests) == 1


def test_paths_are_checked_and_returned_and_an_address_needs_its_sum(tmp_path):
  path, address = tmp_path / 'here.npz', 'https://example.org/model.npz'
  path.write_bytes(CONTENT)
  assert fetch(str(path)) == fetch(str(path), SHA256) == str(path)
  assert_refused('was expected', fetch, str(path), '0' * 64)
  assert_refused('dinov2-B/14', fetch, str(tmp_path / 'none.npz'), kind=FileNotFoundError)
  assert_refused('needs model.sha256', fetch, address)
  assert_refused('is no SHA-256', fetch, address, 'abc')


COMMIT = '1' * 40
MALFORMED = ['hf:vit', 'hf:a/b/c', 'hf: me/vit', 'hf:me/v--it', 'hf:me/vit@', 'hf:me/vit@../../x']


@pytest.fixture
def names(monkeypatch):
  """The names that the hub is asked for; what it gives is always the same fixture."""
  asked = []

  def snapshot(name, files=hub.CHECKPOINT):
    asked.append(name)
    hub.parse(name)
    folder = FIXTURES / 'hf_vit'
    return hub.Snapshot(str(folder), str(folder / files.tensors), COMMIT)

  monkeypatch.setattr(hub, 'snapshot', snapshot)
  return asked


def test_a_malformed_name_is_one_sentence_with_the_form_that_is_expected():
  for name in MALFORMED:
    assert_refused([repr(name), 'hub; one is hf:owner/name or'], weights.load, name)


def test_what_is_no_name_on_the_hub_is_left_as_it_is():
  for path in ('weights/hf:me.npz', 'https://x.org/a.npz', pathlib.Path('hf:me/vit')):
    assert hub.local(path) is path


def test_without_the_package_the_sentence_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  named = ["'hf:me/vit'", 'huggingface_hub is not installed; pip install huggingface_hub, or']
  assert_refused(named, weights.load, 'hf:me/vit', kind=ImportError)


def test_a_name_is_taken_wherever_a_path_is(names):
  expected = weights.load(FIXTURES / 'hf_vit').params
  loaded = weights.load('hf:me/vit').params
  np.testing.assert_array_equal(loaded['head']['kernel'], expected['head']['kernel'])
  assert len(Classifier('hf:me/vit@main', normalization='unit').classes) == 5
  assert fetch('hf:me/vit') == str(FIXTURES / 'hf_vit')
  assert names == ['hf:me/vit', 'hf:me/vit@main', 'hf:me/vit']


def test_the_file_of_a_name_is_checked_against_a_sum(names):
  right = sha256_of(FIXTURES / 'hf_vit' / 'model.safetensors')
  assert fetch('hf:me/vit', right.upper()) == str(FIXTURES / 'hf_vit')
  named = [f'hf:me/vit has SHA-256 {right}, and 0000', 'was expected']
  assert_refused(named, fetch, 'hf:me/vit', '0' * 64)
