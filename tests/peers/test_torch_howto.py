"""The lines of torch.md, generate.md and start.md run; the pages are built without PyTorch."""

import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from comparing import assert_close
from places import code_of
from trees import randomized

import glora_jax


def test_the_lines_of_the_howto_run_and_tuned_modules_give_the_adapted_outputs(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  *of_llama, of_words, of_timm = code_of('docs/howto/torch.md')
  names = {}
  for lines in of_llama:
    exec(lines, names)
  tokens = names['tokens']
  outputs = applied(names, tokens, use_cache=False).logits
  tuned = transformers.LlamaForCausalLM.from_pretrained('tuned')
  logits = tuned(torch.tensor(tokens)).logits
  assert_close(logits.detach(), outputs)
  predicted = logits[:, :-1].argmax(-1).numpy()
  assert (predicted == tokens[:, 1:]).mean() > 0.8
  base = transformers.LlamaForCausalLM(names['config'])
  glora_jax.torch.copy_to(names['params'], base)
  with_adapter = peft.PeftModel.from_pretrained(base, 'adapter').eval()
  assert_close(with_adapter(torch.tensor(tokens)).logits.detach(), outputs)

  exec(of_words, names)
  texts, outputs = names['texts'], applied(names, names['texts'], use_cache=False).logits
  predicted = outputs[:, :-1].argmax(-1)
  assert (predicted == texts[:, 1:])[texts[:, 1:] > 99].mean() > 0.8
  extended = transformers.LlamaForCausalLM.from_pretrained('tuned')
  glora_jax.torch.extend(extended, 2)
  with_words = peft.PeftModel.from_pretrained(extended, 'words').eval()
  assert_close(with_words(torch.tensor(texts)).logits.detach(), outputs)
  glora_jax.load_adapter('words.safetensors', names['adapted'], names['params'])

  exec(of_timm, names)
  assert_close(names['module'](names['images']).detach(), applied(names, names['images']))


def test_the_language_model_of_getting_started_is_trained_for_peft(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  [lines] = code_of('docs/start.md')
  names = {}
  exec(lines, names)
  module, params, tokens = names['module'], names['params'], names['tokens']
  glora_jax.torch.copy_to(params, module)
  logits = peft.PeftModel.from_pretrained(module, 'adapter').eval()(torch.tensor(tokens)).logits
  assert_close(logits.detach(), applied(names, tokens, use_cache=False).logits)


@pytest.mark.full  # caches, calls and pools have tests of their own
def test_the_lines_on_generation_run_and_write_the_tokens_of_transformers(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  of_llama, of_loop, of_nnx, of_pool = code_of('docs/howto/generate.md')
  torch.manual_seed(0)
  names = {}
  exec(of_llama, names)
  adapted, base = names['adapted'], names['params']
  names['variables']['glora'] = randomized(names['variables']['glora'], scale=0.1)
  exec(of_loop, names)
  folded, inputs = adapted.fold(names['variables']), (names['tokens'], names['mask'])
  assert_writes(names['texts'], names, [folded] * 3)
  first, *others = names['texts'][:, 5:].tolist()
  stop = next(token for token in first if not any(token in other for other in others))
  texts = names['write'](names['variables'], *inputs, steps=8, stop=stop)
  assert_writes(texts, names, [folded] * 3, stop)

  exec(of_nnx, names)
  model = names['model']
  model.attention.decode = False
  whole = jnp.concatenate([names['tokens'], names['written']], 1)
  np.testing.assert_array_equal(model(whole)[:, 4:-1].argmax(-1), names['written'])

  exec(of_pool, names)
  of_adapters = [
    adapted.fold(glora_jax.load_adapter(f'{name}.safetensors', adapted, base)[1])
    for name in ('pirate', 'poet')
  ]
  assert_writes(names['texts'], names, [*of_adapters, base])


def assert_writes(texts, names, params, stop=2):
  """Texts are those of transformers' own `generate`, each with its own folded weights."""
  for text, prompt, mask, weights in zip(
    texts, names['tokens'], names['mask'], params, strict=True
  ):
    glora_jax.torch.copy_to(weights, names['module'])
    [expected] = names['module'].generate(
      torch.tensor(prompt[None]),
      attention_mask=torch.tensor(mask[None]),
      max_new_tokens=8,
      do_sample=False,
      eos_token_id=stop,
      pad_token_id=stop,
    )
    missing = len(text) - len(expected)
    np.testing.assert_array_equal(text, np.pad(expected, (0, missing), constant_values=stop))


def applied(names, *inputs, **kwargs):
  return names['adapted'].apply(names['state'].variables, *inputs, **kwargs)
