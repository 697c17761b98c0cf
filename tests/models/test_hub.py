"""Names on the hub, without the hub; `tests/peers/test_hub_peers.py` has it."""

import pathlib
import sys

import numpy as np
import pytest
from places import FIXTURES

from glora_jax.files import sha256_of
from glora_jax.models import hub, weights
from glora_jax.models.classifier import Classifier
from glora_jax.models.fetch import fetch

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


@pytest.mark.parametrize('name', MALFORMED)
def test_a_malformed_name_is_one_sentence_with_the_form_that_is_expected(name):
  with pytest.raises(ValueError, match=r'is no name on .* hub; one is hf:owner/name or') as caught:
    weights.load(name)
  assert f"'{name}'" in str(caught.value)


def test_what_is_no_name_on_the_hub_is_left_as_it_is():
  for path in ('weights/hf:me.npz', 'https://x.org/a.npz', pathlib.Path('hf:me/vit')):
    assert hub.local(path) is path


def test_without_the_package_the_sentence_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  sentence = r"'hf:me/vit' .*huggingface_hub is not installed; pip install huggingface_hub, or"
  with pytest.raises(ImportError, match=sentence):
    weights.load('hf:me/vit')


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
  with pytest.raises(ValueError, match=f'hf:me/vit has SHA-256 {right}, and 0000.* was expected'):
    fetch('hf:me/vit', '0' * 64)
