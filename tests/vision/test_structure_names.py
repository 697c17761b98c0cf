"""Names of structures in tables, and as those of folders."""

import pytest

from glora_jax.method.space import Layer, SearchSpace, Spec
from glora_jax.vision.structure_names import check_preset, file_name, preset_label


def spec_of(names, rank):
  return Spec(tuple(Layer(name, 8, 8, space=SearchSpace(rank)) for name in names))


def test_labels_say_the_rank_and_files_have_safe_names():
  block = spec_of(('qkv', 'proj', 'fc1'), (1, 2, 3))
  assert preset_label(block, 'lora') == 'lora:3'
  assert preset_label(block, 'hira@attn') == 'hira:3@attn'
  mixed = Spec((*spec_of(['qkv'], 4), *spec_of(['fc1'], 8)))
  assert [preset_label(mixed, name) for name in ('lora', 'lora@qkv')] == ['lora:4/8', 'lora:4@qkv']
  for name, label in (('lora:2', 'lora:2'), ('bitfit', 'BitFit'), ('ssf@qkv', 'SSF-like@qkv')):
    assert preset_label(block, name) == label
  assert '/' not in file_name('lora@blocks/../x')
  assert file_name('lora:2@qkv') == 'lora:2@qkv'


def test_a_preset_has_a_name_that_a_folder_can_have():
  check_preset('lora:2@blocks/3')
  with pytest.raises(ValueError, match='too long'):
    check_preset('lora@' + 'x' * 200)
