"""Names on the hub by the real `huggingface_hub`, against a server on loopback."""

import json
import os
import subprocess

import pytest
from places import FIXTURES, program

pytest.importorskip('huggingface_hub', reason='needs the hub extra')

from tests.peers.hub_server import serving

FIRST, SECOND = '1' * 40, '2' * 40
FILES = ('model.safetensors', 'config.json')
CONTENTS = {name: (FIXTURES / 'hf_vit' / name).read_bytes() for name in FILES}
PREPROCESSOR = json.dumps({'image_mean': [0.5] * 3, 'image_std': [0.5] * 3}).encode()


@pytest.fixture(scope='module')
def hub(tmp_path_factory):
  """The address of a running hub, what it is asked, and the environment of processes that ask."""
  files = {
    'me/vit': {
      FIRST: CONTENTS,
      SECOND: {**CONTENTS, 'preprocessor_config.json': PREPROCESSOR},
    },
    'me/old': {FIRST: {'pytorch_model.bin': b'x', 'config.json': b'{}'}},
  }
  branches = {'me/vit': {'main': FIRST, 'refs/pr/1': SECOND}, 'me/old': {'main': FIRST}}
  with serving(files, branches) as (address, requests):
    home = str(tmp_path_factory.mktemp('hub'))
    environment = {**os.environ, 'HF_ENDPOINT': address, 'HF_HOME': home}
    environment.pop('HF_HUB_OFFLINE', None)
    yield address, requests, environment


def outcomes(environment, *names):
  command = [*program('hub_names'), *names]
  ran = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
  return dict(zip(names, json.loads(ran.stdout), strict=True))


def test_names_online_and_then_offline(hub):
  address, requests, environment = hub
  known = {
    'hf:me/vit': [FIRST, 16, 'inception'],
    f'hf:me/vit@{FIRST}': [FIRST, 16, 'inception'],
    'hf:me/vit@refs/pr/1': [SECOND, 16, 'inception'],
  }
  unknown = {
    'hf:me/none': f'{address} has no repository me/none, or does not show it to you; check',
    'hf:me/vit@none': "me/vit has no revision 'none'; give a branch, a tag or a commit of it.",
    'hf:me/old': 'its default branch has no model.safetensors, and only safetensors are read',
  }
  online = outcomes(environment, *known, *unknown)
  assert {name: online[name] for name in known} == known
  for name, sentence in unknown.items():
    kind, message = online[name]
    assert kind == 'FileNotFoundError'
    assert message.startswith(f'{name}: {sentence}')
    assert '\n' not in message

  requests.clear()
  offline = outcomes({**environment, 'HF_HUB_OFFLINE': '1'}, *known, 'hf:me/vit@dev')
  assert {name: offline[name] for name in known} == known
  kind, message = offline['hf:me/vit@dev']
  assert kind == 'OSError'
  assert 'of dev is not in the cache' in message
  assert 'offline mode is on ($HF_HUB_OFFLINE); connect once' in message
  assert not requests

  requests.clear()
  assert outcomes(environment, *known) == known
  assert not [path for method, path in requests if 'resolve' in path and method == 'GET']
