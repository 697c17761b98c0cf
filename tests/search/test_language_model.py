"""A small decoder: a structure from one gradient of a next-token loss, training, folding, writing.

The text is the licence that the interpreter prints, and the poem that it knows.
"""

import codecs
import contextlib
import functools
import io

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial
from trees import randomized

import glora_jax

with contextlib.redirect_stdout(io.StringIO()):
  import this as poem

LENGTH, WIDTH, VOCABULARY = 12, 8, 128
POEM = np.frombuffer(codecs.decode(poem.s, 'rot13').encode('ascii', 'ignore'), np.uint8)


class Decoder(nn.Module):
  decode: bool = False

  @nn.compact
  def __call__(self, tokens, start=0):
    embed = nn.Embed(VOCABULARY, WIDTH, name='embed')
    positions = self.param('positions', nn.initializers.normal(), (LENGTH, WIDTH))
    x = embed(tokens) + jax.lax.dynamic_slice_in_dim(positions, start, tokens.shape[1])
    mask = None if self.decode else nn.make_causal_mask(tokens)
    x += nn.MultiHeadDotProductAttention(2, decode=self.decode, name='attention')(x, mask=mask)
    x += nn.Dense(WIDTH, name='down')(nn.silu(nn.Dense(2 * WIDTH, name='up')(x)))
    return embed.attend(x)


def next_token_loss(forward, batch, key=None):
  logits = forward(batch[:, :-1])
  return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()


def batches(number):
  rng = np.random.default_rng(0)
  starts = rng.integers(0, len(POEM) - LENGTH - 1, (number, 8))
  return list(jnp.asarray(POEM[starts[..., None] + np.arange(LENGTH + 1)], jnp.int32))


@pytest.fixture(scope='module')
def trained():
  """(adapted model, subnet, its variables after training, losses)."""
  model, sample = Decoder(), jnp.zeros((1, LENGTH), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), sample)['params']
  space = glora_jax.SearchSpace.distinct((1, 2))
  adapted = glora_jax.adapt(model, sample, space=space, heads=None)
  variables = adapted.init(jax.random.key(1), randomized(shapes))
  lora = adapted.count_params(glora_jax.preset(adapted.spec, 'lora:1'))
  allocation = glora_jax.allocate(
    adapted,
    variables,
    next_token_loss,
    batches(4),
    budget=lora,
    key=jax.random.key(2),
    folds=4,
    progress=False,
  )
  assert 0 < allocation.count_params() <= lora
  subnet = adapted.fix(allocation.genome)
  trainable, frozen = subnet.split(allocation.variables)

  def loss(trainable, batch):
    forward = functools.partial(subnet.apply, subnet.join(trainable, frozen))
    return next_token_loss(forward, batch)

  trainable, losses = train(loss, trainable)
  return adapted, subnet, subnet.join(trainable, frozen), losses


@functools.partial(jax.jit, static_argnums=0)
def train(loss, trainable):
  """What is trained after 80 steps of Adam, and the losses."""
  optimizer = optax.adam(2e-2)

  def step(carry, batch):
    trainable, state = carry
    value, gradient = jax.value_and_grad(loss)(trainable, batch)
    updates, state = optimizer.update(gradient, state)
    return (optax.apply_updates(trainable, updates), state), value

  start = (trainable, optimizer.init(trainable))
  (trainable, _), losses = jax.lax.scan(step, start, jnp.stack(batches(8) * 10))
  return trainable, losses


@jax.jit
def write(decode_step, cache, prompt):
  """The likeliest continuation of a prompt, and the logits of every step; with the cache."""

  def step(carry, position):
    cache, token = carry
    logits, new = decode_step(cache, token[None, None], position)
    given = prompt[jnp.minimum(position + 1, len(prompt) - 1)]
    token = jnp.where(position + 1 < len(prompt), given, logits[0, 0].argmax())
    return (new['cache'], token), (token, logits[0, 0])

  _, (tokens, logits) = jax.lax.scan(step, (cache, prompt[0]), jnp.arange(LENGTH - 1))
  return jnp.concatenate([prompt[:1], tokens]), logits


def empty_cache():
  shapes = jax.eval_shape(
    Decoder(decode=True).init, jax.random.key(0), jnp.zeros((1, LENGTH), jnp.int32)
  )
  return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes['cache'])


def plain_step(params, cache, token, position):
  variables = {'params': params, 'cache': cache}
  return Decoder(decode=True).apply(variables, token, position, mutable=['cache'])


def test_training_on_a_next_token_loss_lowers_it(trained):
  losses = trained[3]
  assert losses[-8:].mean() < 0.97 * losses[:8].mean()


def test_the_folded_decoder_writes_with_its_cache_what_the_subnet_says(trained):
  _, subnet, variables, _ = trained
  prompt = jnp.asarray(POEM[:4], jnp.int32)
  written, cached = write(Partial(plain_step, subnet.fold(variables)), empty_cache(), prompt)
  whole = jax.jit(subnet.apply)(variables, written[None, :-1])[0]
  np.testing.assert_allclose(cached, whole, atol=1e-5 * np.abs(whole).max())
  assert written[: len(prompt)].tolist() == prompt.tolist()
  assert (written[len(prompt) :] == whole.argmax(-1)[len(prompt) - 1 :]).all()


def test_every_example_of_a_batch_may_have_a_genome_and_a_cache_of_its_own(trained):
  adapted, subnet, variables, _ = trained
  decoding = glora_jax.adapt(
    Decoder(decode=True),
    jnp.zeros((1, 1), jnp.int32),
    space=adapted.spec.layers[0].space,
    heads=None,
  )
  assert decoding.spec == adapted.spec
  genomes = np.stack([np.zeros_like(subnet.genome), subnet.genome, subnet.genome])
  prompts = jnp.asarray(np.stack([POEM[:4], POEM[:4], POEM[4:8]]), jnp.int32)
  cache = empty_cache()

  def adapted_step(genome, cache, token, position):
    return decoding.apply(
      {**variables, 'cache': cache}, token, position, genome=genome, mutable=['cache']
    )

  def write_with(genome, prompt):
    return write(Partial(adapted_step, genome), cache, prompt)

  _, logits = jax.vmap(write_with)(jnp.asarray(genomes), prompts)
  for genome, prompt, own in zip(genomes, prompts, logits, strict=True):
    _, alone = write(Partial(plain_step, adapted.fold(variables, genome)), cache, prompt)
    np.testing.assert_allclose(own, alone, atol=1e-5 * np.abs(alone).max())
  assert np.abs(logits[0] - logits[1]).max() > 1e-2
