"""How far a reader follows one LoRA: `docs/design/rooms.md` lists the files."""

import pathlib
import re
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import glora_jax
from glora_jax.method.adapted import Call, run

ROOT = pathlib.Path(glora_jax.__file__).parent
ROOMS = ROOT.parent / 'docs' / 'design' / 'rooms.md'
LORA = (7, 3), (3, 5)  # shapes that nothing else here has
HELPERS = {'tree.py', 'method/site.py'}  # they put and turn any array


@pytest.mark.filterwarnings('ignore:Python iterable type')  # among a frame's variables
def test_one_lora_of_a_dense_passes_the_files_that_the_docs_list():
  adapted = glora_jax.adapt(nn.Dense(5), x := jnp.ones((2, 7)), structure='lora:3')
  params = {'kernel': jnp.ones((7, 5)), 'bias': jnp.zeros(5)}
  variables = adapted.init(jax.random.key(0), params)
  genome, passed = jnp.asarray(adapted.genome), []

  def record(frame, event, _):
    file = pathlib.Path(frame.f_code.co_filename)
    if event == 'return' and file.is_relative_to(ROOT):
      found = frame.f_locals.values()
      leaves = jax.tree.leaves([[*each.values()] if type(each) is dict else each for each in found])
      if any(getattr(leaf, 'shape', None) in LORA for leaf in leaves):
        passed.append(file.relative_to(ROOT).as_posix())

  sys.setprofile(record)
  try:
    jax.make_jaxpr(lambda v: run(adapted, Call((x,), {}), v, genome, adapted.genome))(variables)
  finally:
    sys.setprofile(None)
  table = ROOMS.read_text().split('## One LoRA of one Dense')[1].split('\n## ')[0]
  listed = re.findall(r'^\| `(method/\w+\.py)`', table, re.MULTILINE)
  assert {*passed} - HELPERS == {*listed}
  assert len(listed) <= 5
