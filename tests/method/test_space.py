"""Search spaces and layers: what is on offer, and what is refused."""

import pytest

from glora_jax.method.space import Layer, SearchSpace, Spec


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'ranks': ()}, 'ascending'),
    ({'ranks': (4, 2)}, 'ascending'),
    ({'ranks': (0,)}, 'positive'),
    ({'ranks': (2.5,)}, 'positive'),
    ({'A': ('matrix',)}, 'none, constant, vector, lora:4'),
    ({'C': 3}, 'codes 0 to 2'),
    ({'D': ()}, 'not a choice'),
  ],
)
def test_wrong_spaces_are_explained(fields, message):
  with pytest.raises(ValueError, match=message):
    SearchSpace(**fields)


def test_spaces_take_names_or_codes():
  assert SearchSpace((4,), A=('lora', 'none')) == SearchSpace(4, A=(0, 3))
  assert SearchSpace((2, 4), A=('none', 'lora4')) == SearchSpace((2, 4), A=('none', 'lora:4'))
  assert hash(Spec((Layer('a', 1, 1),))) == hash(Spec((Layer('a', 1, 1),)))
