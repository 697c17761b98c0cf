"""An attached model in google-tunix's own trainers; they need google-tunix with all it needs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from hand_count import randomized_model
from numpy.testing import assert_allclose
from places import code_of

import glora_jax
from tests.peers.code_bases import inputs_of

peft_trainer = pytest.importorskip('tunix.sft.peft_trainer', reason='needs google-tunix')
dpo_trainer = pytest.importorskip('tunix.sft.dpo.dpo_trainer')
sampling = pytest.importorskip('tunix.generate.sampler')
llama3 = pytest.importorskip('tunix.models.llama3.model')
pytestmark = pytest.mark.slow

WORDS, LENGTH, STEPS = 32, 6, 6
CONFIG = llama3.ModelConfig(
  num_layers=2,
  vocab_size=WORDS,
  embed_dim=16,
  hidden_dim=24,
  num_heads=2,
  head_dim=8,
  num_kv_heads=1,
  rope_theta=10_000,
  norm_eps=1e-6,
)
TOKENS = np.random.default_rng(0).integers(1, WORDS, (STEPS, 4, 2 * LENGTH))
BATCHES = [{'tokens': tokens} for tokens in TOKENS]
ONES = np.ones((4, LENGTH), np.int32)


def plain():
  """A model of tunix."""
  return randomized_model(lambda: llama3.Llama3(CONFIG, rngs=nnx.Rngs(0)))


def attached(structure='scale_shift_lora:2'):
  """A model of tunix, and the same attached, its head trained in full."""
  base = plain()
  return base, glora_jax.nnx.attach(base, *inputs_of(TOKENS[0]), structure=structure)


def options(folder, steps):
  """Fields of the config of a trainer that saves after each step."""
  return {
    'eval_every_n_steps': STEPS,
    'max_steps': steps,
    'checkpoint_root_directory': folder,
    'checkpointing_options': ocp.CheckpointManagerOptions(save_interval_steps=1),
  }


def to_inputs(batch):
  """What tunix's loss is called with."""
  tokens, positions, _, mask = inputs_of(batch['tokens'])
  return {
    'input_tokens': tokens,
    'input_mask': jnp.ones_like(tokens),
    'positions': positions,
    'attention_mask': mask,
  }


def sft(base, model, folder, steps):
  """Supervised steps on tokens."""
  config = peft_trainer.TrainingConfig(**options(str(folder), steps))
  trainer = peft_trainer.PeftTrainer(model, optax.adam(1e-2), config)
  trainer.with_gen_model_input_fn(to_inputs).train(BATCHES)


def dpo(base, model, folder, steps):
  """Steps that prefer one continuation to another, the base being the reference."""
  config = dpo_trainer.DPOTrainingConfig(**options(str(folder), steps))
  trainer = dpo_trainer.DPOTrainer(model, base, optax.adam(1e-2), config)
  trainer.train(
    [
      dpo_trainer.TrainingInput(
        prompt_ids=tokens[:, :LENGTH],
        prompt_mask=ONES,
        chosen_ids=tokens[:, LENGTH:],
        chosen_mask=ONES,
        rejected_ids=tokens[:, :LENGTH],
        rejected_mask=ONES,
      )
      for tokens in TOKENS
    ]
  )


@pytest.mark.parametrize('train', [sft, dpo])
def test_a_trainer_of_tunix_trains_the_adapter_and_the_head_alone_and_resumes(train, tmp_path):
  base, model = attached()
  start = jax.tree.map(np.array, glora_jax.nnx.as_adapted(model)[1])
  train(base, model, tmp_path / 'whole', STEPS)
  _, trained = glora_jax.nnx.as_adapted(model)
  moved = jax.tree.map(lambda old, new: (old != np.asarray(new)).any(), start, trained)
  glora, params = moved['glora'], moved['params']
  assert all(jax.tree.leaves(glora))
  assert params.pop('lm_head')['w']
  assert not any(jax.tree.leaves(params))

  train(*attached(), tmp_path / 'twice', STEPS // 2)
  again = attached()
  train(*again, tmp_path / 'twice', STEPS)
  resumed = glora_jax.nnx.as_adapted(again[1])[1]
  jax.tree.map(np.testing.assert_array_equal, resumed, trained)

  folded = glora_jax.nnx.fold(model)
  assert nnx.graphdef(folded) == nnx.graphdef(base)
  outputs = [nnx.jit(one)(*inputs_of(TOKENS[0]))[0] for one in (model, folded, base)]
  assert_allclose(outputs[1], outputs[0], atol=1e-5)
  assert np.abs(outputs[2] - outputs[0]).max() > 1e-2


class Numbers:
  """A tokenizer of numbers, 0 to pad, 1 to begin and 2 to end."""

  def encode(self, text):
    return [int(word) for word in text.split()]

  def decode(self, tokens):
    return ' '.join(map(str, tokens))

  def bos_id(self):
    return 1

  def eos_id(self):
    return 2

  def pad_id(self):
    return 0


def test_the_pages_lines_run_and_what_they_make_says_the_same(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'base').mkdir()
  (tmp_path / 'base' / 'config.json').write_text('{}')

  def sampler_of(model):
    cache = sampling.CacheConfig(cache_size=32, num_layers=2, num_kv_heads=1, head_dim=8)
    return sampling.Sampler(model, Numbers(), cache)

  def say(sampler):
    options = {'max_generation_steps': 8, 'temperature': 0.0, 'seed': 0}
    return sampler(input_strings=['3 4 5'], **options).text

  other = glora_jax.nnx.attach(plain(), *inputs_of(TOKENS[0]), structure='lora:8', heads=None)
  glora_jax.nnx.save_adapter('second.safetensors', other)
  names = {'nnx': nnx, 'sampler': sampler_of(other), 'folder': str(tmp_path / 'checkpoints')}
  names |= {'llama': plain(), 'inputs': inputs_of(TOKENS[0]), 'to_inputs': to_inputs}
  names |= {'batches': BATCHES, 'checkpoint': str(tmp_path / 'base')}
  for code in code_of('docs/howto/tunix.md'):
    exec(code, names)
  assert say(names['sampler']) == say(sampler_of(names['plain'])) != say(sampler_of(plain()))
  base, first = (one(*names['inputs'])[0] for one in (plain(), names['model']))
  expected = jnp.stack([first[0], base[1], base[2], first[3]])  # the second is as it began
  assert_allclose(names['logits'], expected, atol=1e-5)
  assert {path.name for path in (tmp_path / 'folded').iterdir()} == {
    'config.json',
    'model-00001-of-00001.safetensors',
    'model.safetensors.index.json',
  }
  adapted, variables = names['adapted'], names['variables']
  again = glora_jax.peft.load('peft', adapted, variables['params'], 'tunix_llama3')
  assert_allclose(again[0].apply(again[1], *names['inputs'])[0], first, atol=1e-5)
