"""The mutants: each is in the tree once, and a run says which of them tests kill."""

import ast
from collections import Counter

import pytest

from benchmarks import mutants
from glora_jax.files import read_json

LIST = read_json(mutants.LIST)
MUTANTS = LIST['mutants']


@pytest.fixture(scope='module')
def texts():
  return mutants.read_texts(mutants.ROOT)


def test_there_are_five_mutants_in_each_room_and_each_has_an_id_of_its_own():
  assert Counter(mutant['room'] for mutant in MUTANTS) == dict.fromkeys(LIST['files'], 5)
  assert len({mutant['id'] for mutant in MUTANTS}) == 40


@pytest.mark.parametrize('mutant', MUTANTS, ids=lambda mutant: mutant['id'])
def test_a_mutant_is_found_once_and_changes_code(texts, mutant):
  [(path, changed)] = mutants.mutate(texts, mutant).items()
  assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(texts[path]))
