"""Names on the hub, without the hub; `tests/peers/test_hub_peers.py` has it."""

import pathlib
import sys

from comparing import assert_refused

from glora_jax import hub

FILES = ('model.safetensors', 'config.json')


def test_a_malformed_name_is_refused_and_what_is_no_name_on_the_hub_is_left_as_it_is():
  for name in ('hf:a/b/c', 'hf:me/v--it', 'hf:me/vit@../../x'):
    assert_refused([repr(name), 'hf:owner/name'], hub.local, name, FILES)
  for path in ('weights/hf:me.npz', 'https://x.org/a.npz', pathlib.Path('hf:me/vit')):
    assert hub.local(path, FILES) is path


def test_without_the_package_the_sentence_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  named = ["'hf:me/vit'", 'pip install huggingface_hub']
  assert_refused(named, hub.local, 'hf:me/vit', FILES, kind=ImportError)
