"""Names on the hub by the real `huggingface_hub`, against a server on loopback."""

import hashlib
import json
import os
import re
import subprocess

import pytest
import safetensors.numpy
from places import FIXTURES, program
from served import serving

FIRST, SECOND = '1' * 40, '2' * 40
FILES = ('model.safetensors', 'config.json')
CONTENTS = {name: (FIXTURES / 'hf_vit' / name).read_bytes() for name in FILES}
PREPROCESSOR = json.dumps({'image_mean': [0.5] * 3, 'image_std': [0.5] * 3}).encode()
TENSORS = safetensors.numpy.load(CONTENTS['model.safetensors'])
PARTS = {
  f'model-0000{part}-of-00002.safetensors': sorted(TENSORS)[part - 1 :: 2] for part in (1, 2)
}
PLACES = {name: part for part, names in PARTS.items() for name in names}
IN_PARTS = {
  'config.json': CONTENTS['config.json'],
  'model.safetensors.index.json': json.dumps({'weight_map': PLACES}).encode(),
}
for part, names in PARTS.items():
  IN_PARTS[part] = safetensors.numpy.save({name: TENSORS[name] for name in names})
HUB = {  # files of each commit, by repository
  'me/vit': {FIRST: CONTENTS, SECOND: {**CONTENTS, 'preprocessor_config.json': PREPROCESSOR}},
  'me/parts': {FIRST: IN_PARTS},
  'me/old': {FIRST: {'pytorch_model.bin': b'x', 'config.json': b'{}'}},
}
BRANCHES = {'main': FIRST, 'refs%2Fpr%2F1': SECOND}
ADDRESS = re.compile(r'/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)')


def answer(path):
  """What a hub answers, as `huggingface_hub` asks for files; a header says why one is missing."""
  match = ADDRESS.fullmatch(path)
  if not match or match[1] not in HUB:
    return {'X-Error-Code': 'RepoNotFound'}, None
  commit = BRANCHES.get(match[2], match[2])
  if commit not in HUB[match[1]]:
    return {'X-Error-Code': 'RevisionNotFound'}, None
  content = HUB[match[1]][commit].get(match[3])
  if content is None:
    return {'X-Error-Code': 'EntryNotFound', 'X-Repo-Commit': commit}, None
  return {'X-Repo-Commit': commit, 'ETag': f'"{hashlib.sha256(content).hexdigest()}"'}, content


def outcomes(environment, *names):
  command = [*program('vision/programs/hub_names'), *names]
  ran = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
  return dict(zip(names, json.loads(ran.stdout), strict=True))


@pytest.fixture
def hub(tmp_path):
  """The address of a running hub, what it is asked, and the environment of processes that ask."""
  with serving(answer) as (address, requests):
    environment = {**os.environ, 'HF_ENDPOINT': address, 'HF_HOME': str(tmp_path)}
    environment.pop('HF_HUB_OFFLINE', None)
    yield address, requests, environment


def test_names_online_and_then_offline(hub):
  address, requests, environment = hub
  commits = {
    'hf:me/vit': FIRST,
    f'hf:me/vit@{FIRST}': FIRST,
    'hf:me/vit@refs/pr/1': SECOND,
    'hf:me/parts': FIRST,
  }
  known = {name: [commit, 16, 'inception'] for name, commit in commits.items()}
  unknown = {
    'hf:me/none': f'{address} has no repository me/none',
    'hf:me/vit@none': "me/vit has no revision 'none'",
    'hf:me/old': 'its default branch has no model.safetensors',
  }
  online = outcomes(environment, *known, *unknown)
  for name, sentence in unknown.items():
    kind, message = online.pop(name)
    assert kind == 'FileNotFoundError'
    assert message.startswith(f'{name}: {sentence}')
    assert '\n' not in message
  assert online == known

  requests.clear()
  offline = outcomes({**environment, 'HF_HUB_OFFLINE': '1'}, *known, 'hf:me/vit@dev')
  kind, message = offline.pop('hf:me/vit@dev')
  assert kind == 'OSError'
  assert 'offline mode is on ($HF_HUB_OFFLINE); connect once' in message
  assert offline == known
  assert not requests
  assert outcomes(environment, *known) == known
  assert not [path for method, path in requests if 'resolve' in path and method == 'GET']
