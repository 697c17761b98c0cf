"""The lines of docs/howto/torch.md run; the documentation is built without PyTorch."""

import re

import numpy as np
import pytest
from places import ROOT

import glora_jax

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
peft = pytest.importorskip('peft')
pytest.importorskip('timm')
pytest.importorskip('torchax')


def test_the_lines_of_the_howto_run_and_tuned_modules_give_the_adapted_outputs(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  page = (ROOT / 'docs' / 'howto' / 'torch.md').read_text()
  *of_llama, of_timm = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
  names = {}
  for lines in of_llama:
    exec(lines, names)
  tokens = names['tokens']
  outputs = applied(names, tokens, use_cache=False).logits
  tuned = transformers.LlamaForCausalLM.from_pretrained('tuned')
  logits = tuned(torch.tensor(tokens)).logits
  assert_close(logits, outputs)
  predicted = logits[:, :-1].argmax(-1).numpy()
  assert (predicted == tokens[:, 1:]).mean() > 0.8
  base = transformers.LlamaForCausalLM(names['config'])
  glora_jax.torch.load(base, names['params'])
  with_adapter = peft.PeftModel.from_pretrained(base, 'adapter').eval()
  assert_close(with_adapter(torch.tensor(tokens)).logits, outputs)

  exec(of_timm, names)
  assert_close(names['module'](names['images']), applied(names, names['images']))


def applied(names, *inputs, **kwargs):
  return names['adapted'].apply(names['state'].variables, *inputs, **kwargs)


def assert_close(tensor, array):
  np.testing.assert_allclose(tensor.detach(), array, atol=1e-5 * np.abs(array).max())
