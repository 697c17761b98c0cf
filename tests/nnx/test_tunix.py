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

import glora_jax

peft_trainer = pytest.importorskip('tunix.sft.peft_trainer', reason='needs google-tunix')
dpo_trainer = pytest.importorskip('tunix.sft.dpo.dpo_trainer')
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
ONES = np.ones((4, LENGTH), np.int32)


def inputs_of(tokens):
  """What a model of tunix is called with."""
  batch, length = tokens.shape
  positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
  return (
    tokens,
    positions,
    None,
    jnp.broadcast_to(jnp.tri(length, dtype=bool), (batch, *[length] * 2)),
  )


def attached():
  """A model of tunix, and the same attached, its head trained in full."""
  base = randomized_model(lambda: llama3.Llama3(CONFIG, rngs=nnx.Rngs(0)))
  return base, glora_jax.nnx.attach(base, *inputs_of(TOKENS[0]), structure='scale_shift_lora:2')


def options(folder, steps):
  return {
    'eval_every_n_steps': STEPS,
    'max_steps': steps,
    'checkpoint_root_directory': str(folder),
    'checkpointing_options': ocp.CheckpointManagerOptions(save_interval_steps=1),
  }


def sft(base, model, folder, steps):
  """Supervised steps on tokens."""
  config = peft_trainer.TrainingConfig(**options(folder, steps))
  trainer = peft_trainer.PeftTrainer(model, optax.adam(1e-2), config)

  def inputs(batch):
    _, positions, _, mask = inputs_of(batch['tokens'])
    return {
      'input_tokens': batch['tokens'],
      'input_mask': jnp.ones_like(batch['tokens']),
      'positions': positions,
      'attention_mask': mask,
    }

  trainer.with_gen_model_input_fn(inputs).train([{'tokens': tokens} for tokens in TOKENS])


def dpo(base, model, folder, steps):
  """Steps that prefer one continuation to another, the base being the reference."""
  config = dpo_trainer.DPOTrainingConfig(**options(folder, steps))
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
